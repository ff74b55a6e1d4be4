"""One log line for every admission and refusal (ORCH-3029, ORCH-3094, OC-CTRL-2050)."""

import structlog

from contracts.api import Admission
from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo

_log = structlog.get_logger(__name__)


def log_admission(task: TaskInfo, admission: Admission) -> None:
    """ORCH-3029, ORCH-3094, OC-CTRL-2050."""
    _log.info(
        "task_admitted",
        job_id=task.task_id,
        session_id=task.session_id,
        tenant_id=task.tenant,
        engine=task.engine,
        priority=task.priority,
        deadline_ms=task.deadline_ms,
        queue_position=admission.queue_position,
        predicted_start_ms=admission.predicted_start_ms,
        on_time_probability=admission.on_time_probability,
        accelerator=admission.accelerator or "gpu",
        correlation_id=task.correlation_id,
    )


def log_refusal(task: TaskInfo, info: ErrorInfo) -> None:
    """Why a task was refused; the scheduler's messages hold no text of clients (OC-CTRL-2041)."""
    _log.info(
        "task_refused",
        job_id=task.task_id,
        session_id=task.session_id,
        tenant_id=task.tenant,
        engine=task.engine,
        priority=task.priority,
        deadline_ms=task.deadline_ms,
        code=info.code,
        why=info.message,
        correlation_id=task.correlation_id,
    )
