"""From a submission to Admit or Reject, exactly one of them each (ORCH-2001, ORCH-3024, OC-CORE-1001)."""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.scheduling import Admit, MeasurePrompt, PromptMeasured, TaskSubmitted
from contracts.tasks import Outcome
from orchestrator.core import admission, deadlines, endings, outages, outlook, overflow, preemption, refusals
from orchestrator.core.estimates import backoff_ms
from orchestrator.core.lifecycle import advance
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

#: How many submissions of one task wait for the same measurement.
SUBMISSIONS_MAX: Final = 16
#: How long measuring a prompt may take, on however many replicas.
MEASURE_TIMEOUT_NS: Final = 5000 * NS_PER_MS
#: Longest budget that is kept track of; a longer one counts as this (ten years, so that instants fit 64 bits).
DEADLINE_MS_MAX: Final = 10 * 365 * 24 * 3600 * 1000


def submitted(state: State, event: TaskSubmitted) -> None:
    """Check a submission, cheapest first, and admit, refuse or measure it."""
    task, submission = event.task, event.submission
    # 1. A task that is known already?
    known = state.tasks.get(task.task_id)
    if known is not None:
        _submitted_again(state, known, event)
        return
    # 2. Is anything accepted, served here, and within the context?
    home = admission.check_service(state) or state.routes.find(task)
    if isinstance(home, ErrorInfo):
        state.reject("", submission, task.task_id, home)
        return
    # 3. Can it fit at all, is anyone there to serve it, and is its tenant known?
    state.quotas.sweep(state.now_ns)
    quota = state.quotas.tenant(task.tenant)
    error = admission.check_token_budget(task) or outages.outage(state, home)
    error = error or admission.check_result_size(home, task)
    if quota is None:
        error = error or refusals.unknown_tenant(task.tenant)
    if error is not None or quota is None:
        assert error is not None
        state.reject(home.policy.set_id, submission, task.task_id, error)
        return
    # 4. What will it cost, and do budgets, rates, quotas, queue and deadline let it in?
    record = home.new_record(task, quota, state.next_sequence())
    record.submissions.append(submission)
    # With no replica to count it, as when the pool is scaled to zero, the estimate has to do: the engine
    # refuses a prompt that turns out too long.
    measure = bool(home.ready) and admission.must_be_measured(task)
    if not _let_in(state, record, needs_place=measure or state.is_held or not home.starts_at_once(record)):
        return
    # 5. It is in, unless its prompt turns out too long.
    state.tasks[task.task_id] = record
    if measure:
        record.flow.reserve()
        home.appointments[task.priority].claim(task.task_id)
        record.measure_until_ns = state.now_ns + MEASURE_TIMEOUT_NS
        state.timers.arm(task.task_id, record.measure_until_ns)
        measure_somewhere(state, record)
    else:
        admit(state, record)


def _let_in(state: State, record: TaskRecord, *, needs_place: bool) -> bool:
    """Whether nothing speaks against a task; else its submissions are answered.

    A waiting task that has to go for it goes only when all else is in favour.
    """
    home, now_ns, task_id = record.home, state.now_ns, record.task.task_id
    tier = home.tier_of[record.task.priority]
    victim: TaskRecord | None = None
    record.deadline_ns = _deadline_ns(record, now_ns)
    error = admission.check_limits(state, record)
    if error is None and needs_place and not _has_place(home, record, now_ns):
        victim = overflow.victim_for(home, tier, now_ns)
        if victim is None:
            error = overflow.refusal(home, tier, task_id, now_ns)
    if error is None:
        error = deadlines.refusal(home, record, now_ns)
        # A slot taken for it helps a task that is late itself, not those that it would make late.
        if error is not None and deadlines.is_late(home, record) and preemption.can_rescue(state, record):
            error = None
        # When its replicas are back it starts much sooner than it looks now.
        if error is not None and outages.is_awaited(state, home):
            error = None
    if error is not None:
        for submission in record.submissions:
            state.reject(home.policy.set_id, submission, task_id, error)
        return False
    if victim is not None:
        home.leave(victim)
        endings.end_unserved(state, victim, Outcome("dropped", error=overflow.victim_error(home, tier, victim)))
        record.outlook = None
    return True


def _deadline_ns(record: TaskRecord, now_ns: int) -> int:
    return now_ns + min(record.task.deadline_ms, DEADLINE_MS_MAX) * NS_PER_MS


def _has_place(home: ReplicaSet, record: TaskRecord, now_ns: int) -> bool:
    """Whether the queue has a place for a task, one that was held for it included."""
    task = record.task
    tier = home.tier_of[task.priority]
    if not home.is_full(tier, now_ns):
        return True
    return home.appointments[task.priority].is_due(now_ns, task.task_id) and not home.is_taken(tier)


def admit(state: State, record: TaskRecord) -> None:
    """A task is in: answer it and let it join its queue."""
    late = answer(state, record)
    advance(record, "queued")
    record.home.join(record)
    deadlines.joined(record)
    state.want_dispatch(record.home)
    if not record.home.ready:
        # A pool that is scaled to zero comes up for it.
        state.pools.touched = True
    if late:
        preemption.rescue(state, record)
    state.timers.arm(record.task.task_id, preemption.wake_ns(record, state.now_ns))


def answer(state: State, record: TaskRecord) -> bool:
    """Answer all submissions of a task with where it stands; its deadline runs from here (ORCH-3029).

    Returns whether it will be late unless a slot is taken for it.
    """
    home, task, now_ns = record.home, record.task, state.now_ns
    record.admitted_ns = now_ns
    record.deadline_ns = _deadline_ns(record, now_ns)
    admission.charge(state, record)
    home.appointments[task.priority].claim(task.task_id)
    seen = record.outlook or outlook.of_arrival(home, record, now_ns, task.deadline_ms)
    record.outlook = seen
    first = Admit(
        home.policy.set_id,
        record.submissions[0],
        task.task_id,
        seen.position,
        seen.start_ms,
        backoff_ms(home, home.tier_of[task.priority]),
        False,
        seen.chance,
        state.sessions.budgets(record.session),
        home.policy.pools[0].accelerator,
    )
    record.admission = first
    state.out.append(first)
    for submission in record.submissions[1:]:
        state.admit_again(record, submission)
    record.submissions.clear()
    return deadlines.is_late(home, record)


def _submitted_again(state: State, known: TaskRecord, event: TaskSubmitted) -> None:
    task, set_id = event.task, known.home.policy.set_id
    if task.tenant != known.task.tenant or task.body_digest != known.task.body_digest:
        # The set's id is left out: another tenant's task must not show in the answer.
        state.reject("", event.submission, task.task_id, refusals.id_conflict(task.task_id))
    elif task.task_id in state.undone:
        state.reject(
            set_id, event.submission, task.task_id, refusals.not_durable(state.journal_down or "it just failed")
        )
    elif known.state != "measuring":
        state.admit_again(known, event.submission)
    elif len(known.submissions) < SUBMISSIONS_MAX:
        known.submissions.append(event.submission)
    else:
        error = refusals.limited(known.home, "the prompt is still being measured", 1000)
        state.reject(set_id, event.submission, task.task_id, error)


def measured(state: State, event: PromptMeasured) -> None:
    """A prompt's tokens were counted: admit it or refuse it (ORCH-3015). Late answers are dropped."""
    record = state.tasks.get(event.task_id)
    if record is None or record.state != "measuring" or record.order != event.measurement:
        return
    error = event.error or admission.check_measured(record.task, event.prompt_tokens) or admission.check_service(state)
    if error is not None:
        withdraw(state, record, error)
        return
    if record.task.decodes:  # else only the longest input was counted, and the sum stays an estimate
        record.home.counted(record, event.prompt_tokens)
    _admit_measured(state, record)


def _admit_measured(state: State, record: TaskRecord) -> None:
    """What a prompt costs is known as well as it will be: it is let in, or refused after all."""
    stop_measuring(record)
    # A tenant without live tasks may have been forgotten meanwhile: two accounts would be twice its quota.
    quota = state.quotas.tenant(record.task.tenant)
    assert quota is not None, f"tenant {record.task.tenant} was known before the measurement"
    record.quota = quota
    # It has held its place; only what it costs is known better now.
    if _let_in(state, record, needs_place=False):
        admit(state, record)
    else:
        state.timers.disarm(record.task.task_id)
        del state.tasks[record.task.task_id]


def measure_somewhere(state: State, record: TaskRecord) -> None:
    """Have the least loaded Ready replica count the prompt; without one, the task waits for one or is refused."""
    replica = record.home.canaries.index_for(record.task.session_id).least_loaded()
    if replica is None:
        error = admission.check_service(state) or outages.outage(state, record.home)
        if error is None:
            _admit_measured(state, record)
        else:
            withdraw(state, record, error)
        return
    record.replica = replica
    replica.measuring[record.task.task_id] = record
    set_id, task_id = record.home.policy.set_id, record.task.task_id
    state.out.append(MeasurePrompt(set_id, task_id, record.order, replica.replica_id))


def stop_measuring(record: TaskRecord) -> None:
    """Give the reserved place back and let go of the replica."""
    record.flow.release()
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
        pool_id=record.home.policy.pools[0].pool_id,
        retriable=True,
        retry_after_ms=1000,
    )
    withdraw(state, record, error)
