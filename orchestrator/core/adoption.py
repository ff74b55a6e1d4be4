"""A replica whose link was made anew tells what it runs: what may go on is taken up, the rest is stopped (ORCH-3009).

An attempt goes on if its task still waits, no later attempt was started, and it was lost, not given up: then nothing
was lost but a link. All that occupies a slot holds it here as well, whatever becomes of it. Sources are fenced by the
attempt's number: what an attempt says that is not taken up is dropped, apart from the slot that it frees (ORCH-3026).
"""

from msgspec.structs import replace

from contracts.errors import ErrorInfo
from contracts.policies import TenantPolicy
from contracts.scheduling import AttemptEnded, ReplicaReady, RunningAttempt, Stop, StopReason
from contracts.tasks import Outcome, TaskInfo
from orchestrator.core import attempts, dispatch, failover, refusals, submissions, timeouts
from orchestrator.core.flows import Flow
from orchestrator.core.lifecycle import advance
from orchestrator.core.placement import Replica
from orchestrator.core.quotas import TenantQuota
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import State


def contradiction(state: State, event: ReplicaReady) -> str | None:
    """Why what a replica says it runs cannot be; None: it can.

    Books that went along with it would be wrong from then on, so such a replica must not serve.
    """
    info = event.replica
    told: dict[tuple[str, int], None] = {}
    kv_tokens = 0
    for each in event.running:
        key = (each.task_id, each.attempt)
        if key in told:
            return f"it runs attempt {each.attempt} of {each.task_id} twice"
        told[key] = None
        record = state.tasks.get(each.task_id)
        if record is not None and record.state != "measuring":
            kv_tokens += record.kv_tokens
    if len(told) > info.slots:
        return f"it runs {len(told)} attempts on {info.slots} slots"
    capacity = info.kv_tokens or info.slots * info.ctx
    if kv_tokens > capacity:
        return f"its attempts may need {kv_tokens} KV tokens, its cache holds {capacity}"
    return None


def take_up(state: State, replica: Replica, event: ReplicaReady) -> None:
    """Bring the books of a Ready replica, on which nothing is booked yet, in line with what it runs."""
    stale: list[RunningAttempt] = []
    for each in event.running:
        record = state.tasks.get(each.task_id)
        if (
            each.over
            or record is None
            or not _may_go_on(record, replica, each.attempt)
            or not record.quota.may_start(record.kv_bytes)
        ):
            stale.append(each)
        else:
            _adopt(state, record, replica, each)
    # After what goes on, so that a tenant's quota is not used up by what is about to stop.
    for each in stale:
        _hold_slot(state, replica, each)
    take_ends(state, replica, event.ended)


def take_ends(state: State, replica: Replica, ended: tuple[AttemptEnded, ...]) -> None:
    """A replica tells of attempts that ended while nobody could hear of it: that of a waiting task is its end."""
    for end in ended:
        record = state.tasks.get(end.task_id)
        if record is not None and _may_go_on(record, replica, end.attempt):
            _end(state, record, replica, end)


def _may_go_on(record: TaskRecord, replica: Replica, attempt: int) -> bool:
    return (
        record.state == "queued"
        and record.attempt == attempt
        and record.is_open
        and record.home is replica.home
        and _ran_on(record, replica)
    )


def _ran_on(record: TaskRecord, replica: Replica) -> bool:
    return record.served_by is not None and record.served_by.replica_id == replica.replica_id


def _adopt(state: State, record: TaskRecord, replica: Replica, told: RunningAttempt) -> None:
    """A waiting task turns out to run: all is as if it had never been lost, except that its replica tells how far."""
    _run_on(state, record, replica)
    record.served_by = replica.info
    record.progressed_ns = state.now_ns
    record.tokens_out, record.tokens_digest = told.tokens_out, told.digest
    record.slots_held += 1
    record.quota.started(record.kv_bytes)
    replica.index.take(replica, (told.task_id, told.attempt), record)
    record.home.progressed(record, record.work_of(told.tokens_out))
    at_ns, _ = timeouts.of_attempt(record)
    state.timers.arm(told.task_id, max(at_ns, state.now_ns + 1))
    reason = _to_stop_for(record)
    if reason is not None:
        dispatch.stop(state, record, reason)


def _to_stop_for(record: TaskRecord) -> StopReason | None:
    """Why an attempt that is taken up is to be stopped: it was asked for while nobody could tell, or before that."""
    return "cancel" if record.cancels else record.stop_reason


def _run_on(state: State, record: TaskRecord, replica: Replica) -> None:
    """The last attempt of a waiting task is its present one again, and not lost."""
    state.unsure.pop(record.task.task_id, None)
    record.home.take(record)
    advance(record, "running")
    record.replica = replica
    record.home.running[record.task.priority][record.task.task_id] = record
    if record.lost_attempt == record.attempt:
        record.losses -= 1
        record.lost_attempt = 0


def _end(state: State, record: TaskRecord, replica: Replica, event: AttemptEnded) -> None:
    """A waiting task turns out to have run to its end; its slot, if it is not free yet, is held by now."""
    _run_on(state, record, replica)
    reason = _to_stop_for(record)
    if reason is not None:
        advance(record, "stopping")
        record.stop_reason = reason
    # What passed until it could be told was no work.
    late_ns = event.first_token_ns + event.decode_ns
    attempts.over(state, record, replace(event, replica_id=replica.replica_id, slot_free=False), late_ns)


def _hold_slot(state: State, replica: Replica, told: RunningAttempt) -> None:
    """An attempt that is not taken up keeps its slot until the engine lets go of it; one that goes on is stopped."""
    record = state.tasks.get(told.task_id)
    if record is not None and record.state == "measuring":
        # What it will cost is not known, so that nothing can be booked for it; it may come again.
        submissions.withdraw(state, record, _still_there(record))
        record = None
    if record is None:
        record = state.tasks[told.task_id] = _ghost(replica, told.task_id)
    if told.attempt > record.attempt:
        # Of an earlier task of that id, which was forgotten: its numbers are not to be given again.
        record.taken_attempt = max(record.taken_attempt, told.attempt)
    elif not told.over and record.attempt == told.attempt and record.state == "queued" and _ran_on(record, replica):
        failover.give_up(record)
    record.slots_held += 1
    record.quota.started(record.kv_bytes)
    replica.index.take(replica, (told.task_id, told.attempt), record)
    if not told.over:
        set_id = replica.home.policy.set_id
        state.out.append(Stop(set_id, told.task_id, told.attempt, replica.replica_id, "stale"))


def _still_there(record: TaskRecord) -> ErrorInfo:
    message = f"an attempt of an earlier task {record.task.task_id} is being stopped"
    return refusals.limited(record.home, message, dispatch.STOP_TIMEOUT_NS // NS_PER_MS)


def is_ghost(record: TaskRecord) -> bool:
    """Whether a record only stands for a task that was forgotten."""
    return record.expired and record.admission is None


def _ghost(replica: Replica, task_id: str) -> TaskRecord:
    """What stands for a forgotten task while an attempt of it holds a slot: ended, nobody's, and in no line.

    Its id is taken as long, since a new task of that id could not be told from it at the replica (ORCH-3024).
    """
    home = replica.home
    tier = home.tiers[0]
    policy = home.policy
    task = TaskInfo(
        task_id=task_id,
        session_id="",
        tenant="",
        workload=policy.workloads[0],
        engine=policy.engine,
        model_ref=policy.model_refs[0],
        ctx=0,
        priority=tier.policy.priority,
        max_tokens=0,
        deadline_ms=0,
        seed=0,
        determinism="",
        sampler_profile_version=policy.sampler_profile_version,
        prompt_bytes=0,
        templated=False,
        body_digest=b"",
    )
    # An account of its own: names of tenants have no blank.
    quota = TenantQuota(f" {task_id}", TenantPolicy(""))
    ghost = TaskRecord(task, home, Flow(tier, "", 1), quota, 0, 0, 0)
    advance(ghost, "canceled")
    ghost.outcome = Outcome("canceled", finish_reason="canceled")
    ghost.expired = True
    return ghost
