"""Tasks that run with a model which their pool is leaving, or tries as a canary, outlive the scheduler (ORCH-3051)."""

import pytest

from contracts.pools import DrainRequested, NodeInfo, ReloadRequested, RetireReplica
from contracts.scheduling import Finish, RefuseReplica, ReplicaReady, RunningAttempt, Start, Stop, TokensProgressed
from orchestrator.core.recovery import RECOVERY_NS
from tests.unit.core.core_kit import MS, ended, of, one, replica, replica_set, started
from tests.unit.core.durable_kit import Durable, DurableFleet
from tests.unit.core.pool_kit import pool

pytestmark = [pytest.mark.req("ORCH-3051"), pytest.mark.req("ORCH-3031")]
MODELS = {"llamacpp": ("small", "big")}
CANARY = "llamacpp/big/-/100/v1"


def back(core: DurableFleet, replica_id: str, *running: RunningAttempt) -> list[object]:
    order = core.orders[replica_id]
    info = replica(replica_id, pool_id=order.pool_id, node_id=order.node_id)
    return list(core.tell(ReplicaReady(info, order.incarnation, running)))


def retired(commands: list[object]) -> list[str]:
    return [each.replica_id for each in commands if isinstance(each, RetireReplica)]


def reloaded(*, determinism: str = "strict", waits: bool = False) -> DurableFleet:
    """A task runs on the replica of a model that its pool has just left."""
    core = DurableFleet(pool("pool-a", 1), models=MODELS)
    core.up("pool-a-0")
    core.submit("run", determinism=determinism)
    core.tell(TokensProgressed("run", 1, 3, 3))
    if waits:
        core.submit("waits")
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.up("pool-a-1")
    return core


@pytest.mark.req("ORCH-3009")
@pytest.mark.parametrize("determinism", ["strict", "best_effort"])
def test_what_runs_with_the_model_before_a_reload_goes_on(determinism: str) -> None:
    core = reloaded(determinism=determinism)
    orders = [(each.replica_id, each.model_ref) for each in core.scheduler.orders()]
    assert not of(core.restart(), Finish)
    assert sorted((each.replica_id, each.model_ref) for each in core.scheduler.orders()) == sorted(orders)
    assert list(core.scheduler.state.awaited) == ["pool-a-0"]
    core.see(NodeInfo("n0"))
    commands = back(core, "pool-a-0", RunningAttempt("run", 1, 4, 4))
    assert not [each for each in commands if isinstance(each, Start | Stop | RefuseReplica | RetireReplica)]
    commands = core.tell(ended("run", replica_id="pool-a-0"))  # type: ignore[assignment]
    assert one(commands, Finish).outcome.state == "finished"  # type: ignore[arg-type]
    assert retired(commands) == ["pool-a-0"]
    # The set of the model that was left goes with it.
    assert [home.policy.model_refs for home in core.scheduler.state.sets] == [("big",)]


def test_what_waits_for_the_model_before_a_reload_is_served_with_it() -> None:
    core = reloaded(waits=True)
    core.restart()
    core.see(NodeInfo("n0"))
    back(core, "pool-a-1")
    back(core, "pool-a-0", RunningAttempt("run", 1, 4, 4))
    assert started(core.tell(ended("run", replica_id="pool-a-0"))) == [("waits", 1, "pool-a-0")]
    assert started(core.submit("new")) == [("new", 1, "pool-a-1")]


@pytest.mark.req("ORCH-3018")
def test_a_task_whose_model_has_no_replica_any_more_is_told_so_and_may_come_again() -> None:
    core = reloaded()
    core.restart()
    core.see(NodeInfo("n0"))
    assert not of(core.pass_ms(RECOVERY_NS // MS), Finish)
    # Its replica may come later, until the time that the pool has for it is over.
    commands = core.pass_ms(core.pool().policy.drain_ms)
    error = one(commands, Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)
    assert "configuration" not in error.message
    assert "pool-a-0" not in core.members


def test_a_pool_that_is_drained_after_a_reload_finishes_both_models() -> None:
    core = reloaded()
    core.tell(DrainRequested(1, "pool-a", 60_000))
    assert core.members == ["pool-a-0"]
    core.restart()
    core.see(NodeInfo("n0"))
    assert not core.pool().drained
    back(core, "pool-a-0", RunningAttempt("run", 1, 4, 4))
    core.tell(ended("run", replica_id="pool-a-0"))
    assert core.pool().drained


@pytest.mark.req("ORCH-3033")
def test_what_a_canary_runs_and_what_waits_for_it_goes_on() -> None:
    core = DurableFleet(pool("pool-a", 1), models=MODELS)
    core.up("pool-a-0")
    core.tell(ReloadRequested(1, "pool-a", "big", canary_percent=99))
    core.up("pool-a-1")
    for task_id in ("run", "waits"):
        core.submit(task_id, session_id="s0")
    kept = core.task("run").start
    assert kept is not None
    assert kept.set_id == CANARY
    assert not of(core.restart(), Finish)
    core.see(NodeInfo("n0"))
    back(core, "pool-a-0")
    assert not retired(back(core, "pool-a-1", RunningAttempt("run", 1, 4, 4)))
    commands = core.tell(ended("run", replica_id="pool-a-1"))
    assert started(commands) == [("waits", 1, "pool-a-1")]
    # The canary itself is over: who comes now gets what the pool serves.
    assert started(core.submit("new", session_id="s0")) == [("new", 1, "pool-a-0")]
    assert retired(list(core.tell(ended("waits", replica_id="pool-a-1")))) == ["pool-a-1"]


def test_replicas_of_a_reload_that_was_not_over_are_not_kept() -> None:
    core = DurableFleet(pool("pool-a", 1), models=MODELS)
    core.up("pool-a-0")
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.restart()
    assert [each.replica_id for each in core.scheduler.orders()] == ["pool-a-0"]


# ------------------------------------------------------------------------ tasks that went to another set


def test_a_task_that_went_to_another_set_is_known_there_after_the_next_restart() -> None:
    core = Durable(replica_set(set_id="set-old"), ready=(replica(),))
    core.submit("run")
    core.submit("waits")
    core.restart(replica_set(set_id="set-new"))
    assert started(core.tell(ReplicaReady(replica("r9")))) == [("waits", 1, "r9")]
    assert not of(core.restart(), Finish)
    assert core.state_of("waits") == "queued"
    core.back(replica("r9"), RunningAttempt("waits", 1, 2, 2))
    assert core.state_of("waits") == "running"
    core.tell(ended("waits", replica_id="r9"))
    core.restart(replica_set(set_id="set-old"))
    assert core.state_of("waits") == "finished"
