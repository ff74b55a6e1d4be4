"""What clients are told to plan with: positions, chances, warmth, budgets (ORCH-3099, ORCH-3100, OC-CORE-1024)."""

from typing import Final

from msgspec.structs import replace

from contracts import scheduling as ev
from contracts.api import Admission, Metrics, Session
from contracts.tasks import Budgets
from orchestrator.cluster.live import LiveTask
from orchestrator.core.scheduler import Scheduler
from orchestrator.core.view import SessionView, StartedView

NS_PER_MS: Final = 1_000_000
MICROS_PER_UNIT: Final = 1_000_000
#: A chance is an estimate; more digits would only look exact.
CHANCE_DIGITS: Final = 3

_UNBOUNDED: Final = Budgets()


def admission_of(command: ev.Admit) -> Admission:
    """The body of a 202."""
    budgets = command.budgets or _UNBOUNDED
    return Admission(
        task_id=command.task_id,
        queue_position=command.queue_position,
        predicted_start_ms=command.predicted_start_ms,
        backoff_ms=command.backoff_ms,
        on_time_probability=round(command.on_time_probability, CHANCE_DIGITS),
        tokens_budget_remaining=budgets.tokens,
        time_budget_remaining_ms=budgets.time_ms,
        cost_budget_remaining=_cost(budgets),
        accelerator=command.accelerator if command.accelerator == "cpu-dev" else None,
    )


def session_of(view: SessionView) -> Session:
    """The body of `GET /v1/sessions/{id}`."""
    budgets = view.budgets or _UNBOUNDED
    return Session(
        ttl_ms_remaining=view.ttl_ms_remaining,
        turns=view.turns,
        kv_bytes=view.kv_bytes,
        kv_warmth=view.kv_warmth,
        tokens_budget_remaining=budgets.tokens,
        time_budget_remaining_ms=budgets.time_ms,
        cost_budget_remaining=_cost(budgets),
    )


def running_metrics(view: StartedView, *, resumed: bool = False, failed_over: bool = False) -> Metrics:
    """The frame of a task that runs; `resumed` at the start of an attempt that takes up another one.

    KV is never moved between replicas, and every frame of a running task says so; an attempt that took the place of
    a lost one (`failed_over`) is told to have begun cold (ORCH-3009, ORCH-3023).
    """
    budgets = view.budgets or _UNBOUNDED
    return Metrics(
        queue_depth=view.queue_depth,
        on_time_probability=round(view.on_time_probability, CHANCE_DIGITS),
        deadline_remaining_ms=view.time_budget_remaining_ms,
        kv_warmth=view.kv_warmth and not failed_over,
        kv_migrated=False,
        tokens_budget_remaining=budgets.tokens,
        time_budget_remaining_ms=budgets.time_ms,
        cost_budget_remaining=_cost(budgets),
        preempted=view.preempted or None,
        resumed=resumed or failed_over or None,
        failover=failed_over or None,
    )


def paused_metrics(command: ev.Pause) -> Metrics:
    """The frame that tells of a preemption (ORCH-3086)."""
    return Metrics(predicted_start_ms=command.predicted_start_ms, preempted=True, resumable=True)


def plan(core: Scheduler, now_ns: int, live: LiveTask) -> Metrics | None:
    """The frame of an admitted task as it stands now; None before its admission and after its end."""
    task = live.task
    status = core.status(now_ns, task.task_id, task.tenant)
    if status is None or status.state not in ("queued", "running", "stopping"):
        return None
    if status.state != "queued":
        view = core.started(now_ns, task.task_id, task.tenant)
        return None if view is None else _going_on(view, live)
    session = core.session(now_ns, task.tenant, task.session_id)
    budgets = (session.budgets if session is not None else None) or _UNBOUNDED
    chance = status.on_time_probability
    return Metrics(
        queue_depth=core.depth_of(task.task_id, task.tenant),
        queue_position=status.queue_position,
        predicted_start_ms=status.predicted_start_ms,
        on_time_probability=None if chance is None else round(chance, CHANCE_DIGITS),
        deadline_remaining_ms=max(0, live.deadline_ns - now_ns) // NS_PER_MS,
        kv_warmth=session is not None and session.kv_warmth,
        tokens_budget_remaining=budgets.tokens,
        time_budget_remaining_ms=budgets.time_ms,
        cost_budget_remaining=_cost(budgets),
        preempted=status.preempted or None,
        resumable=status.resumable or None,
    )


def _going_on(view: StartedView, live: LiveTask) -> Metrics:
    """Amid an attempt: what it took up was told when it started."""
    metrics = running_metrics(view, failed_over=live.failed_over)
    return replace(metrics, resumed=None, failover=None) if live.failed_over else metrics


def _cost(budgets: Budgets) -> float | None:
    """In the operator's currency; the core counts millionths."""
    return None if budgets.cost_micros is None else budgets.cost_micros / MICROS_PER_UNIT
