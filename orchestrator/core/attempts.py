"""Running attempts: progress, stopping, their end, and the loss of their replica.

`attempt` fences: a report that does not name the attempt that is running is dropped, apart from
the slot that it frees (ORCH-3026).
"""

from contracts.pools import FaultKind
from contracts.scheduling import AttemptEnded, SlotReleased, TokensDiverged, TokensProgressed
from contracts.tasks import Outcome
from orchestrator.core import dispatch, endings, failover, preemption, stops
from orchestrator.core.lifecycle import ON_REPLICA
from orchestrator.core.placement import Replica
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State


def progressed(state: State, event: TokensProgressed) -> None:
    """An attempt made tokens. Only growth counts for the idle watchdog (ORCH-3016)."""
    record = state.tasks.get(event.task_id)
    if record is None or record.attempt != event.attempt or record.state not in ON_REPLICA:
        return
    if event.tokens_out > record.tokens_out:
        record.home.progressed(record, record.work_of(event.tokens_out - record.tokens_out))
        record.tokens_out = event.tokens_out
        record.tokens_digest = event.digest
        # The timer is left as it is: when it fires, it is armed anew from here.
        record.progressed_ns = state.now_ns


def ended(state: State, event: AttemptEnded) -> None:
    """An attempt is over. What finished before the `Stop` reached it has finished."""
    record = state.tasks.get(event.task_id)
    if record is not None and _is_current(record, event.attempt, event.replica_id):
        over(state, record, event)
    # The slot last: a task that gave it up waits again by now, and cannot be handed its own slot.
    if event.slot_free:
        _free_slot(state, event.replica_id, event.task_id, event.attempt)


def over(state: State, record: TaskRecord, event: AttemptEnded, late_ns: int | None = None) -> None:
    """The attempt that a task runs is over: the task ends, or waits for the next one.

    `late_ns` is how long it worked where that is told late.
    """
    replica = record.replica
    assert replica is not None, f"task {record.task.task_id} runs nowhere"
    _let_go(state, record)
    record.over_attempt = record.attempt
    record.transcript_bytes = max(record.transcript_bytes, event.transcript_bytes)
    if event.tokens_out > record.tokens_out:
        record.tokens_out, record.tokens_digest = event.tokens_out, event.digest
    if record.state == "stopping" and (event.result != "finished" or record.stop_reason == "diverged"):
        stops.stopped(state, record, event, late_ns)
    elif event.result == "finished":
        outcome = endings.outcome_of(event, "finished", finish_reason=event.finish_reason)
        endings.end_served(state, record, event, outcome, late_ns)
    elif event.result == "stopped":
        # By an earlier scheduler that could not keep why.
        _lost(state, record, replica, "it was stopped there, and it is not known any more what for", event, late_ns)
    else:
        error = endings.failure(record, event.error)
        if failover.may_try_again(record, error):
            _try_again(state, record)
        else:
            endings.end_served(state, record, event, endings.outcome_of(event, "failed", error=error), late_ns)


def released(state: State, event: SlotReleased) -> None:
    """The engine let go of the slot of an ended attempt. It cannot let go of a running one."""
    record = state.tasks.get(event.task_id)
    if record is None or not _is_current(record, event.attempt, event.replica_id):
        _free_slot(state, event.replica_id, event.task_id, event.attempt)


def stop_timed_out(state: State, record: TaskRecord) -> None:
    """A `Stop` went unanswered: it counts as done; the slot stays taken until the replica frees it or is gone."""
    _let_go(state, record)
    record.over_attempt = record.attempt
    stops.stopped(state, record, endings.last_heard(record))


def diverged(state: State, event: TokensDiverged) -> None:
    """A later attempt makes other tokens than were delivered: its task ends, and nothing more of it is shown."""
    record = state.tasks.get(event.task_id)
    if record is None or record.attempt != event.attempt:
        return
    if record.state == "running":
        dispatch.stop(state, record, "diverged")
    elif record.state == "stopping" and record.stop_reason in ("preempt", "drain"):
        # The stop is under way; it now means the end.
        record.stop_reason = "diverged"
        state.changes.task(event.task_id)
    elif record.state == "queued":
        # Its replica was lost meanwhile; its stream has ended all the same.
        record.home.leave(record)
        outcome = Outcome("failed", tokens_out=record.resume_tokens, error=failover.diverged(record))
        endings.end_unserved(state, record, outcome)


def replica_gone(state: State, replica: Replica, reason: str, kind: FaultKind) -> None:
    """All slots of a replica are void; what it was running goes on elsewhere, or ends where it cannot (ORCH-3009)."""
    busy = list(replica.busy.items())
    replica.busy.clear()
    for (_, attempt), record in busy:
        record.slots_held -= 1
        if record.hands_over_to is not None:
            record.hands_over_to.rescued = False
            record.hands_over_to = None
        record.quota.ended(record.kv_bytes)
        dispatch.unblock(state, record.quota)
        if record.attempt != attempt or record.state not in ON_REPLICA or record.replica is not replica:
            state.forget_if_over(record)
            continue
        _let_go(state, record)
        last = endings.last_heard(record)
        if record.state == "stopping":
            record.over_attempt = record.attempt
            stops.stopped(state, record, last)
        else:
            _lost(state, record, replica, reason, last, kind=kind)


def stop_for_drain(state: State, replica: Replica) -> None:
    """Stop all that a replica runs, because its time is up; it goes on elsewhere if it can."""
    for record in list(replica.busy.values()):
        if record.state == "running" and record.replica is replica:
            dispatch.stop(state, record, "drain")


# ------------------------------------------------------------------------ helpers


def _is_current(record: TaskRecord, attempt: int, replica_id: str) -> bool:
    return (
        record.attempt == attempt
        and record.state in ON_REPLICA
        and record.replica is not None
        and record.replica.replica_id == replica_id
    )


def _let_go(state: State, record: TaskRecord) -> None:
    """The attempt is over as far as the task is concerned; the slot is another matter."""
    del record.home.running[record.task.priority][record.task.task_id]
    if record.crashes:
        # Another suspect may run there now, if a slot is free.
        state.want_dispatch(record.home)


def _lost(
    state: State,
    record: TaskRecord,
    replica: Replica,
    reason: str,
    last: AttemptEnded,
    late_ns: int | None = None,
    kind: FaultKind = "actor",
) -> None:
    """An attempt died with its replica, or nobody knows what ended it."""
    error = failover.lost(record, replica, reason, kind)
    if error is None:
        preemption.wait_again(state, record, "lost")
    else:
        endings.end_served(state, record, last, endings.outcome_of(last, "failed", error=error), late_ns)


def _free_slot(state: State, replica_id: str, task_id: str, attempt: int) -> None:
    replica = state.replicas.get(replica_id)
    record = replica.busy.get((task_id, attempt)) if replica is not None else None
    if replica is None or record is None:
        return
    replica.index.release(replica, (task_id, attempt))
    record.slots_held -= 1
    record.quota.ended(record.kv_bytes)
    dispatch.unblock(state, record.quota)
    heir = record.hands_over_to
    record.hands_over_to = None
    if heir is not None:
        heir.rescued = False
    if (
        heir is not None
        and replica.state == "ready"
        and heir.state == "queued"
        and replica.takes(heir)
        and not state.is_held
        and heir.quota.may_start(heir.kv_bytes)
    ):
        heir.home.take(heir)
        dispatch.start(state, heir, replica, warm=False, handed_over=True)
    state.forget_if_over(record)
    state.want_dispatch(replica.home)


def _try_again(state: State, record: TaskRecord) -> None:
    """A task whose engine ended the attempt waits again, in its old place, for another node if there is one."""
    home = record.home
    if record.served_by is not None:
        record.avoid = record.served_by.node_id
        if home.breakers:
            home.breakers.observe(record, record.served_by.pool_id, False, 0, state.now_ns)
    if record.delivered_tokens:
        # To be made again, as after a loss.
        record.lost_attempt = record.attempt
        preemption.wait_again(state, record, "lost")
    else:
        preemption.join_again(state, record)
        state.changes.task(record.task.task_id)
