"""One log line for each decision about an admitted task, with its reason (ORCH-3094).

The usual way of a task is told at level debug: every task takes it. What is done against the wish of
a client (preempted, dropped, late, failed) is told at level info.
"""

import logging
from typing import Any, Final

import structlog

from contracts import scheduling as ev
from contracts.policies import SchedulerConfig
from orchestrator.cluster.live import LiveTask

_log = structlog.get_logger(__name__)

Decision = ev.Admit | ev.Start | ev.Stop | ev.Pause | ev.Finish

_EVENTS: Final[dict[type, str]] = {
    ev.Admit: "decision.admit",
    ev.Start: "decision.start",
    ev.Stop: "decision.stop",
    ev.Pause: "decision.pause",
    ev.Finish: "decision.finish",
}


class DecisionLog:
    """Writes the lines; knows the tenants' weights."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._weights = {tenant.tenant: tenant.weight for tenant in config.tenants}
        self._default_weight = config.default_tenant.weight if config.default_tenant is not None else 1

    def note(self, command: Decision, live: LiveTask) -> None:
        """Log a decision, before it changes `live`."""
        level = logging.INFO if _is_unusual(command, live) else logging.DEBUG
        if not _log.is_enabled_for(level):
            return
        task = live.task
        fields: dict[str, Any] = {
            "job_id": task.task_id,
            "tenant_id": task.tenant,
            "priority": task.priority,
            "weight": self._weights.get(task.tenant, self._default_weight),
            "engine": task.engine,
            "deadline_ms": task.deadline_ms,
            "on_time_probability": live.on_time_probability,
            "preempted": live.preempted or (isinstance(command, ev.Pause) and command.cause != "lost"),
            "why": command.why,
            "correlation_id": task.correlation_id,
        }
        _log.log(level, _EVENTS[type(command)], **fields)


def _is_unusual(command: Decision, live: LiveTask) -> bool:
    """Whether the decision is more than a task's usual way from admission to end."""
    if isinstance(command, ev.Start):
        return live.paused or live.lost or command.placement == "handed-over"
    if isinstance(command, ev.Stop):
        return command.reason != "cancel"
    if isinstance(command, ev.Finish):
        return command.outcome.error is not None
    return isinstance(command, ev.Pause)
