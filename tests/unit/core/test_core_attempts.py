"""Running attempts: order, ends, retries, cancels, watchdogs and lost replicas."""

import pytest

from contracts.errors import ErrorInfo
from contracts.scheduling import (
    AnswerCancel,
    Finish,
    Forget,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    SlotReleased,
    Start,
    Stop,
    TokensProgressed,
)
from contracts.tasks import Outcome
from tests.unit.core.core_kit import Core, ended, of, one, replica, replica_set, started

AGAIN = ErrorInfo(code="INTERNAL", message="engine hiccup", retriable=True)
NEVER = ErrorInfo(code="INTERNAL", message="engine refused", retriable=False)


def running(**over: object) -> Core:
    """One slot, task `t` on it."""
    core = Core(replica_set(**over), ready=(replica(),))
    core.submit("t")
    return core


def outcome(commands: list[object]) -> Outcome:
    return one(commands, Finish).outcome  # type: ignore[arg-type]


@pytest.mark.req("OC-CORE-1003", "OC-CORE-1004", "ORCH-3004")
def test_higher_class_first_and_arrival_order_within() -> None:
    core = running()
    for n, priority in enumerate(["batch", "interactive", "batch", "interactive"]):
        core.submit(f"{priority[0]}{n}", priority=priority)
    served, last = [], "t"
    for _ in range(4):
        last = one(core.tell(ended(last)), Start).task_id
        served.append(last)
    assert served == ["i1", "i3", "b0", "b2"]


@pytest.mark.req("ORCH-3010", "OC-CORE-1010", "OC-CORE-1012")
def test_the_least_loaded_ready_replica_runs_the_task() -> None:
    core = Core(ready=(replica("r0", slots=2), replica("r1", slots=4)))
    core.tell(ReplicaLoading("r2", "pool-a"))
    places = [one(core.submit(f"t{n}"), Start).replica_id for n in range(6)]
    assert places == ["r0", "r1", "r1", "r0", "r1", "r1"]
    assert not of(core.submit("waits"), Start)
    assert one(core.tell(ReplicaReady(replica("r2"))), Start).replica_id == "r2"


def test_a_finished_attempt_ends_the_task_and_frees_the_slot() -> None:
    core = running()
    core.submit("next")
    commands = core.tell(
        ended("t", tokens_in=5, first_token_ns=1_500_000, decode_ns=2_499_999, finish_reason="stop", stop_sequence="x")
    )
    assert outcome(commands) == Outcome(
        "finished", 5, 10, first_token_ms=2, decode_ms=2, finish_reason="stop", stop_sequence="x"
    )
    assert one(commands, Start).task_id == "next"


def test_a_slot_that_is_not_free_yet_stays_occupied() -> None:
    core = running()
    core.submit("next")
    assert not of(core.tell(ended("t", slot_free=False)), Start)
    assert one(core.tell(SlotReleased("t", 1, "r0")), Start).task_id == "next"


def test_a_running_attempts_slot_cannot_be_released() -> None:
    core = running()
    core.submit("next")
    assert not core.tell(SlotReleased("t", 1, "r0"))


def test_an_attempt_that_delivered_nothing_is_tried_again_three_times_at_most() -> None:
    core = running()
    core.submit("next")
    for attempt in (1, 2):
        start = one(core.tell(ended("t", attempt, result="failed", error=AGAIN)), Start)
        assert (start.task_id, start.attempt) == ("t", attempt + 1)
    failed = outcome(core.tell(ended("t", 3, result="failed", error=AGAIN)))
    assert failed.state == "failed"
    assert failed.error == ErrorInfo("INTERNAL", "engine hiccup", "llamacpp", "pool-a", retriable=True)


@pytest.mark.parametrize(
    ("error", "tokens_out", "code"), [(NEVER, 0, "INTERNAL"), (AGAIN, 1, "INTERNAL"), (None, 1, "WORKER_RESET")]
)
def test_what_cannot_be_repeated_or_cannot_succeed_is_not_tried_again(
    error: ErrorInfo | None, tokens_out: int, code: str
) -> None:
    core = Core(ready=(replica(),))
    core.submit("t", determinism="best_effort")
    failed = outcome(core.tell(ended("t", result="failed", error=error, tokens_out=tokens_out)))
    assert failed.error is not None
    assert (failed.error.code, failed.error.engine, failed.error.pool_id) == (code, "llamacpp", "pool-a")


def test_a_task_tried_again_goes_before_its_class_and_after_higher_ones() -> None:
    core = Core(ready=(replica(),))
    core.submit("b", priority="batch")
    core.submit("b2", priority="batch")
    core.submit("i")
    assert one(core.tell(ended("b", result="failed", error=AGAIN)), Start).task_id == "i"
    assert started(core.tell(ended("i"))) == [("b", 2, "r0")]


@pytest.mark.req("ORCH-2003", "ORCH-3017", "OC-CORE-1005")
def test_cancel_of_a_waiting_task_ends_it_in_the_same_step() -> None:
    core = running()
    core.submit("w")
    commands = core.cancel("w")
    assert [type(c) for c in commands] == [Finish, AnswerCancel]
    assert outcome(commands) == Outcome("canceled", finish_reason="canceled")
    assert not of(core.tell(ended("t")), Start)


@pytest.mark.req("ORCH-3017", "ORCH-3026", "OC-CORE-1005")
def test_cancel_of_a_running_task_is_answered_when_it_has_stopped() -> None:
    core = running()
    core.submit("next")
    assert one(core.cancel("t"), Stop) == Stop("set-a", "t", 1, "r0", "cancel")
    assert not core.cancel("t")
    commands = core.tell(ended("t", result="stopped", tokens_out=4))
    assert [type(c) for c in commands[:4]] == [Finish, AnswerCancel, AnswerCancel, Start]
    assert (outcome(commands).state, outcome(commands).tokens_out) == ("canceled", 4)
    assert [a.request for a in of(commands, AnswerCancel)] == [core.numbers - 1, core.numbers]


@pytest.mark.req("ORCH-3026")
def test_a_task_that_finished_before_the_stop_has_finished() -> None:
    core = running()
    core.cancel("t")
    commands = core.tell(ended("t"))
    assert outcome(commands).state == "finished"
    assert one(commands, AnswerCancel).found


@pytest.mark.req("ORCH-3017", "ORCH-3026")
def test_an_unanswered_stop_ends_the_task_and_fences_what_comes_late() -> None:
    core = running()
    core.submit("next")
    core.tell(TokensProgressed("t", 1, 3, 0))
    core.cancel("t")
    assert not of(core.pass_ms(1_999), Finish)
    commands = core.pass_ms(1)
    assert (outcome(commands).state, outcome(commands).tokens_out) == ("canceled", 3)
    assert of(commands, AnswerCancel)
    assert not of(commands, Start)
    late = core.tell(ended("t"))
    assert not of(late, Finish)
    assert one(late, Start).task_id == "next"


@pytest.mark.req("ORCH-2003", "ORCH-3024")
def test_cancel_of_unknown_foreign_and_ended_tasks() -> None:
    core = running()
    assert core.cancel("nobody") == [AnswerCancel("", core.numbers, found=False)]
    assert core.cancel("t", tenant="rival") == [AnswerCancel("", core.numbers, found=False)]
    core.tell(ended("t"))
    assert core.cancel("t") == [AnswerCancel("set-a", core.numbers, found=True)]
    assert core.state_of("t") == "finished"


@pytest.mark.req("ORCH-3016", "OC-CORE-1022")
def test_the_idle_watchdog_stops_what_makes_no_tokens() -> None:
    core = running()
    core.pass_ms(900)
    core.tell(TokensProgressed("t", 1, 1, 0))
    assert not of(core.pass_ms(900), Stop)
    core.tell(TokensProgressed("t", 1, 1, 0))
    assert one(core.pass_ms(100), Stop).reason == "idle"
    failed = outcome(core.tell(ended("t", result="stopped", tokens_out=1)))
    assert failed.error is not None
    assert (failed.error.code, failed.error.retriable) == ("DECODE_TIMEOUT", True)
    assert (failed.error.engine, failed.error.pool_id) == ("llamacpp", "pool-a")


@pytest.mark.req("ORCH-3016", "OC-CORE-1022")
def test_the_wall_watchdog_stops_what_takes_too_long() -> None:
    core = running(wall_timeout_ms=1_500)
    core.pass_ms(999)
    core.tell(TokensProgressed("t", 1, 1, 0))
    assert not of(core.pass_ms(500), Stop)
    assert one(core.pass_ms(1), Stop).reason == "wall"
    failed = outcome(core.pass_ms(2_000))
    assert failed.error is not None
    assert failed.error.code == "DECODE_TIMEOUT"


@pytest.mark.req("ORCH-3016")
def test_a_cancel_of_what_the_watchdog_stops_waits_for_the_same_end() -> None:
    core = running()
    core.pass_ms(1_000)
    assert not core.cancel("t")
    commands = core.tell(ended("t", result="stopped"))
    assert outcome(commands).state == "failed"
    assert one(commands, AnswerCancel).found


def test_a_waiting_task_ends_at_its_deadline() -> None:
    core = running(idle_timeout_ms=60_000, wall_timeout_ms=60_000)
    core.submit("w", deadline_ms=50)
    assert not core.pass_ms(49)
    failed = outcome(core.pass_ms(1))
    assert failed.error is not None
    assert (failed.error.code, failed.error.retriable) == ("DEADLINE_UNMET", False)


def test_the_largest_deadline_is_taken() -> None:
    core = running()
    core.submit("w", deadline_ms=2**63 - 1)
    assert core.state_of("w") == "queued"


@pytest.mark.parametrize(
    "event", [ReplicaLost("r0", "eof"), ReplicaUnready("r0", "crash"), ReplicaLoading("r0", "pool-a")]
)
def test_a_lost_engine_ends_what_cannot_be_repeated_and_voids_its_slots(event: ReplicaLost) -> None:
    core = Core(ready=(replica(slots=2),))
    core.submit("t", determinism="best_effort")
    core.submit("c")
    core.cancel("c")
    core.tell(TokensProgressed("t", 1, 4, 0))
    commands = core.tell(event)
    by_task = {f.task_id: f.outcome for f in of(commands, Finish)}
    assert by_task["c"].state == "canceled"
    error = by_task["t"].error
    assert error is not None
    assert (error.code, error.retriable, error.engine, error.pool_id) == ("WORKER_RESET", True, "llamacpp", "pool-a")
    assert by_task["t"].tokens_out == 4
    assert one(commands, AnswerCancel).found
    core.tell(ReplicaReady(replica(slots=2)))
    assert not core.tell(ended("t"))
    assert len(of(core.submit("u"), Start) + of(core.submit("v"), Start)) == 2


@pytest.mark.req("ORCH-3026")
def test_reports_of_older_attempts_are_fenced() -> None:
    core = Core(ready=(replica("r0"), replica("r1")))
    core.submit("t")
    start = one(core.tell(ended("t", result="failed", error=AGAIN, slot_free=False)), Start)
    assert (start.attempt, start.replica_id) == (2, "r1")
    assert not core.tell(ended("t", 1, result="finished", slot_free=False))
    core.tell(TokensProgressed("t", 1, 9, 0))
    status = core.scheduler.status(core.now_ms, "t", "acme")
    assert status is not None
    assert (status.state, status.tokens_out, status.attempt) == ("running", 0, 2)


@pytest.mark.req("ORCH-3026")
def test_a_late_duplicate_does_not_end_the_next_attempt_on_the_same_replica() -> None:
    core = running()
    core.submit("next")
    failed = ended("t", result="failed", error=AGAIN)
    assert started(core.tell(failed)) == [("t", 2, "r0")]
    assert not core.tell(failed)
    assert not core.tell(SlotReleased("t", 1, "r0"))
    assert core.state_of("t") == "running"


@pytest.mark.req("ORCH-3024")
def test_an_id_is_not_reused_while_its_slot_is_occupied() -> None:
    core = Core(ready=(replica(),), ttl_ms=1_000)
    core.submit("t")
    core.tell(ended("t", slot_free=False))
    assert not of(core.pass_ms(5_000), Forget)
    assert core.state_of("t") == "finished"
    assert one(core.tell(SlotReleased("t", 1, "r0")), Forget).task_id == "t"
