"""The full queue: bounds, the three policies, and what the answers say."""

import pytest

from contracts.errors import ErrorInfo, PolicyLabel
from contracts.scheduling import Admit, Finish, MeasurePrompt, Reject, Start
from tests.unit.core.core_kit import Core, ended, of, one, queue, replica, replica_set


def full(policy: PolicyLabel, capacity: int = 3, own: int = 2, batch: int = 2) -> Core:
    """A core with one busy slot and the given bounds; nothing waits yet."""
    queues = (queue("interactive", own, policy), queue("batch", batch, "drop-lru"))
    core = Core(replica_set(capacity=capacity, queues=queues), ready=(replica(),))
    core.submit("runs")
    return core


def names(core: Core, *task_ids: str) -> list[str | None]:
    return [core.state_of(task_id) for task_id in task_ids]


@pytest.mark.req("ORCH-3005", "OC-CORE-1002", "ORCH-3004", "OC-CORE-1001")
def test_reject_refuses_the_arrival() -> None:
    core = full("reject")
    core.submit("a")
    core.submit("b")
    error = one(core.submit("c"), Reject).error
    assert (error.code, error.policy_label, error.retriable) == ("ADMISSION_REJECT", "reject", True)
    assert names(core, "a", "b", "c") == ["queued", "queued", None]


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_drop_lru_drops_the_oldest_of_the_class() -> None:
    core = full("reject")
    core.submit("i")
    core.submit("old", priority="batch")
    core.submit("young", priority="batch")
    commands = core.submit("new", priority="batch")
    assert [type(c) for c in commands[:2]] == [Finish, Admit]
    finish = one(commands, Finish)
    assert (finish.task_id, finish.outcome.state) == ("old", "dropped")
    error = finish.outcome.error
    assert error is not None
    assert (error.code, error.policy_label, error.retriable) == ("QUEUE_FULL_DROP_LRU", "drop-lru", True)
    assert (error.retry_after_ms or 0) >= 1
    assert names(core, "i", "old", "young", "new") == ["queued", "dropped", "queued", "queued"]


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_drop_lru_refuses_where_nothing_of_the_class_waits() -> None:
    core = full("reject", capacity=2)
    core.submit("a")
    core.submit("b")
    error = one(core.submit("c", priority="batch"), Reject).error
    assert (error.code, error.policy_label) == ("QUEUE_FULL_DROP_LRU", "drop-lru")


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_shed_drops_the_newest_of_a_lower_class() -> None:
    core = full("shed-low-priority")
    core.submit("old", priority="batch")
    core.submit("young", priority="batch")
    core.submit("a")
    finish = one(core.submit("b"), Finish)
    error = finish.outcome.error
    assert error is not None
    assert (finish.task_id, finish.outcome.state) == ("young", "dropped")
    assert (error.code, error.policy_label, error.retriable) == ("ADMISSION_REJECT", "shed-low-priority", True)
    assert names(core, "old", "a", "b") == ["queued", "queued", "queued"]


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_shed_refuses_where_it_would_not_help() -> None:
    core = full("shed-low-priority", capacity=3, own=2)
    core.submit("a")
    core.submit("b")
    core.submit("low", priority="batch")
    error = one(core.submit("c"), Reject).error
    assert (error.code, error.policy_label) == ("ADMISSION_REJECT", "shed-low-priority")
    assert core.state_of("low") == "queued"
    nothing_lower = full("shed-low-priority", capacity=1, own=2)
    nothing_lower.submit("a")
    assert one(nothing_lower.submit("b"), Reject).error.policy_label == "shed-low-priority"


@pytest.mark.req("ORCH-3004", "OC-CORE-1001")
def test_a_measured_task_reserves_its_place_and_is_never_dropped() -> None:
    core = full("drop-lru", own=1)
    assert of(core.submit("m", templated=True), MeasurePrompt)
    assert one(core.submit("a"), Reject).error.code == "QUEUE_FULL_DROP_LRU"
    assert core.state_of("m") == "measuring"


@pytest.mark.req("ORCH-3004")
def test_a_task_that_starts_at_once_needs_no_place() -> None:
    queues = (queue("interactive", 1), queue("batch", 1))
    core = Core(replica_set(capacity=1, queues=queues), ready=(replica(slots=3),))
    core.submit("m", templated=True)
    assert of(core.submit("a"), Start)
    assert of(core.submit("b"), Start)
    assert of(core.submit("m2", templated=True), Reject)


@pytest.mark.req("ORCH-3004")
def test_a_task_that_started_before_keeps_its_place() -> None:
    core = full("drop-lru", own=1)
    core.submit("waits")
    again = ErrorInfo(code="INTERNAL", message="x", retriable=True)
    core.tell(ended("runs", result="failed", error=again, slot_free=False))
    assert core.state_of("runs") == "queued"
    finish = one(core.submit("new"), Finish)
    assert finish.task_id == "waits"
    assert core.state_of("runs") == "queued"


@pytest.mark.req("ORCH-3005", "ORCH-3029")
def test_retry_and_backoff_are_computed_from_the_work_in_the_queue() -> None:
    core = full("reject", capacity=8, own=4)
    # One slot, 10 ms a token, 10 tokens and a prompt of 1: a departure every 110 ms.
    told = [one(core.submit(f"t{n}"), Admit) for n in range(4)]
    assert [a.queue_position for a in told] == [0, 1, 2, 3]
    assert [a.predicted_start_ms for a in told] == [110, 220, 330, 440]
    assert [a.backoff_ms for a in told] == [0, 0, 0, 110]
    assert one(core.submit("over"), Reject).error.retry_after_ms == 110
