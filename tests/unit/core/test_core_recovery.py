"""A scheduler that goes on where another ended: nothing is lost, nothing is begun twice (ORCH-3051)."""

import pytest

from contracts.errors import ErrorInfo
from contracts.journal import ForgottenTask
from contracts.policies import BudgetPolicy, SessionPolicy
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    Finish,
    Forget,
    Reject,
    ReplicaReady,
    RunningAttempt,
    ServiceRecovered,
    Start,
    Stop,
    TokensProgressed,
)
from orchestrator.core.recovery import RECOVERY_NS
from tests.unit.core.core_kit import MS, TENANT, ended, of, one, replica, replica_set, started
from tests.unit.core.durable_kit import Durable, everything

pytestmark = pytest.mark.req("ORCH-3051")
HOLD_MS = RECOVERY_NS // MS


def busy(waiting: int = 2, **more: object) -> Durable:
    """One task runs on r0, others wait."""
    core = Durable(ready=(replica(),), **more)  # type: ignore[arg-type]
    core.submit("run")
    for n in range(waiting):
        core.submit(f"w{n}")
    return core


# ------------------------------------------------------------------------ what is restored


@pytest.mark.req("ORCH-2001", "ORCH-3024")
def test_waiting_tasks_keep_their_places_and_their_answers() -> None:
    core = busy()
    told = core.submit("w2")
    core.restart()
    assert [core.state_of(name) for name in ("run", "w0", "w1", "w2")] == ["queued"] * 4
    again = one(core.submit("w2"), Admit)
    first = one(told, Admit)
    assert again.replayed
    assert (again.queue_position, again.predicted_start_ms) == (first.queue_position, first.predicted_start_ms)
    core.back(replica(), RunningAttempt("run", 1))
    order = []
    for name in ("run", "w0", "w1", "w2"):
        order += [each[0] for each in started(core.tell(ended(name)))]
    assert order == ["w0", "w1", "w2"]


@pytest.mark.req("ORCH-3024", "ORCH-2001")
def test_ended_tasks_stay_known_until_their_time_is_over() -> None:
    core = busy(waiting=0, ttl_ms=10_000)
    core.tell(ended("run", transcript_bytes=40))
    core.restart(after_ms=9_000)
    assert core.scheduler.outcome("run", TENANT) == core.task("run").outcome
    assert one(core.submit("run"), Admit).replayed
    commands = core.pass_ms(1_000)
    assert one(commands, Forget).task_id == "run"
    assert core.journal.tasks == {}


def test_what_expired_meanwhile_is_forgotten_at_once() -> None:
    core = busy(waiting=0, ttl_ms=10_000)
    core.tell(ended("run"))
    commands = core.restart(after_ms=10_001)
    assert one(commands, Forget).task_id == "run"
    assert core.last == [ForgottenTask("run")]


def test_records_of_everything_are_the_same_after_a_recovery() -> None:
    core = Durable(ready=(replica(slots=2),), sessions=SessionPolicy(budget=BudgetPolicy(tokens=9_000)))
    for n in range(12):
        core.submit(f"t{n}", session_id=f"s{n % 3}", expected_tokens=n % 4 or None)
        if n % 3 == 2:
            core.tell(TokensProgressed(*_first_running(core), n, n * 5))
            core.tell(ended(*_first_running(core), tokens_in=2, tokens_out=5, transcript_bytes=n))
    before = everything(core.scheduler)
    core.restart()
    after = everything(core.scheduler)
    assert after[0] == before[0]
    assert sorted(map(repr, after[1])) == sorted(map(repr, before[1]))
    assert core.last == []


def _first_running(core: Durable) -> tuple[str, int]:
    record = next(iter(core.scheduler.state.sets[0].running["interactive"].values()))
    return record.task.task_id, record.attempt


def test_numbers_go_on_above_those_that_were_given() -> None:
    core = busy()
    highest = max(each.order for each in core.journal.kept().tasks)
    core.restart()
    core.submit("new")
    assert core.task("new").order > highest


def test_it_has_to_be_the_first_event() -> None:
    core = busy()
    with pytest.raises(ValueError, match="first event"):
        core.tell(ServiceRecovered(core.journal.kept()))


def test_an_empty_journal_is_a_first_start() -> None:
    core = Durable()
    core.tell(ServiceRecovered(core.journal.kept()))
    core.tell(ReplicaReady(replica()))
    assert started(core.submit("t1")) == [("t1", 1, "r0")]


# ------------------------------------------------------------------------ the hold


@pytest.mark.req("ORCH-3009", "ORCH-3026")
def test_what_a_replica_still_runs_is_taken_up_and_not_begun_again() -> None:
    core = busy(waiting=1)
    core.restart()
    commands = core.back(replica(), RunningAttempt("run", 1, 3, 9))
    assert of(commands, Start) == []
    assert of(commands, Stop) == []
    assert core.state_of("run") == "running"
    commands = core.tell(ended("run"))
    assert one(commands, Finish).outcome.state == "finished"
    assert started(commands) == [("w0", 1, "r0")]
    assert core.task("run").losses == 0


def test_nothing_is_started_before_all_that_may_run_something_are_back() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")))
    for name in ("a", "b", "c"):
        core.submit(name)
    core.restart()
    assert list(core.scheduler.state.awaited) == ["r0", "r1"]
    assert started(core.back(replica("r0"))) == []
    assert started(core.tell(ReplicaReady(replica("r2", slots=2)))) == []
    # r1 still runs b; r0 lost what it ran, which begins again before c, in its old place.
    commands = core.back(replica("r1"), RunningAttempt("b", 1))
    assert [(name, attempt) for name, attempt, _ in started(commands)] == [("a", 2), ("c", 1)]


def test_the_hold_ends_by_itself() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")))
    core.submit("a")
    core.tell(TokensProgressed("a", 1, 4, 44))
    core.restart()
    core.back(replica("r1"))
    assert started(core.pass_ms(HOLD_MS - 1)) == []
    (start,) = of(core.pass_ms(1), Start)
    assert (start.task_id, start.attempt, start.replica_id) == ("a", 2, "r1")
    # What was made last was not kept: whoever listens compares for itself.
    assert start.resume_tokens == 0
    # It comes back after all: what it runs has been given up.
    assert one(core.back(replica("r0"), RunningAttempt("a", 1, 8, 1)), Stop).reason == "stale"


def test_without_anything_that_ran_nothing_is_held() -> None:
    core = Durable(ready=(replica(),))
    core.submit("a")
    core.tell(ended("a"))
    core.restart()
    core.back(replica())
    assert started(core.submit("b")) == [("b", 1, "r0")]


@pytest.mark.req("ORCH-3010")
def test_tasks_are_taken_in_while_replicas_are_on_their_way_back() -> None:
    core = Durable(replica_set(on_time_percent_min=85), ready=(replica(),))
    core.restart()
    assert one(core.submit("a", deadline_ms=4_000), Admit)
    assert started(core.back(replica())) == [("a", 1, "r0")]


@pytest.mark.req("ORCH-3004")
def test_a_free_slot_is_no_place_while_nothing_is_started() -> None:
    core = Durable(replica_set(capacity=3), ready=(replica("r0"), replica("r1", slots=4)))
    core.submit("a")
    core.restart()
    core.back(replica("r1", slots=4))
    answers = [core.submit(name) for name in ("b", "c", "d", "e")]
    assert [bool(of(commands, Admit)) for commands in answers] == [True, True, False, False]


@pytest.mark.req("ORCH-3018")
def test_after_the_hold_a_set_without_replicas_refuses_as_always() -> None:
    core = Durable(ready=(replica(),))
    core.restart()
    core.pass_ms(HOLD_MS)
    assert one(core.submit("a"), Reject).error.code == "POOL_UNAVAILABLE"


@pytest.mark.req("ORCH-3026", "ORCH-3017")
def test_a_cancel_in_the_hold_waits_for_the_replica() -> None:
    core = busy(waiting=0)
    core.restart()
    assert of(core.cancel("run"), AnswerCancel) == []
    assert one(core.back(replica(), RunningAttempt("run", 1)), Stop).reason == "cancel"
    commands = core.tell(ended("run", result="stopped"))
    assert one(commands, Finish).outcome.state == "canceled"
    assert one(commands, AnswerCancel).found


@pytest.mark.req("ORCH-3026", "ORCH-3017")
@pytest.mark.parametrize("is_back", [True, False])
def test_a_cancel_in_the_hold_is_answered_with_its_end(is_back: bool) -> None:
    core = busy(waiting=0)
    core.restart()
    core.cancel("run")
    commands = core.back(replica()) if is_back else core.pass_ms(HOLD_MS)
    assert one(commands, Finish).outcome.state == "canceled"
    assert one(commands, AnswerCancel).found


@pytest.mark.req("ORCH-3026", "ORCH-3017")
def test_a_cancel_waits_for_its_own_replica_only() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")))
    core.submit("a")
    core.submit("b")
    core.restart()
    core.cancel("a")
    commands = core.back(replica("r0"))
    assert list(core.scheduler.state.awaited) == ["r1"]
    assert one(commands, Finish).outcome.state == "canceled"
    assert one(commands, AnswerCancel).found


@pytest.mark.req("ORCH-3009", "ORCH-3045")
@pytest.mark.parametrize("is_back", [True, False])
def test_a_best_effort_task_that_ran_is_not_begun_again(is_back: bool) -> None:
    """Nobody knows what it delivered, and its text would be another one."""
    core = Durable(ready=(replica(),))
    core.submit("a", determinism="best_effort")
    core.submit("b", determinism="best_effort")
    core.restart()
    commands = core.back(replica()) if is_back else core.pass_ms(HOLD_MS)
    error = one(commands, Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable) == ("WORKER_RESET", True)
    assert "r0 did not come back" in error.message
    assert core.state_of("b") == ("running" if is_back else "queued")


@pytest.mark.req("ORCH-3009")
def test_a_best_effort_task_whose_attempt_is_known_to_be_over_is_tried_again() -> None:
    core = Durable(ready=(replica(),))
    core.submit("a", determinism="best_effort")
    core.submit("b", determinism="best_effort", priority="batch")
    error = ErrorInfo("WORKER_RESET", "it refused", retriable=True)
    core.tell(ended("a", result="failed", error=error, slot_free=False))
    assert core.state_of("a") == "queued"
    core.restart()
    assert started(core.back(replica())) == [("a", 2, "r0")]


@pytest.mark.req("ORCH-3009")
def test_a_best_effort_task_that_still_runs_goes_on() -> None:
    core = Durable(ready=(replica(),))
    core.submit("a", determinism="best_effort")
    core.restart()
    core.back(replica(), RunningAttempt("a", 1, 2, 2))
    assert one(core.tell(ended("a")), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3009")
def test_an_end_that_the_scheduler_missed_is_told_when_the_replica_is_back() -> None:
    core = busy(waiting=1)
    core.restart()
    commands = core.back(replica(), ended=[ended("run", tokens_out=10)])
    assert one(commands, Finish).outcome.tokens_out == 10
    assert started(commands) == [("w0", 1, "r0")]


def test_a_deadline_that_passed_meanwhile_ends_its_task_after_the_hold() -> None:
    core = busy(waiting=0)
    core.submit("short", deadline_ms=1_000)
    core.restart(after_ms=2_000)
    assert core.state_of("short") == "queued"
    finish = one(core.pass_ms(HOLD_MS), Finish)
    assert finish.task_id == "short"
    assert finish.outcome.error is not None
    assert finish.outcome.error.code == "DEADLINE_UNMET"


def test_a_recovery_right_after_a_recovery_loses_nothing() -> None:
    core = busy()
    core.restart()
    core.restart()
    core.back(replica(), RunningAttempt("run", 1))
    core.restart()
    core.back(replica(), RunningAttempt("run", 1))
    commands = core.tell(ended("run"))
    assert one(commands, Finish).task_id == "run"
    assert started(commands) == [("w0", 1, "r0")]
