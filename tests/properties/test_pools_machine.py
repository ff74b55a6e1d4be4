"""Random histories of a fleet: nodes, actors, engines and GPUs that come, fail and go, while tasks are served."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestrator.core.scheduler import Scheduler
from tests.properties.pools_world import GPUS, Actor, World, world_config

#: Steps of at most 2 s within which a fleet that works must be whole again.
STEPS_MAX = 120


class PoolsMachine(RuleBasedStateMachine):
    """Whatever happens, no GPU is held twice, nothing tried in a rush or awaited for ever, and the pools come back."""

    world: World

    @initialize(first=st.sets(st.sampled_from(sorted(GPUS))))
    def begin(self, first: set[str]) -> None:
        self.world = World()
        self.world.see(sorted(first))

    def pick(self, data: st.DataObject, wanted: "list[str]") -> str:
        return data.draw(st.sampled_from(wanted))

    def those(self, **wanted: bool) -> list[str]:
        actors = self.world.actors.items() if hasattr(self, "world") else ()
        return [replica_id for replica_id, actor in actors if _is(actor, wanted)]

    # ------------------------------------------------------------------ nodes

    @rule(nodes=st.sets(st.sampled_from(sorted(GPUS))))
    def change_nodes(self, nodes: set[str]) -> None:
        self.world.see(sorted(nodes))

    @precondition(lambda self: self.those(placed=False) and self.world.nodes)
    @rule(data=st.data())
    def place_anywhere(self, data: st.DataObject) -> None:
        """Ray knows nothing of masks: it may choose a node where they are held."""
        replica_id = self.pick(data, self.those(placed=False))
        self.world.place(replica_id, self.pick(data, self.world.nodes))

    # ------------------------------------------------------------------ replicas

    @precondition(lambda self: self.those(linked=False))
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        self.world.register(self.pick(data, self.those(linked=False)))

    @rule()
    def register_all(self) -> None:
        for replica_id in self.those(linked=False, placed=True):
            self.world.register(replica_id)

    @precondition(lambda self: self.those(launching=True))
    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        self.world.come_up(self.pick(data, self.those(launching=True)))

    @precondition(lambda self: self.those(launching=True, placed=True))
    @rule(data=st.data())
    def come_up_on_anothers_gpu(self, data: st.DataObject) -> None:
        self.world.come_up(self.pick(data, self.those(launching=True)), gpu_uuids=("n0:0", "n1:0"))

    def put_right(self) -> None:
        """Engines on GPUs that are not theirs end."""
        for replica_id in self.those(astray=True, serving=True):
            self.world.fail(replica_id, "gpu_lost")

    @precondition(lambda self: self.those(launching=True))
    @rule(data=st.data(), kind=st.sampled_from(["launch", "model", "headroom", "mask", "vram_oom", "host_oom"]))
    def fail_to_launch(self, data: st.DataObject, kind: str) -> None:
        self.world.fail(self.pick(data, self.those(launching=True)), kind)

    @precondition(lambda self: self.those(placed=True))
    @rule(data=st.data(), kind=st.sampled_from(["headroom", "mask", "gpu_lost", "driver"]))
    def fail_where_it_is(self, data: st.DataObject, kind: str) -> None:
        """A place that is bad: every launch there fails, until the replica is moved or is not tried any more."""
        replica_id = self.pick(data, self.those(placed=True))
        bad = self.world.actors[replica_id]
        if not bad.linked:
            self.world.register(replica_id)
        for _ in range(3):
            if self.world.actors.get(replica_id) is not bad or not bad.launching:
                break
            self.world.fail(replica_id, kind)
            self.world.wait(25_000, renewing=True)

    @precondition(lambda self: self.those(serving=True))
    @rule(data=st.data(), kind=st.sampled_from(["exit", "stuck", "driver", "gpu_lost"]))
    def crash(self, data: st.DataObject, kind: str) -> None:
        self.world.fail(self.pick(data, self.those(serving=True)), kind)

    @precondition(lambda self: self.those(serving=True))
    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        self.world.fault(self.pick(data, self.those(serving=True)))

    @precondition(lambda self: self.those(linked=True))
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        self.world.cut(self.pick(data, self.those(linked=True)))

    @precondition(lambda self: self.those(serving=True, linked=True, astray=False))
    @rule(data=st.data(), away_ms=st.sampled_from([0, 0, 200, 700, 3_000]))
    def flap(self, data: st.DataObject, away_ms: int) -> None:
        self.world.flap(self.pick(data, self.those(serving=True, linked=True, astray=False)), away_ms)

    @precondition(lambda self: self.those())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.world.kill(self.pick(data, self.those()))

    # ------------------------------------------------------------------ tasks and time

    @rule(count=st.integers(1, 6))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.world.submit()

    @precondition(lambda self: hasattr(self, "world") and self.world.running)
    @rule(data=st.data())
    def end_attempt(self, data: st.DataObject) -> None:
        self.world.end_attempt(data.draw(st.integers(0, len(self.world.running) - 1)))

    @rule(duration_ms=st.sampled_from([1, 400, 1_100, 3_000, 21_000, 121_000]), renewing=st.booleans())
    def wait(self, duration_ms: int, renewing: bool) -> None:
        self.world.wait(duration_ms, renewing=renewing)

    # ------------------------------------------------------------------ the end

    def teardown(self) -> None:
        """With all nodes back and nothing failing any more, the pools become whole; and it all happens again."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.see(sorted(GPUS))
        self.put_right()
        for _ in range(STEPS_MAX):
            world.mend()
            if world.is_whole():
                break
            world.wait(2_000, renewing=True)
        assert world.is_whole(), f"after {STEPS_MAX} steps: {world.actors}"
        again = Scheduler(world_config())
        assert [again.step(now_ns, event) for now_ns, event in world.history] == world.heard


def _is(actor: Actor, wanted: dict[str, bool]) -> bool:
    placed = bool(actor.node_id)
    seen = {
        "linked": actor.linked,
        "launching": actor.launching,
        "serving": actor.serving,
        "placed": placed,
        "astray": actor.astray,
    }
    return all(seen[name] == value for name, value in wanted.items())


PoolsMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.req(
    "ORCH-3002",
    "ORCH-3010",
    "ORCH-3011",
    "ORCH-3018",
    "ORCH-3038",
    "ORCH-3039",
    "ORCH-3053",
    "OC-POOL-3010",
    "OC-POOL-3011",
    "OC-POOL-3020",
)
class TestPools(PoolsMachine.TestCase):  # type: ignore[misc,name-defined]
    """Every random history keeps every promise."""
