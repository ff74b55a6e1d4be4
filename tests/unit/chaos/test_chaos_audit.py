"""The chaos suite's audit finds what is planted: losses, repetitions, other bytes, failures without a reason."""

from collections.abc import Callable

import pytest

from tests.chaos.audit import ALLOWED_FAILURES, audit
from tests.chaos.history import Attach, Post, Reference, TaskHistory
from tests.chaos.plan import TaskPlan

TEXT = ("a", "b", "c", "d")
REFERENCE = {0: Reference(TEXT, "length", 0.1, 0.02, 0.03)}
PLAN = TaskPlan(0, 0.0, 0, "post_get", "own")
CANCELS = TaskPlan(0, 0.0, 0, "post_get", "own", cancel_after=1)


def good() -> TaskHistory:
    """A task that went well over two connections."""
    return TaskHistory(
        "t",
        0,
        admitted_s=0.1,
        posts=[Post(0.0, 0.1, 202)],
        attaches=[Attach(0.2, -1, "own", 0.2, "broken", 0.5), Attach(0.6, 1, "own", 0.6, "end", 0.9)],
        arrivals=[(0, 0, "a", 0.3), (0, 1, "b", 0.4), (1, 2, "c", 0.7), (1, 3, "d", 0.8)],
        finish="length",
        end_s=0.9,
        final_status=200,
        final_state="finished",
        final_finish="length",
        stored=list(enumerate(TEXT)),
        stored_end="length",
    )


def cancelled() -> TaskHistory:
    """A task that was canceled after two tokens."""
    task = good()
    task.arrivals, task.stored = task.arrivals[:2], task.stored[:2]
    task.cancel_sent_s, task.cancel_taken = 0.4, True
    task.finish = task.final_finish = task.stored_end = "canceled"
    task.final_state = "canceled"
    return task


def failed(code: str = "DEADLINE_UNMET") -> TaskHistory:
    """A task that failed after two tokens."""
    task = good()
    task.arrivals, task.stored = task.arrivals[:2], task.stored[:2]
    task.finish = task.final_finish = ""
    task.code = task.final_code = task.stored_end = code
    task.final_state = "failed"
    return task


def broken_checks(*histories: TaskHistory, plan: TaskPlan = PLAN) -> set[str]:
    """Names of the checks that do not hold, with a hundred tasks more that went well."""
    plans = [plan, *(TaskPlan(n, 0.0, 0, "post_get", "own") for n in range(1, 101))]
    others = [good() for _ in range(1, 101)]
    for n, other in enumerate(others, 1):
        other.index = n
    return {check.name for check in audit(plans, [*histories, *others], REFERENCE) if not check.holds}


def test_a_good_run_holds() -> None:
    assert broken_checks(good()) == set()
    assert broken_checks(cancelled(), plan=CANCELS) == set()


def test_only_a_canceled_task_may_have_lost_what_it_made() -> None:
    gone, finished, other = cancelled(), good(), cancelled()
    for task in (gone, finished):
        task.stored, task.stored_end = [], "NOT_FOUND"
    other.stored_end = "INTERNAL"
    assert broken_checks(gone, plan=CANCELS) == set()
    assert STORED in broken_checks(finished)
    assert STORED in broken_checks(other, plan=CANCELS)


@pytest.mark.parametrize("code", ALLOWED_FAILURES)
def test_a_failure_for_lack_of_time_is_allowed(code: str) -> None:
    assert broken_checks(failed(code)) == set()


LOST = "accepted tasks have an outcome"
INDICES = "indices without gap or repetition"
STREAMED = "same bytes as undisturbed, streamed"
STORED = "same bytes as undisturbed, stored"
AGREE = "clients and service agree on the end"
TYPED = "failures are typed and for lack of time"
CANCEL = "cancels end as canceled, or finished first"

PLANTED: dict[str, tuple[Callable[[TaskHistory], object], str]] = {
    "not found at the end": (lambda task: setattr(task, "final_status", 404), LOST),
    "status never answered": (lambda task: setattr(task, "final_status", 0), LOST),
    "runs for ever": (lambda task: setattr(task, "final_state", "running"), LOST),
    "the client was never told": (lambda task: setattr(task, "finish", ""), LOST),
    "a token twice": (lambda task: task.arrivals.insert(3, (1, 2, "c", 0.75)), INDICES),
    "a token of before": (lambda task: task.arrivals.insert(2, (1, 1, "b", 0.65)), INDICES),
    "a token left out": (lambda task: task.arrivals.pop(2), INDICES),
    "the last token of a connection lost": (lambda task: task.arrivals.pop(1), INDICES),
    "two tokens in the wrong order": (lambda task: task.arrivals.insert(0, task.arrivals.pop(1)), INDICES),
    "another byte": (lambda task: task.arrivals.__setitem__(3, (1, 3, "D", 0.8)), STREAMED),
    "text moved over a border": (
        lambda task: task.arrivals.__setitem__(slice(2, 4), [(1, 2, "cd", 0.7), (1, 3, "", 0.8)]),
        STREAMED,
    ),
    "cut short": (lambda task: task.arrivals.pop(), STREAMED),
    "more than there is": (lambda task: task.arrivals.append((1, 4, "e", 0.9)), STREAMED),
    "another end": (lambda task: setattr(task, "finish", "stop"), STREAMED),
    "another byte in the store": (lambda task: task.stored.__setitem__(0, (0, "A")), STORED),
    "nothing in the store": (lambda task: task.stored.clear(), STORED),
    "another end in the store": (lambda task: setattr(task, "stored_end", "404"), STORED),
    "status of another end": (lambda task: setattr(task, "final_finish", "stop"), AGREE),
    "told an end, then failed": (lambda task: setattr(task, "final_state", "failed"), AGREE),
    "failed without a code": (lambda task: setattr(task, "final_state", "failed"), TYPED),
    "canceled by nobody": (lambda task: setattr(task, "final_state", "canceled"), CANCEL),
    "an odd thing": (lambda task: task.problems.append("odd"), "clients saw nothing odd"),
    "never accepted": (lambda task: setattr(task, "admitted_s", -1.0), "no task refused for good"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(what: str) -> None:
    plant, name = PLANTED[what]
    task = good()
    plant(task)
    assert name in broken_checks(task)


def test_a_task_without_history_is_found() -> None:
    assert broken_checks() == {"every task was run by its client"}


@pytest.mark.parametrize("code", ["WORKER_RESET", "INTERNAL", "NOT_FOUND", "DECODE_TIMEOUT"])
def test_a_failure_for_another_reason_is_found(code: str) -> None:
    assert broken_checks(failed(code)) == {TYPED}


def test_many_failures_are_found_even_if_allowed() -> None:
    assert broken_checks(failed(), failed()) == {"few fail"}


def test_another_code_in_the_status_is_found() -> None:
    task = failed()
    task.final_code = "POOL_UNAVAILABLE"
    assert broken_checks(task) == {AGREE}


def test_a_cancel_that_fails_or_is_never_answered_is_found() -> None:
    task = failed()
    task.cancel_sent_s, task.cancel_taken = 0.4, True
    assert CANCEL in broken_checks(task, plan=CANCELS)
    unanswered = failed()
    unanswered.cancel_sent_s = 0.4
    assert CANCEL in broken_checks(unanswered, plan=CANCELS)


def test_other_bytes_of_a_failed_task_are_found_too() -> None:
    task = failed()
    task.arrivals[1] = (0, 1, "B", 0.4)
    assert broken_checks(task) == {STREAMED}
