"""What must be true of one task after every step; slow, for tests and simulation."""

from orchestrator.core.adoption import is_ghost
from orchestrator.core.failover import ATTEMPTS_MAX, CRASHES_MAX, LOSSES_MAX, is_awaited
from orchestrator.core.lifecycle import ON_REPLICA, is_over
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State
from orchestrator.core.submissions import SUBMISSIONS_MAX


def check(state: State, record: TaskRecord) -> None:
    """Raise `AssertionError`, with what is wrong, if a task contradicts itself."""
    _check_state(state, record)
    _check_attempts(record)


def _check_state(state: State, record: TaskRecord) -> None:
    name = f"task {record.task.task_id} ({record.state})"
    has_none = record.state == "measuring" or is_ghost(record)
    assert (record.admission is None) == has_none, f"{name}: admission {record.admission}"
    assert not is_ghost(record) or record.slots_held, f"{name}: stands for a task that holds no slot"
    assert (record.outcome is not None) == is_over(record), f"{name}: outcome {record.outcome}"
    if record.outcome is not None:
        assert record.outcome.state == record.state, f"{name}: outcome says {record.outcome.state}"
    may_cancel = record.state == "stopping" or is_awaited(state, record)
    assert not record.cancels or may_cancel, f"{name}: leaves cancels {record.cancels} unanswered"
    if record.state == "measuring":
        assert 1 <= len(record.submissions) <= SUBMISSIONS_MAX, f"{name}: {len(record.submissions)} submissions"
        assert record.replica is not None, f"{name}: nobody measures it"
        assert record.replica.measuring.get(record.task.task_id) is record, f"{name}: its replica does not know"
    else:
        assert not record.submissions, f"{name}: leaves submissions {record.submissions} unanswered"
    if record.state in ON_REPLICA:
        replica = record.replica
        assert replica is not None, f"{name}: runs nowhere"
        assert replica.state in ("ready", "aside"), f"{name}: runs on a replica that is {replica.state}"
        assert replica.busy.get((record.task.task_id, record.attempt)) is record, f"{name}: holds no slot"
    elif record.state != "measuring":
        assert record.replica is None, f"{name}: still tied to a replica"
        assert record.remaining_tokens == record.charged_tokens == 0, f"{name}: still counted as running work"


def _check_attempts(record: TaskRecord) -> None:
    name = f"task {record.task.task_id} ({record.state})"
    assert record.over_attempt <= record.attempt, f"{name}: attempt {record.over_attempt} of {record.attempt} is over"
    assert record.lost_attempt <= record.attempt, f"{name}: attempt {record.lost_attempt} of {record.attempt} was lost"
    if record.state in ON_REPLICA:
        assert record.over_attempt < record.attempt, f"{name}: runs attempt {record.attempt}, which is over"
        assert record.lost_attempt < record.attempt, f"{name}: runs attempt {record.attempt}, which was lost"
    if not is_over(record):
        assert record.crashes < CRASHES_MAX, f"{name}: goes on after {record.crashes} crashes"
        assert 0 <= record.losses <= LOSSES_MAX, f"{name}: goes on after {record.losses} losses"
        ends = record.engine_ends - (record.is_open and record.lost_attempt != record.attempt)
        assert ends < ATTEMPTS_MAX, f"{name}: goes on after {ends} attempts that its engines ended"
