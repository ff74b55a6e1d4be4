"""Running attempts: progress, stopping, their end, and the loss of their replica.

`attempt` fences: a report that does not name the attempt that is running is dropped, apart from
the slot that it frees (ORCH-3026).
"""

from typing import Final, Literal

import msgspec

from contracts.api import FinishReason
from contracts.errors import ErrorInfo
from contracts.scheduling import AttemptEnded, SlotReleased, TokensProgressed
from contracts.tasks import Outcome
from orchestrator.core import dispatch, endings, outages, preemption
from orchestrator.core.lifecycle import ON_REPLICA, advance
from orchestrator.core.placement import Replica
from orchestrator.core.pools import generations
from orchestrator.core.records import TaskRecord, round_ms
from orchestrator.core.state import State

ATTEMPTS_MAX: Final = 3


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
    if record is None or not _is_current(record, event.attempt, event.replica_id):
        if event.slot_free:
            _free_slot(state, event.replica_id, event.task_id, event.attempt)
        return
    _let_go(record)
    record.transcript_bytes = max(record.transcript_bytes, event.transcript_bytes)
    if event.tokens_out > record.tokens_out:
        record.tokens_out, record.tokens_digest = event.tokens_out, event.digest
    if event.result == "finished":
        endings.end_served(state, record, event, _outcome(event, "finished", finish_reason=event.finish_reason))
    elif record.state == "stopping":
        _stopped(state, record, event)
    else:
        error = _failure(record, event.error)
        delivered = max(record.tokens_out, record.resume_tokens)
        if error.retriable and not delivered and record.attempt < ATTEMPTS_MAX + record.preemptions + record.moves:
            _try_again(state, record)
        else:
            endings.end_served(state, record, event, _outcome(event, "failed", error=error))
    # The slot last: a task that gave it up waits again by now, and cannot be handed its own slot.
    if event.slot_free:
        _free_slot(state, event.replica_id, event.task_id, event.attempt)


def released(state: State, event: SlotReleased) -> None:
    """The engine let go of the slot of an ended attempt. It cannot let go of a running one."""
    record = state.tasks.get(event.task_id)
    if record is None or not _is_current(record, event.attempt, event.replica_id):
        _free_slot(state, event.replica_id, event.task_id, event.attempt)


def stop_timed_out(state: State, record: TaskRecord) -> None:
    """A `Stop` went unanswered: it counts as done; the slot stays taken until the replica frees it or is gone."""
    _let_go(record)
    _stopped(state, record, _last_heard(record))


def replica_gone(state: State, replica: Replica, reason: str) -> None:
    """All slots of a replica are void; end what it was running.

    How much of a running attempt was delivered is not known here, since progress lags behind the
    stream, so it is not tried again.
    """
    busy = list(replica.busy.items())
    replica.busy.clear()
    for (task_id, attempt), record in busy:
        record.slots_held -= 1
        if record.hands_over_to is not None:
            record.hands_over_to.rescued = False
            record.hands_over_to = None
        record.quota.ended(record.kv_bytes)
        dispatch.unblock(state, record.quota)
        if record.attempt != attempt or record.state not in ON_REPLICA or record.replica is not replica:
            state.forget_if_over(record)
            continue
        _let_go(record)
        last = _last_heard(record)
        if record.state == "stopping":
            _stopped(state, record, last)
            continue
        lost = ErrorInfo(
            code="WORKER_RESET",
            message=f"replica {replica.replica_id} was lost while it ran task {task_id}: {reason}",
            retriable=True,
        )
        endings.end_served(state, record, last, _outcome(last, "failed", error=_failure(record, lost)))


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


def _let_go(record: TaskRecord) -> None:
    """The attempt is over as far as the task is concerned; the slot is another matter."""
    del record.home.running[record.task.priority][record.task.task_id]


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
        and replica.has_room(heir.kv_tokens)
        and heir.quota.may_start(heir.kv_bytes)
    ):
        heir.home.take(heir)
        dispatch.start(state, heir, replica, warm=False, handed_over=True)
    state.forget_if_over(record)
    state.want_dispatch(replica.home)


def _try_again(state: State, record: TaskRecord) -> None:
    """A task whose attempt delivered nothing waits again, in its old place, for another node if there is one."""
    advance(record, "queued")
    if record.served_by is not None:
        record.avoid = record.served_by.node_id
    record.replica = None
    record.home.correct(record, 0)
    state.timers.arm(record.task.task_id, max(record.deadline_ns, state.now_ns + 1))
    record.home.join(record)
    state.want_dispatch(record.home)


def _last_heard(record: TaskRecord) -> AttemptEnded:
    """The report of an attempt that gives none: what was last heard of it."""
    return AttemptEnded(
        record.task.task_id,
        record.attempt,
        "",
        "stopped",
        slot_free=False,
        tokens_out=max(record.tokens_out, record.resume_tokens),
        digest=record.tokens_digest,
    )


def _stopped(state: State, record: TaskRecord, event: AttemptEnded) -> None:
    """A stopped attempt is over: its task ends as the stop was meant, or waits again if it was preempted."""
    if record.stop_reason == "preempt":
        preemption.preempted(state, record)
    elif record.stop_reason == "drain":
        _moved(state, record, event)
    elif record.stop_reason == "cancel":
        endings.end_served(state, record, event, _outcome(event, "canceled", finish_reason="canceled"))
    else:
        policy = record.home.policy
        timeout_ms = policy.wall_timeout_ms if record.stop_reason == "wall" else policy.idle_timeout_ms
        error = ErrorInfo(
            code="DECODE_TIMEOUT",
            message=f"stopped by the {record.stop_reason} timeout of {timeout_ms} ms",
            retriable=True,
        )
        endings.end_served(state, record, event, _outcome(event, "failed", error=_failure(record, error)))


def _moved(state: State, record: TaskRecord, event: AttemptEnded) -> None:
    """An attempt whose replica's time was up has stopped: its task goes on elsewhere, or ends for want of a place."""
    home = record.home
    # Only the replica knows that nothing was delivered: progress lags behind the stream.
    is_untouched = event.replica_id != "" and not max(record.tokens_out, record.resume_tokens)
    if (record.determinism == "strict" or is_untouched) and generations.has_hope(state, home):
        record.moves += 1
        preemption.wait_again(state, record, "drain")
        return
    replica_id = record.served_by.replica_id if record.served_by is not None else ""
    error = outages.stopped(home, replica_id, state.now_ns)
    endings.end_served(state, record, event, _outcome(event, "failed", error=_failure(record, error)))


def _failure(record: TaskRecord, error: ErrorInfo | None) -> ErrorInfo:
    """The error to show for a failed attempt: its own or WORKER_RESET, with engine and pool filled in."""
    if error is None:
        error = ErrorInfo(code="WORKER_RESET", message="the engine ended the attempt without a result", retriable=True)
    pool_id = record.served_by.pool_id if record.served_by is not None else None
    return msgspec.structs.replace(error, engine=error.engine or record.task.engine, pool_id=error.pool_id or pool_id)


def _outcome(
    event: AttemptEnded,
    state: Literal["finished", "failed", "canceled"],
    finish_reason: FinishReason | None = None,
    error: ErrorInfo | None = None,
) -> Outcome:
    return Outcome(
        state=state,
        tokens_in=event.tokens_in,
        tokens_out=event.tokens_out,
        tokens_cached=event.tokens_cached,
        first_token_ms=round_ms(event.first_token_ns) if event.tokens_out and event.first_token_ns else None,
        decode_ms=round_ms(event.decode_ns),
        finish_reason=finish_reason,
        stop_sequence=event.stop_sequence,
        error=error,
    )
