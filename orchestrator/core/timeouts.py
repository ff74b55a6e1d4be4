"""How long a task may wait and an attempt may run, by its set's policy (ORCH-3016, OC-CORE-1022)."""

from contracts.errors import ErrorInfo
from contracts.scheduling import StopReason
from contracts.tasks import Outcome
from orchestrator.core import outlook
from orchestrator.core.records import NS_PER_MS, TaskRecord, ceil_ms
from orchestrator.core.state import State


def of_attempt(record: TaskRecord) -> tuple[int, StopReason]:
    """(when a running attempt is to be stopped, what for) if nothing more is heard of it.

    An attempt that makes delivered tokens again has to make its first one in time like any other. What decodes
    nothing has no first token, only results.
    """
    policy = record.home.policy
    at_ns = record.started_ns + policy.wall_timeout_ms * NS_PER_MS
    reason: StopReason = "wall"
    idle_ns = record.progressed_ns + policy.idle_timeout_ms * NS_PER_MS
    if idle_ns < at_ns:
        at_ns, reason = idle_ns, "idle"
    first_ms = policy.first_token_timeout_ms
    if first_ms is not None and not record.tokens_out and record.task.decodes:
        first_ns = record.started_ns + first_ms * NS_PER_MS
        if first_ns < at_ns:
            at_ns, reason = first_ns, "first_token"
    return at_ns, reason


def timeout_ms(record: TaskRecord, reason: StopReason) -> int | None:
    """The timeout that a stop is named after; None: it is none."""
    policy = record.home.policy
    if reason == "wall":
        return policy.wall_timeout_ms
    if reason == "idle":
        return policy.idle_timeout_ms
    return policy.first_token_timeout_ms if reason == "first_token" else None


def of_waiting(record: TaskRecord) -> int:
    """When a waiting task ends unless it starts: at its deadline, or earlier by the bound on the wait before a start.

    That bound is for tasks that never started: one that runs already was served in time.
    """
    queue_ms = record.home.policy.queue_timeout_ms
    if queue_ms is None or record.attempt:
        return record.deadline_ns
    return min(record.deadline_ns, record.admitted_ns + queue_ms * NS_PER_MS)


def waited_out(state: State, record: TaskRecord) -> Outcome:
    """The end of a task that waited for as long as its set lets tasks wait.

    POOL_UNAVAILABLE, not DEADLINE_UNMET, which says that no try can help: its deadline is not over, and it is the
    replicas that did not get round to it. So it is retriable, from when a task that came now would start.
    """
    home = record.home
    retry_ms = max(1, ceil_ms(outlook.wait_of(home, home.waiting_tokens, state.now_ns)))
    bound_ms = home.policy.queue_timeout_ms
    error = ErrorInfo(
        code="POOL_UNAVAILABLE",
        message=f"not started within the queue timeout of {bound_ms} ms; try again in {retry_ms} ms",
        engine=record.task.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=True,
        retry_after_ms=retry_ms,
    )
    return Outcome("failed", error=error)
