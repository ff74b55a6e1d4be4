"""Reloads, canaries, rollbacks and drains under any load: no task is lost, and none is refused without need."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.pools import ReplicaFaulted
from contracts.scheduling import ReplicaLost, Start
from tests.unit.core.core_kit import of, queue
from tests.unit.core.fleet_kit import MODELS, Fleet, managed, pool

#: More than any example submits.
PLENTY = 1_000
POOLS = ("pool-a", "pool-b")

#: What may happen, as often as it is named.
STEPS = ("submit",) * 8 + ("pass",) * 4 + ("reload",) * 3 + ("promote", "rollback", "break", "mend")
HARM = ("drain", "lose", "fault")


def arguments(name: str, pick: Random) -> tuple[object, ...]:
    """What a step is about."""
    if name == "submit":
        return pick.randrange(100), pick.choice(("strict", "best_effort")), pick.random() < 0.3
    if name == "pass":
        return (pick.choice((1, 30, 100, 250)),)
    if name == "reload":
        return pick.choice(POOLS), pick.choice(MODELS), pick.choice((None, 20, 80))
    if name == "drain":
        return pick.choice(POOLS), pick.choice((0, 150, 5_000))
    if name in ("promote", "rollback"):
        return (pick.choice(POOLS),)
    if name == "break":
        return (pick.choice(MODELS[1:]),)
    return (pick.randrange(10),) if name in ("lose", "fault") else ()


def fleet_of(least: int | None, drain_ms: int) -> Fleet:
    more = {"least": least, "drain_ms": drain_ms, "reload_timeout_ms": 2_000}
    pools = (pool("pool-a", 2, **more), pool("pool-b", 1, **more))
    roomy = (queue("interactive", PLENTY), queue("batch", PLENTY))
    return Fleet(managed(*pools, queues=roomy, capacity=PLENTY), nodes=2)


class World:
    """Carries the steps out, and knows which tasks there are."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.tasks: list[str] = []
        self.do: dict[str, Callable[..., object]] = {
            "submit": self.submit,
            "pass": fleet.pass_ms,
            "reload": lambda pool_id, model_ref, canary: fleet.reload(model_ref, canary, pool_id),
            "promote": fleet.promote,
            "rollback": fleet.rollback,
            "break": lambda model_ref: fleet.broken.update({model_ref: "cannot be read"}),
            "mend": fleet.broken.clear,
            "drain": lambda pool_id, deadline_ms: fleet.drain(deadline_ms, pool_id),
            "lose": lambda n: self.hit(n, lambda replica_id: ReplicaLost(replica_id, "the link was cut")),
            "fault": lambda n: self.hit(n, lambda replica_id: ReplicaFaulted(replica_id, "xid", "XID 79")),
        }

    def submit(self, session: int, determinism: str, templated: bool) -> None:
        name = f"t{len(self.tasks)}"
        self.tasks.append(name)
        self.fleet.submit(name, session_id=f"s{session}", determinism=determinism, templated=templated)

    def hit(self, n: int, event: Callable[[str], ReplicaLost | ReplicaFaulted]) -> None:
        replicas = list(self.fleet.core.scheduler.state.replicas)
        if not replicas:
            return
        told = event(replicas[n % len(replicas)])
        if isinstance(told, ReplicaLost):
            # What it was running it will not tell of any more.
            gone = [name for name, start in self.fleet.running.items() if start.replica_id == told.replica_id]
            for name in gone:
                del self.fleet.running[name]
            self.fleet.orders.pop(told.replica_id, None)
        self.fleet.tell(told)

    def run(self, names: tuple[str, ...], count: int, seed: int) -> None:
        pick = Random(seed)
        for _ in range(count):
            name = pick.choice(names)
            self.do[name](*arguments(name, pick))


@pytest.mark.req("ORCH-3031", "ORCH-3033", "ORCH-2102")
@settings(max_examples=60, deadline=None)
@given(count=st.integers(10, 60), seed=st.integers(0, 2**32 - 1))
def test_reloads_lose_no_task_and_refuse_none(count: int, seed: int) -> None:
    world = World(fleet_of(None, 3_600_000))
    world.run(STEPS, count, seed)
    fleet = world.fleet
    fleet.pass_ms(120_000)
    assert not fleet.refusals
    assert [fleet.outcomes[name].state for name in world.tasks] == ["finished"] * len(world.tasks)
    # A reload moves nothing: each task ran once, in the set that admitted it.
    assert len(of(fleet.said, Start)) == len(world.tasks)
    for pool_id in POOLS:
        seen = fleet.health(pool_id)
        settled = seen.reload is None or seen.reload.state != "loading"
        assert settled, f"{pool_id}: {seen.reload}"
        on_trial = seen.reload is not None and seen.reload.state == "canary"
        serving = [each for each in seen.replicas if each.model_ref == seen.model_ref]
        assert [each.phase for each in serving] == ["ready"] * seen.metrics.replicas_desired
        assert on_trial or len(serving) == len(seen.replicas)
    served = {each.model_ref for pool_id in POOLS for each in fleet.health(pool_id).replicas}
    assert sorted(fleet.sets()) == sorted(served)


@pytest.mark.req("ORCH-2101", "ORCH-3017", "ORCH-3031")
@settings(max_examples=30, deadline=None)
@given(count=st.integers(10, 60), seed=st.integers(0, 2**32 - 1), least=st.sampled_from((None, 0)))
def test_whatever_happens_every_task_ends_once_with_a_reason(count: int, seed: int, least: int | None) -> None:
    world = World(fleet_of(least, 400))
    world.run(STEPS + HARM, count, seed)
    fleet = world.fleet
    fleet.broken.clear()
    fleet.pass_ms(400_000)
    for name in world.tasks:
        outcome = fleet.outcomes.get(name)
        assert (outcome is None) == (name in fleet.refusals), f"{name}: {outcome}, {fleet.refusals.get(name)}"
        error = fleet.refusals[name] if outcome is None else outcome.error
        if error is not None:
            assert error.message
            assert error.code in (
                "POOL_UNAVAILABLE",
                "POOL_UNREADY",
                "WORKER_RESET",
                "INVALID_PARAMS",
                "DEADLINE_UNMET",
            )
    for pool_id in POOLS:
        seen = fleet.health(pool_id)
        assert not seen.draining
        assert seen.drained <= (not [each for each in seen.replicas if each.model_ref == seen.model_ref])
        phases = [each.phase for each in seen.replicas]
        assert phases == ["ready"] * len(phases), f"{pool_id}: {phases}"
