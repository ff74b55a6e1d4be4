"""Deadlines: refused when they cannot be met, kept once promised, given up when they are lost (ORCH-3079)."""

from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.scheduling import Admit, Finish, Reject, Start
from tests.unit.core.core_kit import MS, Core, ended, of, one, replica, replica_set


def core(slots: int = 1, **over: Any) -> Core:
    values: dict[str, Any] = {
        "fairness": "wfq",
        "ordering": "edf",
        "on_time_percent_min": 50,
        "wall_timeout_ms": 60_000,
        "idle_timeout_ms": 60_000,
    }
    return Core(replica_set(**values | over), ready=(replica(slots=slots),))


def refusal(commands: list[Any]) -> ErrorInfo:
    error: ErrorInfo = one(commands, Reject).error
    assert error.code == "DEADLINE_UNMET"
    return error


def finish(made: Core, task_id: str, after_ms: int, tokens_out: int = 10) -> list[Any]:
    """The task ends after so much time, as fast as the self-test said."""
    made.pass_ms(after_ms)
    first, rest = 10 * MS, tokens_out * 10 * MS
    return made.tell(ended(task_id, tokens_in=1, tokens_out=tokens_out, first_token_ns=first, decode_ns=rest))


@pytest.mark.req("ORCH-3079")
def test_a_deadline_of_one_millisecond_is_refused_even_by_an_idle_set() -> None:
    made = core()
    error = refusal(made.submit("t", deadline_ms=1))
    assert error.message.startswith("deadline_ms 1 cannot be met: it would start at once and is ")
    assert error.earliest_deadline_ms is not None
    assert error.message.endswith(f"at least {error.earliest_deadline_ms} is needed now")
    # However long it waited, it would not be on time.
    assert (error.retriable, error.retry_after_ms) == (False, None)
    assert made.state_of("t") is None


@pytest.mark.req("ORCH-3079")
@pytest.mark.parametrize("is_busy", [False, True])
def test_the_earliest_deadline_is_accepted_at_the_same_instant_and_a_smaller_one_is_not(is_busy: bool) -> None:
    made = core()
    if is_busy:
        made.submit("runs", max_tokens=50)
    error = refusal(made.submit("t", deadline_ms=5))
    earliest_ms = error.earliest_deadline_ms
    assert earliest_ms is not None
    assert bool(error.retriable) == is_busy
    # It is found to within two hundredths.
    refusal(made.submit("t", deadline_ms=int(earliest_ms * 0.97) - 1))
    admit = one(made.submit("t", deadline_ms=earliest_ms), Admit)
    assert bool(admit.predicted_start_ms) == is_busy
    # An idle set takes chances while it does not know how long outputs are.
    assert admit.on_time_probability >= (0.25 if is_busy else 0.15)
    if is_busy:
        start_ms, chance = admit.predicted_start_ms, admit.on_time_probability
        assert admit.why == f"0 ahead, starts in about {start_ms} ms, {chance:.0%} sure to be on time"


@pytest.mark.req("ORCH-3079")
def test_without_a_minimum_nothing_is_refused_and_the_deadline_ends_it() -> None:
    made = core(on_time_percent_min=0)
    made.submit("runs", max_tokens=50)
    assert of(made.submit("t", deadline_ms=1), Admit)
    outcome = one(made.pass_ms(1), Finish).outcome
    assert outcome.error is not None
    assert (outcome.state, outcome.error.code) == ("failed", "DEADLINE_UNMET")
    assert outcome.error.message == "not started in time to end within deadline_ms 1"


@pytest.mark.req("ORCH-3079", "OC-CORE-1004")
def test_the_earliest_deadline_starts_first() -> None:
    made = core()
    made.submit("runs")
    for task_id, deadline_ms in (("late", 9_000), ("soon", 5_000), ("sooner", 3_000)):
        made.submit(task_id, deadline_ms=deadline_ms)
    order = []
    for task_id in ("runs", "sooner", "soon"):
        order += [start.task_id for start in of(finish(made, task_id, 100), Start)]
    assert order == ["sooner", "soon", "late"]


def promised(made: Core) -> None:
    """One runs for half a second, and the waiting ones can just be on time one after the other."""
    made.submit("runs", max_tokens=50)
    for n in range(7):
        assert of(made.submit(f"w{n}", deadline_ms=1_000 + 410 * n, max_tokens=40), Admit)


@pytest.mark.req("ORCH-3079")
def test_what_was_promised_is_not_broken_for_one_that_comes_later() -> None:
    made = core()
    promised(made)
    error = refusal(made.submit("greedy", deadline_ms=990, max_tokens=30))
    assert "tasks that were promised their deadlines would become late" in error.message
    assert (error.earliest_deadline_ms or 0) > 1_000
    assert made.scheduler.queue_depth("set-a", "interactive") == 7


@pytest.mark.req("ORCH-3079")
def test_a_refusal_for_the_sake_of_others_names_a_deadline_that_is_accepted() -> None:
    made = core()
    promised(made)
    earliest_ms = refusal(made.submit("greedy", deadline_ms=990, max_tokens=30)).earliest_deadline_ms
    assert of(made.submit("greedy", deadline_ms=earliest_ms, max_tokens=30), Admit)


@pytest.mark.req("ORCH-3079")
def test_one_that_is_behind_all_others_harms_nobody() -> None:
    made = core()
    promised(made)
    assert of(made.submit("patient", deadline_ms=60_000, max_tokens=40), Admit)


@pytest.mark.req("ORCH-3079")
def test_a_slot_is_not_wasted_on_a_task_that_has_become_late() -> None:
    made = core()
    made.submit("runs")
    made.submit("lost", deadline_ms=400, max_tokens=20)
    made.submit("fine", deadline_ms=5_000)
    # What runs takes much longer than was to be expected.
    commands = finish(made, "runs", 395)
    assert [(f.task_id, f.outcome.state) for f in of(commands, Finish)] == [("runs", "finished"), ("lost", "failed")]
    assert one(commands, Start).task_id == "fine"


@pytest.mark.req("ORCH-3079", "ORCH-3099")
def test_a_task_that_is_lost_fails_with_the_reason_and_frees_what_it_reserved() -> None:
    made = core()
    made.submit("runs")
    made.submit("lost", deadline_ms=400, max_tokens=20)
    commands = finish(made, "runs", 395)
    lost = [f for f in of(commands, Finish) if f.task_id == "lost"]
    assert [f.outcome.error.code for f in lost if f.outcome.error] == ["DEADLINE_UNMET"]
    session = made.scheduler.state.sessions.find(made.now_ms * MS, "acme", "session")
    assert session is not None
    assert session.reserved_tokens == 0


@pytest.mark.req("ORCH-3079")
def test_a_deadline_beyond_ten_years_counts_as_ten_years() -> None:
    made = core()
    made.submit("runs")
    assert of(made.submit("t", deadline_ms=2**62), Admit)
    record = made.scheduler.state.tasks["t"]
    assert record.deadline_ns - record.admitted_ns == 10 * 365 * 24 * 3600 * 1000 * MS


@pytest.mark.req("ORCH-3079")
def test_what_starts_at_once_needs_no_promise_of_others() -> None:
    made = core(slots=2)
    made.submit("runs", max_tokens=50)
    assert one(made.submit("t", deadline_ms=400), Admit).why == "a slot is free"
