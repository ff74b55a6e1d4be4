"""What becomes of tasks whose attempts die: they go on elsewhere, or end for a reason that is told."""

import pytest

from contracts.errors import ErrorInfo
from contracts.pools import FaultKind
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    Finish,
    Pause,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    Start,
    Stop,
    TokensDiverged,
    TokensProgressed,
)
from contracts.tasks import Outcome
from orchestrator.core import attempts
from orchestrator.core.failover import ATTEMPTS_MAX, LOSSES_MAX
from orchestrator.core.records import TaskRecord
from tests.unit.core.core_kit import MS, TENANT, Core, ended, of, one, replica, replica_set, started

AGAIN = ErrorInfo(code="INTERNAL", message="engine hiccup", retriable=True)
LOST = ReplicaLost("r0", "eof")


def pair(**over: object) -> Core:
    """Task `t` runs on r0 and has made 4 tokens; r1 is idle."""
    core = Core(ready=(replica("r0"), replica("r1", node_id="n1")))
    core.submit("t", **over)
    core.tell(TokensProgressed("t", 1, 4, 77))
    return core


def record(core: Core, task_id: str = "t") -> TaskRecord:
    return core.scheduler.state.tasks[task_id]


def failed(commands: list[AnyCommand]) -> ErrorInfo:
    error = one(commands, Finish).outcome.error
    assert error is not None
    return error


@pytest.mark.req("ORCH-3009", "ORCH-3045")
@pytest.mark.parametrize("event", [LOST, ReplicaUnready("r0", "crash"), ReplicaLoading("r0", "pool-a")])
def test_a_lost_task_goes_on_elsewhere_at_once_after_what_was_heard(event: AnyEvent) -> None:
    core = pair()
    commands = core.tell(event)
    assert not of(commands, Finish)
    assert one(commands, Pause).cause == "lost"
    start = one(commands, Start)
    assert (start.attempt, start.replica_id, start.resume_tokens, start.resume_digest) == (2, "r1", 4, 77)
    assert record(core).losses == 1
    assert one(core.tell(ended("t", 2, "r1")), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3009", "ORCH-3023")
def test_a_failover_says_so_and_claims_no_kv() -> None:
    core = pair()
    first = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert first is not None
    assert not first.failover
    core.tell(LOST)
    second = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert second is not None
    assert (second.failover, second.kv_warmth, second.attempt) == (True, False, 2)
    core.tell(ended("t", 2, "r1", result="failed", error=AGAIN))
    # The third follows one that delivered nothing more, but the client has tokens of the first.
    third = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert third is not None
    assert third.failover


@pytest.mark.req("ORCH-3009")
def test_best_effort_goes_on_only_while_nothing_was_delivered() -> None:
    core = Core(ready=(replica("r0"), replica("r1")))
    core.submit("t", determinism="best_effort")
    assert started(core.tell(LOST)) == [("t", 2, "r1")]
    core.tell(TokensProgressed("t", 2, 1, 5))
    error = failed(core.tell(ReplicaLost("r1", "eof")))
    assert (error.code, error.retriable, error.engine, error.pool_id) == ("WORKER_RESET", True, "llamacpp", "pool-a")
    assert error.message == "replica r1 was lost while it ran task t: eof"


@pytest.mark.req("ORCH-3009", "ORCH-3017")
def test_a_task_that_is_being_stopped_ends_as_its_stop_was_meant() -> None:
    core = pair()
    core.cancel("t")
    assert one(core.tell(LOST), Finish).outcome == Outcome("canceled", tokens_out=4, finish_reason="canceled")


@pytest.mark.req("ORCH-3009")
def test_a_lost_task_keeps_its_place_and_its_prefix_however_often_it_is_lost() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.submit("w")
    core.tell(TokensProgressed("t", 1, 4, 77))
    core.tell(LOST)
    assert started(core.tell(ReplicaReady(replica("r1")))) == [("t", 2, "r1")]
    # It was lost before it had caught up.
    core.tell(TokensProgressed("t", 2, 2, 5))
    core.tell(ReplicaLost("r1", "eof"))
    start = one(core.tell(ReplicaReady(replica("r2"))), Start)
    assert (start.task_id, start.attempt, start.resume_tokens, start.resume_digest) == ("t", 3, 4, 77)


@pytest.mark.req("ORCH-3008", "ORCH-3009")
@pytest.mark.parametrize(("kind", "chosen"), [("node", "r3"), ("exit", "r2"), ("killed", "r2"), ("lease", "r2")])
def test_only_a_lost_node_is_avoided(kind: FaultKind, chosen: str) -> None:
    core = Core(ready=(replica("r0"),))
    core.submit("t")
    core.tell(ReplicaUnready("r0", "gone", kind))
    core.tell(ReplicaLost("r0", "gone"))
    # Two that were busy until now let go of their slots in one step: nothing starts while the set is held.
    core.scheduler.state.awaited["r9"] = None
    core.tell(ReplicaReady(replica("r2")))
    core.tell(ReplicaReady(replica("r3", node_id="n1")))
    assert started(core.tell(ReplicaLoading("r9", "pool-a"))) == [("t", 2, chosen)]


@pytest.mark.req("ORCH-3009")
def test_a_task_whose_attempts_are_lost_without_end_ends() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    for n in range(1, LOSSES_MAX):
        assert not of(core.tell(ReplicaLost("r0", "eof")), Finish)
        assert started(core.tell(ReplicaReady(replica()))) == [("t", n + 1, "r0")]
    error = failed(core.tell(ReplicaLost("r0", "eof")))
    assert (error.code, error.retriable) == ("WORKER_RESET", True)
    assert "10 attempts of it were lost" in error.message


@pytest.mark.req("ORCH-3009", "ORCH-3045")
def test_what_its_engine_ended_goes_on_too_three_times_at_most_and_losses_do_not_count() -> None:
    core = Core(ready=(replica("r0"), replica("r1", node_id="n1")))
    core.submit("t")
    core.tell(LOST)
    commands = core.tell(ended("t", 2, "r1", result="failed", error=AGAIN, tokens_out=3, digest=9))
    assert one(commands, Pause).cause == "lost"
    assert (one(commands, Start).resume_tokens, one(commands, Start).resume_digest) == (3, 9)
    assert record(core).losses == 1
    core.tell(ended("t", 3, "r1", result="failed", error=AGAIN, tokens_out=1, digest=1))
    error = failed(core.tell(ended("t", 1 + ATTEMPTS_MAX, "r1", result="failed", error=AGAIN)))
    assert (error.code, error.message) == ("INTERNAL", "engine hiccup")


@pytest.mark.req("ORCH-3040")
def test_an_attempt_that_its_engine_ended_is_held_against_its_pool_and_a_lost_one_is_not() -> None:
    seen: list[tuple[str, bool]] = []
    core = pair()
    core.tell(LOST)
    home = core.scheduler.state.sets[0]

    class Watching:
        def __bool__(self) -> bool:
            return True

        def allows(self, *_of: object) -> bool:
            return True

        def observe(self, _record: object, pool_id: str, finished: bool, *_at: int) -> None:
            seen.append((pool_id, finished))

    home.breakers = Watching()  # type: ignore[assignment]
    core.tell(ended("t", 2, "r1", result="failed", error=AGAIN))
    core.tell(ended("t", 3, "r1"))
    assert seen == [("pool-a", False), ("pool-a", True)]


@pytest.mark.req("ORCH-3018", "ORCH-3025")
def test_one_that_finds_no_other_replica_by_its_deadline_is_told_that() -> None:
    core = Core(ready=(replica(),))
    core.submit("t", deadline_ms=5_000)
    core.submit("w", deadline_ms=5_000)
    core.tell(TokensProgressed("t", 1, 4, 77))
    core.tell(LOST)
    by_task = {finish.task_id: finish.outcome for finish in of(core.pass_ms(5_000), Finish)}
    lost, waited = by_task["t"].error, by_task["w"].error
    assert lost is not None
    assert waited is not None
    assert (lost.code, lost.retriable, by_task["t"].tokens_out) == ("POOL_UNAVAILABLE", True, 4)
    assert lost.message == (
        f"its replica was lost, and none was ready until its deadline; try again in {lost.retry_after_ms} ms"
    )
    assert (lost.retry_after_ms or 0) >= 1000
    assert (waited.code, waited.retriable) == ("DEADLINE_UNMET", False)


@pytest.mark.req("ORCH-3025")
def test_one_that_waits_for_a_slot_elsewhere_until_its_deadline_is_late() -> None:
    core = pair(deadline_ms=5_000)
    core.submit("other")
    assert not of(core.tell(LOST), Start)
    error = failed([c for c in core.pass_ms(5_000) if getattr(c, "task_id", "") == "t"])
    assert (error.code, error.message) == ("DEADLINE_UNMET", "not ended within deadline_ms 5000")


def test_one_whose_deadline_is_over_when_it_is_lost_ends_with_the_next_tick() -> None:
    core = Core(replica_set(idle_timeout_ms=9_000), ready=(replica(),))
    core.submit("t", deadline_ms=100)
    core.pass_ms(500)
    assert not of(core.tell(LOST), Finish)
    assert failed(core.pass_ms(1)).code == "POOL_UNAVAILABLE"


@pytest.mark.req("ORCH-3094")
def test_a_lost_task_says_why_it_waits() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.tell(ReplicaUnready("r0", "crash"))
    status = core.scheduler.status(core.now_ms * MS, "t", TENANT)
    assert status is not None
    assert status.why is not None
    assert status.why.startswith("its last attempt was lost; kept apart from other such tasks, since 1 of its attempts")
    assert (status.state, status.resumable, status.replica_id) == ("queued", True, "r0")


@pytest.mark.req("ORCH-3009")
def test_no_attempt_starts_while_the_set_is_held_not_even_in_a_slot_that_was_taken_for_it() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.submit("w")
    core.scheduler.state.is_ending = True
    assert not of(core.tell(ended("t")), Start)
    assert core.state_of("w") == "queued"


# ------------------------------------------------------------------------ what differs


@pytest.mark.req("ORCH-3045")
def test_a_later_attempt_that_makes_other_tokens_is_stopped_and_its_task_fails() -> None:
    core = pair()
    core.tell(LOST)
    stop = one(core.tell(TokensDiverged("t", 2)), Stop)
    assert (stop.reason, stop.attempt, stop.replica_id) == ("diverged", 2, "r1")
    assert not core.tell(TokensDiverged("t", 2))
    # What comes from an engine that made other tokens is no result, finished or not.
    error = failed(core.tell(ended("t", 2, "r1")))
    assert (error.code, error.retriable) == ("WORKER_RESET", False)
    assert error.message == "determinism: attempt 2 made other tokens than were delivered before"


@pytest.mark.req("ORCH-3045")
def test_news_of_other_tokens_ends_a_task_that_was_lost_again_meanwhile() -> None:
    core = pair()
    core.tell(LOST)
    core.tell(ReplicaLost("r1", "eof"))
    assert failed(core.tell(TokensDiverged("t", 2))).code == "WORKER_RESET"


@pytest.mark.req("ORCH-3045")
def test_news_of_other_tokens_of_an_older_attempt_or_an_ended_task_changes_nothing() -> None:
    core = pair()
    core.tell(LOST)
    assert not core.tell(TokensDiverged("t", 1))
    assert not core.tell(TokensDiverged("unknown", 1))
    core.tell(ended("t", 2, "r1"))
    assert not core.tell(TokensDiverged("t", 2))


# ------------------------------------------------------------------------ stops that are overtaken


@pytest.mark.req("ORCH-3017", "OC-CORE-1005")
def test_a_cancel_while_a_task_is_moved_off_a_drained_replica_ends_it() -> None:
    core = pair()
    state = core.scheduler.state
    state.begin_step(core.now_ms * MS)
    attempts.stop_for_drain(state, state.replicas["r0"])
    core.cancel("t")
    commands = core.tell(ended("t", 1, result="stopped", tokens_out=5))
    assert one(commands, Finish).outcome.state == "canceled"
    assert not of(commands, Start)


@pytest.mark.req("ORCH-3045")
def test_news_of_other_tokens_while_a_task_is_moved_ends_it() -> None:
    core = pair()
    state = core.scheduler.state
    state.begin_step(core.now_ms * MS)
    attempts.stop_for_drain(state, state.replicas["r0"])
    assert not of(core.tell(TokensDiverged("t", 1)), Stop)
    assert failed(core.tell(ended("t", 1, result="stopped", tokens_out=5))).message.startswith("determinism: ")
