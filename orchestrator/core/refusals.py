"""The errors with which a submission is refused; each says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from contracts.errors import ErrorCode, ErrorInfo, PolicyLabel

if TYPE_CHECKING:
    from orchestrator.core.replica_set import ReplicaSet

#: About what a service needs to be there again, engines that live on included.
RESTART_RETRY_MS: Final = 5000
#: As often a journal that failed is tried again.
JOURNAL_RETRY_MS: Final = 1000


def invalid(message: str, engine: str | None = None) -> ErrorInfo:
    """INVALID_PARAMS; the same request can never succeed."""
    return ErrorInfo(code="INVALID_PARAMS", message=message, engine=engine, retriable=False)


def id_conflict(task_id: str) -> ErrorInfo:
    """TASK_ID_CONFLICT; the same words whoever the other task belongs to (ORCH-3024)."""
    return ErrorInfo(
        code="TASK_ID_CONFLICT",
        message=f"task_id {task_id} is in use by another request; choose a new one",
        retriable=False,
    )


def unknown_pool(pool_id: str, known: list[str]) -> ErrorInfo:
    """NOT_FOUND; only pools whose replicas are ordered here can be acted on."""
    return ErrorInfo(
        code="NOT_FOUND",
        message=f"no pool {pool_id!r} is managed here; managed: {', '.join(known) or 'none'}",
        retriable=False,
    )


def conflict(pool_id: str, message: str) -> ErrorInfo:
    """CONFLICT; what is asked of a pool does not go with what it is doing."""
    return ErrorInfo(code="CONFLICT", message=f"pool {pool_id}: {message}", pool_id=pool_id, retriable=False)


def restarting() -> ErrorInfo:
    """POOL_UNAVAILABLE while the service is about to end; the next one takes the task (ORCH-3025)."""
    return ErrorInfo(
        code="POOL_UNAVAILABLE",
        message=f"the service is being restarted; try again in {RESTART_RETRY_MS} ms",
        retriable=True,
        retry_after_ms=RESTART_RETRY_MS,
    )


def not_durable(reason: str) -> ErrorInfo:
    """ADMISSION_REJECT while what is accepted could not be kept (ORCH-3051)."""
    return ErrorInfo(
        code="ADMISSION_REJECT",
        message=(
            f"nothing can be accepted, because the service cannot write its journal ({reason}); try again in"
            f" {JOURNAL_RETRY_MS} ms; if that lasts, the operator has to look after its disk"
        ),
        retriable=True,
        retry_after_ms=JOURNAL_RETRY_MS,
        policy_label="reject",
    )


def unknown_tenant(tenant: str) -> ErrorInfo:
    """FORBIDDEN; only configured tenants are served."""
    return ErrorInfo(
        code="FORBIDDEN",
        message=f"tenant {tenant!r} is not configured here; ask the operator to add it",
        retriable=False,
    )


def limited(home: ReplicaSet, message: str, retry_ms: int, *, retriable: bool = True) -> ErrorInfo:
    """ADMISSION_REJECT by a rate, quota, budget or breaker, with the exact time from which it may pass."""
    retry_ms = max(1, retry_ms)
    return ErrorInfo(
        code="ADMISSION_REJECT",
        message=f"{message}; try again in {retry_ms} ms" if retriable else message,
        engine=home.policy.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=retriable,
        retry_after_ms=retry_ms if retriable else None,
        policy_label="reject",
    )


def full(home: ReplicaSet, code: ErrorCode, label: PolicyLabel, retry_ms: int) -> ErrorInfo:
    """The 429 of a full queue, with the time from which a place is expected to be free."""
    return ErrorInfo(
        code=code,
        message=f"the queue is full, {home.places_taken} tasks wait ({label}); try again in {retry_ms} ms",
        engine=home.policy.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=True,
        retry_after_ms=retry_ms,
        policy_label=label,
    )


def shed_for(home: ReplicaSet, retry_ms: int) -> ErrorInfo:
    """The 429 of a waiting task that lost its place to one of a higher class (ORCH-3085)."""
    return ErrorInfo(
        code="ADMISSION_REJECT",
        message=f"gave up its place in a full queue to a task of a higher class; try again in {retry_ms} ms",
        engine=home.policy.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=True,
        retry_after_ms=retry_ms,
        policy_label="shed-low-priority",
    )


def deadline_unmet(home: ReplicaSet, deadline_ms: int, earliest_ms: int, reason: str, wait_ms: int) -> ErrorInfo:
    """DEADLINE_UNMET at admission, with the smallest deadline that would have been accepted (ORCH-3079).

    The same request may do later if it is the queue that makes it late, about when what waits now has
    started; a task that is too long for its deadline by itself is not helped by waiting.
    """
    return ErrorInfo(
        code="DEADLINE_UNMET",
        message=f"deadline_ms {deadline_ms} cannot be met: {reason}; at least {earliest_ms} is needed now",
        engine=home.policy.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=wait_ms > 0,
        retry_after_ms=wait_ms or None,
        earliest_deadline_ms=earliest_ms,
    )
