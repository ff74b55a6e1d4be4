"""Whether a task whose attempt died goes on elsewhere, and how often (ORCH-3009, ORCH-3023, ORCH-3045).

A strict task goes on whatever was delivered: the next attempt makes the same tokens again, and its replica compares
them. A best_effort one only where nothing was delivered, since its text would be another one. Three bounds keep a
task from going on for ever; one of them is for tasks that crash the engines they run on.
"""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.pools import FaultKind
from orchestrator.core import endings, outages
from orchestrator.core.placement import Replica
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State

#: Attempts of a task that its engines may end themselves.
ATTEMPTS_MAX: Final = 3
#: Attempts of a task that may be lost with their replica.
LOSSES_MAX: Final = 10
#: Crashes of engines under a task that are taken for its own doing. The first makes a suspect of every task that
#: ran there; suspects are kept apart from each other, so that none of them can be blamed for another's.
CRASHES_MAX: Final = 3
#: Faults of an engine that what it was running may have caused. Not its end by another's hand, nor that of its actor
#: or its node, nor host memory that others took.
CRASH_KINDS: Final[tuple[FaultKind, ...]] = ("exit", "stuck", "vram_oom", "xid")


def may_repeat(record: TaskRecord) -> bool:
    """Whether another attempt may make the tokens of a task again: they are the same, or nobody has seen any."""
    return record.determinism == "strict" or not record.delivered_tokens


def may_try_again(record: TaskRecord, error: ErrorInfo) -> bool:
    """Whether a task whose attempt the engine ended with this error gets another one."""
    return bool(error.retriable) and record.engine_ends < ATTEMPTS_MAX and may_repeat(record)


def lost(record: TaskRecord, replica: Replica, reason: str, kind: FaultKind) -> ErrorInfo | None:
    """Count an attempt that died with its replica; why the task ends with it, or None: it goes on."""
    record.losses += 1
    record.lost_attempt = record.attempt
    if kind in CRASH_KINDS:
        record.crashes += 1
    if kind == "node" and record.served_by is not None:
        record.avoid = record.served_by.node_id
    if record.crashes >= CRASHES_MAX:
        message = f"quarantined: {record.crashes} attempts of task {record.task.task_id} crashed the engine, "
        return _reset(record, f"{message}the last one {replica.replica_id}: {reason}", retriable=False)
    if may_repeat(record) and record.losses < LOSSES_MAX:
        return None
    message = f"replica {replica.replica_id} was lost while it ran task {record.task.task_id}: {reason}"
    if record.losses >= LOSSES_MAX:
        message += f"; {record.losses} attempts of it were lost"
    return _reset(record, message, retriable=True)


def _reset(record: TaskRecord, message: str, *, retriable: bool) -> ErrorInfo:
    return endings.failure(record, ErrorInfo(code="WORKER_RESET", message=message, retriable=retriable))


def diverged(record: TaskRecord) -> ErrorInfo:
    """WORKER_RESET for a task whose later attempt made other tokens than were delivered (ORCH-3045)."""
    message = f"determinism: attempt {record.attempt} made other tokens than were delivered before"
    return _reset(record, message, retriable=False)


def starts_next(record: TaskRecord) -> None:
    """The next attempt of a task is about to start: one before it that may still run is given up for good."""
    give_up(record)
    record.is_failover = record.lost_attempt > 0 and record.lost_attempt == record.attempt
    if record.taken_attempt > record.attempt:
        record.skipped += record.taken_attempt - record.attempt
        record.attempt = record.taken_attempt


def give_up(record: TaskRecord) -> None:
    """The last attempt of a waiting task does not count any more, should it still run.

    After a recovery that may be the first that is heard of its loss. One that was to stop is not lost.
    """
    if record.is_open:
        if record.lost_attempt != record.attempt and record.stop_reason is None:
            record.losses += 1
            record.lost_attempt = record.attempt
        record.over_attempt = record.attempt


def is_awaited(state: State, record: TaskRecord) -> bool:
    """Whether a waiting task may turn out to run: its replica, which is expected back, was not heard of yet."""
    return (
        record.state == "queued"
        and record.is_open
        and record.served_by is not None
        and record.served_by.replica_id in state.awaited
    )


def too_late(state: State, record: TaskRecord) -> ErrorInfo:
    """The error of a task that waited until its deadline could not be met any more.

    DEADLINE_UNMET, except where it had started in time, its replica was lost, and no other is there: then that is
    why, and the same request may do later (ORCH-3018, ORCH-3025).
    """
    home = record.home
    if record.lost_attempt and record.lost_attempt == record.attempt and not home.ready:
        unserved = outages.moved_on(home, state.now_ns)
        retry_ms = unserved.retry_after_ms
        message = f"its replica was lost, and none was ready until its deadline; try again in {retry_ms} ms"
        return ErrorInfo(
            code=unserved.code,
            message=message,
            engine=unserved.engine,
            pool_id=unserved.pool_id,
            retriable=True,
            retry_after_ms=retry_ms,
        )
    verb = "ended" if record.attempt else "started in time to end"
    return ErrorInfo(
        code="DEADLINE_UNMET",
        message=f"not {verb} within deadline_ms {record.task.deadline_ms}",
        engine=record.task.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=False,
    )
