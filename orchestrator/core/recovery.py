"""A scheduler goes on where an earlier one ended (ORCH-3051): its first event tells what was kept.

Live tasks wait in their old places. Replicas live on while the scheduler is away, so until those that may still run
something have told what, nothing is started; what they run is taken up, not begun again. No task that was accepted is
refused for a bound that is smaller now.
"""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.journal import KeptTask
from contracts.scheduling import ServiceRecovered
from contracts.tasks import Outcome, ReplicaInfo
from orchestrator.core import accounts, cancels, endings, preemption, stops
from orchestrator.core.homes import Homes, gone
from orchestrator.core.lifecycle import advance
from orchestrator.core.pools import members, restored
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import State

#: How long replicas that may run something are awaited. One whose link ended looks for a new one every 0.2 s, and the
#: nodes of a cluster find the scheduler's new address within a second or two; after that, waiting costs the most.
RECOVERY_NS: Final = 3000 * NS_PER_MS


def recover(state: State, event: ServiceRecovered) -> None:
    """Rebuild what was kept. Raises `ValueError` unless it is the first event."""
    if state.tasks or state.replicas or state.recovery_until_ns:
        raise ValueError("ServiceRecovered has to be the first event of a scheduler")
    kept, now_ns = event.kept, state.now_ns
    state.recovery_until_ns = now_ns + RECOVERY_NS
    restored.restore(state, kept.pools)
    for account in kept.accounts:
        accounts.restore(state, account)
    live = {(each.task.tenant, each.task.session_id) for each in kept.tasks if each.outcome is None}
    for session in sorted(kept.sessions, key=lambda each: (each.last_ns, each.tenant, each.session_id)):
        state.sessions.restore(now_ns, session, is_needed=(session.tenant, session.session_id) in live)
    tasks = sorted(kept.tasks, key=lambda each: each.order)
    homes = Homes(state, tasks)
    ended = [_remade(state, homes, each) for each in tasks if each.outcome is not None]
    for record in sorted(ended, key=lambda each: (each.ended_ns, each.order)):
        state.retention.keep(record)
    for each in tasks:
        if each.outcome is None:
            _resume(state, homes, each)
    state.number_after(tasks[-1].order if tasks else 0)
    state.trim_due = True
    state.set_alarm()
    if not state.awaited:
        _end_hold(state)


def due(state: State) -> None:
    """End the hold once everybody is back or the time is up, and the waiting room with the time."""
    is_over = 0 < state.recovery_until_ns <= state.now_ns
    if is_over:
        state.recovery_until_ns = 0
    told, state.told_tasks = state.told_tasks, []
    for task_id in told:
        _decide(state, task_id)
    if state.hold_over or (is_over and state.awaited):
        _end_hold(state)
    state.set_alarm()


def _end_hold(state: State) -> None:
    """Nobody is awaited any more: what was not taken up goes on as if its replica were lost."""
    state.awaited.clear()
    state.awaited_tasks.clear()
    state.hold_over = False
    for task_id in list(state.tasks):
        _decide(state, task_id)
    state.unsure.clear()
    # What replicas run is known as well as it will be: those that are to go may go.
    for pool in state.pools.by_id.values():
        members.reconcile(state, pool)
    state.pools.touched = True
    for home in state.sets:
        state.want_dispatch(home)


def _decide(state: State, task_id: str) -> None:
    """Its replica is back, or given up: a task that it did not take along is canceled, fails or goes on waiting."""
    record = state.tasks.get(task_id)
    if record is None or record.state != "queued":
        return
    if record.cancels:
        cancels.end_waiting(state, record)
    elif task_id in state.unsure and record.stop_reason in (None, "preempt", "drain"):
        record.home.leave(record)
        endings.end_unserved(state, record, Outcome("failed", error=_unsure(record)))
    elif record.stop_reason is not None:
        stops.unheard(state, record)


def first_ready(state: State, info: ReplicaInfo) -> None:
    """A replica is about to be Ready. The first one of a set tells what its tokens take as KV (ORCH-3036)."""
    home = state.set_of_pool.get(info.pool_id)
    member = state.pools.members.get(info.replica_id)
    if member is not None:
        home = member.generation.home
    if home is None or home.pin is not None or not info.kv_token_bytes:
        return
    for record in state.tasks.values():
        # What holds a slot elsewhere is booked with the size that it has.
        if record.home is home and record.state == "queued" and not record.slots_held:
            record.kv_bytes = record.kv_tokens * info.kv_token_bytes


# ------------------------------------------------------------------------ tasks


def _remade(state: State, homes: Homes, kept: KeptTask) -> TaskRecord:
    """A task as it was, in the state that its outcome says, or else about to wait."""
    home, now_ns = homes.of(kept), state.now_ns
    record = home.new_record(kept.task, homes.quota(kept.task.tenant), kept.order)
    record.output_tokens = kept.output_tokens
    home.counted(record, kept.prompt_tokens)
    if home.pin is None and kept.replica is not None:
        record.kv_bytes = record.kv_tokens * kept.replica.kv_token_bytes
    record.admission = kept.told
    record.admitted_ns = min(now_ns, kept.admitted_ns)
    record.deadline_ns = kept.deadline_ns
    record.attempt, record.start, record.served_by = kept.attempt, kept.start, kept.replica
    record.started_ns, record.queue_time_ns = kept.started_ns, kept.queue_time_ns
    record.resume_tokens, record.resume_digest = kept.resume_tokens, kept.resume_digest
    record.preemptions, record.moves = kept.preemptions, kept.moves
    record.losses, record.crashes = kept.losses, kept.crashes
    record.over_attempt, record.lost_attempt = kept.over_attempt, kept.lost_attempt
    record.stop_reason, record.is_failover, record.skipped = kept.stop_reason, kept.is_failover, kept.skipped
    record.outcome = kept.outcome
    record.ended_ns = min(now_ns, kept.ended_ns)
    record.transcript_bytes = kept.transcript_bytes
    advance(record, "queued")
    if kept.outcome is not None:
        if kept.outcome.state == "finished":
            advance(record, "running")
        advance(record, kept.outcome.state)
    state.tasks[kept.task.task_id] = record
    return record


def _resume(state: State, homes: Homes, kept: KeptTask) -> None:
    """A live task waits in its old place, or ends if there is nobody to serve it any more."""
    record = _remade(state, homes, kept)
    record.quota.live += 1
    task = record.task
    record.session = state.sessions.resume(state.now_ns, task.tenant, task.session_id, record.asked_tokens)
    if homes.find(kept) is None:
        endings.end_unserved(state, record, Outcome("failed", tokens_out=record.resume_tokens, error=gone(record)))
        return
    record.fresh = not record.attempt and _has_place(record)
    record.home.join(record)
    state.timers.arm(task.task_id, max(preemption.wake_ns(record, state.now_ns), state.recovery_until_ns))
    state.want_dispatch(record.home)
    if not record.is_open or kept.replica is None:
        return
    # Of an attempt that was lost before it is known that nothing was delivered, or it would not have gone on.
    if record.determinism != "strict" and record.lost_attempt != record.attempt:
        state.unsure[task.task_id] = None
    if _may_return(state, kept.replica):
        state.awaited[kept.replica.replica_id] = None
        state.awaited_tasks.setdefault(kept.replica.replica_id, []).append(task.task_id)
    else:
        _decide(state, task.task_id)


def _has_place(record: TaskRecord) -> bool:
    """Whether the bounds of today have a place for a task that waits; if not, it keeps its own for good."""
    home = record.home
    tier = home.tier_of[record.task.priority]
    return tier.waiting < tier.policy.capacity and home.waiting < home.policy.capacity


def _may_return(state: State, info: ReplicaInfo) -> bool:
    """Whether a replica would be taken if it came back."""
    if info.pool_id in state.pools.by_id:
        return info.replica_id in state.pools.members
    return info.pool_id in state.set_of_pool


def _unsure(record: TaskRecord) -> ErrorInfo:
    replica = record.served_by
    name = "its replica" if replica is None else f"replica {replica.replica_id}"
    what = f"{name} did not come back with the task"
    if not record.is_open:
        what = f"on {name} the task could not go on within the quota of tenant {record.task.tenant}"
    return ErrorInfo(
        code="WORKER_RESET",
        message=(
            f"the scheduler was started anew and {what}, which is best_effort:"
            " what it had delivered cannot be made again; send it again"
        ),
        engine=record.task.engine,
        pool_id=None if replica is None else replica.pool_id,
        retriable=True,
    )
