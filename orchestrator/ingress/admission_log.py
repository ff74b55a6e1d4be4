"""One log line for every admission and refusal (ORCH-3029, OC-CTRL-2050)."""

import structlog

from contracts.api import Admission
from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo

_log = structlog.get_logger(__name__)


def log_admission(task: TaskInfo, admission: Admission) -> None:
    """ORCH-3029, OC-CTRL-2050."""
    _log.info(
        "task_admitted",
        job_id=task.task_id,
        session_id=task.session_id,
        tenant=task.tenant,
        engine=task.engine,
        priority=task.priority,
        deadline_ms=task.deadline_ms,
        queue_position=admission.queue_position,
        predicted_start_ms=admission.predicted_start_ms,
        correlation_id=task.correlation_id,
    )


def log_refusal(task: TaskInfo, info: ErrorInfo) -> None:
    _log.info(
        "task_refused",
        job_id=task.task_id,
        session_id=task.session_id,
        tenant=task.tenant,
        engine=task.engine,
        priority=task.priority,
        deadline_ms=task.deadline_ms,
        code=info.code,
        correlation_id=task.correlation_id,
    )
