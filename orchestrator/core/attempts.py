"""Running attempts: progress, stopping, their end, and the loss of their replica.

`attempt` fences: a report that does not name the attempt that is running is dropped, apart from
the slot that it frees (ORCH-3026).
"""

from typing import Final, Literal

import msgspec

from contracts.api import FinishReason
from contracts.errors import ErrorInfo
from contracts.scheduling import AttemptEnded, SlotReleased, Stop, TokensProgressed
from contracts.tasks import Outcome
from orchestrator.core.lifecycle import ON_REPLICA, advance
from orchestrator.core.placement import Replica
from orchestrator.core.records import NS_PER_MS, StopReason, TaskRecord, round_ms
from orchestrator.core.state import State

ATTEMPTS_MAX: Final = 3
#: How long a `Stop` may go unanswered before the task ends without its replica's word.
STOP_TIMEOUT_NS: Final = 2000 * NS_PER_MS


def progressed(state: State, event: TokensProgressed) -> None:
    """An attempt made tokens. Only growth counts for the idle watchdog (ORCH-3016)."""
    record = state.tasks.get(event.task_id)
    if record is None or record.attempt != event.attempt or record.state not in ON_REPLICA:
        return
    if event.tokens_out > record.tokens_out:
        record.tokens_out = event.tokens_out
        # The timer is left as it is: when it fires, it is armed anew from here.
        record.progressed_ns = state.now_ns
        remaining = max(0, record.expected_tokens - event.tokens_out)
        record.home.running_tokens -= record.remaining_tokens - remaining
        record.remaining_tokens = remaining


def request_stop(state: State, record: TaskRecord, reason: StopReason) -> None:
    """Have a running attempt stopped. Its task ends when the replica confirms, or after `STOP_TIMEOUT_NS`."""
    replica = record.replica
    assert replica is not None, f"task {record.task.task_id} runs nowhere"
    advance(record, "stopping")
    record.stop_reason = reason
    record.stop_until_ns = state.now_ns + STOP_TIMEOUT_NS
    state.timers.arm(record.task.task_id, record.stop_until_ns)
    state.out.append(Stop(record.home.policy.set_id, record.task.task_id, record.attempt, replica.replica_id, reason))


def ended(state: State, event: AttemptEnded) -> None:
    """An attempt is over. What finished before the `Stop` reached it has finished."""
    record = state.tasks.get(event.task_id)
    is_current = _is_current(record, event)
    if event.slot_free:
        _free_slot(state, event.replica_id, event.task_id, event.attempt)
    if record is None or not is_current:
        return
    slot_ns = state.now_ns - record.started_ns
    _let_go(record)
    if event.result == "finished":
        record.home.predictor.served(slot_ns, event.tokens_out)
        outcome = _outcome(event, "finished", finish_reason=event.finish_reason)
    elif record.state == "stopping":
        outcome = _stopped_outcome(record, event)
    else:
        error = _failure(record, event.error)
        delivered = max(event.tokens_out, record.tokens_out)
        if error.retriable and not delivered and record.attempt < ATTEMPTS_MAX:
            state.requeue(record)
            return
        outcome = _outcome(event, "failed", error=error)
    state.finish(record, outcome, event.transcript_bytes)


def released(state: State, event: SlotReleased) -> None:
    """The engine let go of the slot of an ended attempt. It cannot let go of a running one."""
    if not _is_current(state.tasks.get(event.task_id), event):
        _free_slot(state, event.replica_id, event.task_id, event.attempt)


def stop_timed_out(state: State, record: TaskRecord) -> None:
    """A `Stop` went unanswered: end the task; its slot stays occupied until the replica frees it or is gone."""
    _let_go(record)
    state.finish(record, _stopped_outcome(record, None))


def replica_gone(state: State, replica: Replica, reason: str) -> None:
    """All slots of a replica are void; end what it was running.

    How much of a running attempt was delivered is not known here, since progress lags behind the
    stream, so it is not tried again.
    """
    busy = list(replica.busy.items())
    replica.busy.clear()
    for (task_id, attempt), record in busy:
        record.slots_held -= 1
        if record.replica is not replica or record.attempt != attempt or record.state not in ON_REPLICA:
            state.forget_if_over(record)
            continue
        _let_go(record)
        if record.state == "stopping":
            state.finish(record, _stopped_outcome(record, None))
            continue
        error = _failure(
            record,
            ErrorInfo(
                code="WORKER_RESET",
                message=f"replica {replica.replica_id} was lost while it ran task {task_id}: {reason}",
                retriable=True,
            ),
        )
        state.finish(record, Outcome("failed", tokens_out=record.tokens_out, error=error))


# ------------------------------------------------------------------------ helpers


def _is_current(record: TaskRecord | None, event: AttemptEnded | SlotReleased) -> bool:
    return (
        record is not None
        and record.state in ON_REPLICA
        and record.attempt == event.attempt
        and record.replica is not None
        and record.replica.replica_id == event.replica_id
    )


def _let_go(record: TaskRecord) -> None:
    """The attempt is over as far as the task is concerned; the slot is another matter."""
    record.home.running_tokens -= record.remaining_tokens
    record.remaining_tokens = 0


def _free_slot(state: State, replica_id: str, task_id: str, attempt: int) -> None:
    replica = state.replicas.get(replica_id)
    record = replica.busy.get((task_id, attempt)) if replica is not None else None
    if replica is None or record is None:
        return
    replica.home.ready.release(replica, (task_id, attempt))
    record.slots_held -= 1
    state.forget_if_over(record)
    state.want_dispatch(replica.home)


def _stopped_outcome(record: TaskRecord, event: AttemptEnded | None) -> Outcome:
    """Outcome of a stopped attempt; without the replica's report, by what was last heard of it."""
    if event is None:
        event = AttemptEnded(
            record.task.task_id, record.attempt, "", "stopped", slot_free=False, tokens_out=record.tokens_out
        )
    if record.stop_reason == "cancel":
        return _outcome(event, "canceled", finish_reason="canceled")
    policy = record.home.policy
    timeout_ms = policy.wall_timeout_ms if record.stop_reason == "wall" else policy.idle_timeout_ms
    error = ErrorInfo(
        code="DECODE_TIMEOUT",
        message=f"stopped by the {record.stop_reason} timeout of {timeout_ms} ms",
        retriable=True,
    )
    return _outcome(event, "failed", error=_failure(record, error))


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
