"""From a submission to Admit or Reject, exactly one of them each (ORCH-2001, ORCH-3024, OC-CORE-1001)."""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.scheduling import MeasurePrompt, PromptMeasured, TaskSubmitted
from contracts.tasks import Outcome
from orchestrator.core import admission, overflow
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import State

#: How many submissions of one task wait for the same measurement.
SUBMISSIONS_MAX: Final = 16
#: How long measuring a prompt may take, on however many replicas.
MEASURE_TIMEOUT_NS: Final = 5000 * NS_PER_MS


def submitted(state: State, event: TaskSubmitted) -> None:
    """Check a submission, cheapest first, and admit, refuse or measure it."""
    task, submission = event.task, event.submission
    # 1. A task that is known already?
    known = state.tasks.get(task.task_id)
    if known is not None:
        _submitted_again(state, known, event)
        return
    # 2. Served here, and within the context?
    home = state.routes.find(task)
    if isinstance(home, ErrorInfo):
        state.reject("", submission, task.task_id, home)
        return
    set_id = home.policy.set_id
    # 3. Can it fit at all, and is anyone there to serve it?
    error = admission.check_token_budget(task) or home.outage(state.now_ns)
    if error is not None:
        state.reject(set_id, submission, task.task_id, error)
        return
    # 4. Is there a place for it? One that starts at once needs none.
    flow = home.flow_of[task.priority]
    measure = admission.must_be_measured(task)
    if (measure or not home.starts_at_once) and home.is_full(flow):
        victim, error = overflow.resolve(home, flow)
        if victim is None:
            state.reject(set_id, submission, task.task_id, error)
            return
        victim.flow.discard(victim)
        state.finish(victim, Outcome("dropped", error=error))
    # 5. It is in, unless its prompt turns out too long.
    record = TaskRecord(task, home, flow, state.next_sequence(), home.predictor.expected_tokens(task))
    record.submissions.append(submission)
    state.tasks[task.task_id] = record
    if measure:
        flow.reserved += 1
        record.measure_until_ns = state.now_ns + MEASURE_TIMEOUT_NS
        state.timers.arm(task.task_id, record.measure_until_ns)
        measure_somewhere(state, record)
    else:
        state.admit(record)
        state.enqueue(record)


def _submitted_again(state: State, known: TaskRecord, event: TaskSubmitted) -> None:
    task, set_id = event.task, known.home.policy.set_id
    if task.tenant != known.task.tenant or task.body_digest != known.task.body_digest:
        # The set's id is left out: another tenant's task must not show in the answer.
        state.reject("", event.submission, task.task_id, admission.id_conflict(task.task_id))
    elif known.state != "measuring":
        state.admit_again(known, event.submission)
    elif len(known.submissions) < SUBMISSIONS_MAX:
        known.submissions.append(event.submission)
    else:
        error = overflow.full_error(known.home, "ADMISSION_REJECT", "reject")
        state.reject(set_id, event.submission, task.task_id, error)


def measured(state: State, event: PromptMeasured) -> None:
    """A prompt's tokens were counted: admit it or refuse it (ORCH-3015). Late answers are dropped."""
    record = state.tasks.get(event.task_id)
    if record is None or record.state != "measuring" or record.order != event.measurement:
        return
    error = event.error or admission.check_measured(record.task, event.prompt_tokens)
    if error is not None:
        withdraw(state, record, error)
        return
    stop_measuring(record)
    state.admit(record)
    state.enqueue(record)


def measure_somewhere(state: State, record: TaskRecord) -> None:
    """Have the least loaded Ready replica count the prompt; without one, refuse the task."""
    replica = record.home.ready.least_loaded()
    if replica is None:
        error = record.home.outage(state.now_ns)
        assert error is not None, "no replica is Ready, and yet there is no outage"
        withdraw(state, record, error)
        return
    record.replica = replica
    replica.measuring[record.task.task_id] = record
    set_id, task_id = record.home.policy.set_id, record.task.task_id
    state.out.append(MeasurePrompt(set_id, task_id, record.order, replica.replica_id))


def stop_measuring(record: TaskRecord) -> None:
    """Give the reserved place back and let go of the replica."""
    record.flow.reserved -= 1
    if record.replica is not None:
        del record.replica.measuring[record.task.task_id]
        record.replica = None


def withdraw(state: State, record: TaskRecord, error: ErrorInfo) -> None:
    """Refuse a task that is being measured; nothing of it is kept, so its id may be tried again."""
    stop_measuring(record)
    state.timers.disarm(record.task.task_id)
    del state.tasks[record.task.task_id]
    for submission in record.submissions:
        state.reject(record.home.policy.set_id, submission, record.task.task_id, error)


def measuring_timed_out(state: State, record: TaskRecord) -> None:
    """No replica counted the prompt in time."""
    error = ErrorInfo(
        code="POOL_UNREADY",
        message=f"the prompt could not be measured within {MEASURE_TIMEOUT_NS // NS_PER_MS} ms",
        engine=record.task.engine,
        pool_id=record.home.policy.pool_ids[0],
        retriable=True,
        retry_after_ms=max(1000, record.home.retry_after_ms()),
    )
    withdraw(state, record, error)
