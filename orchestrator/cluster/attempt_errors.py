"""What an attempt fails with by itself, in words that say what to do."""

from contracts.engine import EngineSpec
from contracts.errors import ErrorCode, ErrorInfo
from contracts.tasks import RESULT_BYTES_MAX


def attempt_error(spec: EngineSpec, code: ErrorCode, message: str, *, retriable: bool = True) -> ErrorInfo:
    """An error of this replica's engine."""
    return ErrorInfo(code, message, engine=spec.engine, pool_id=spec.pool_id, retriable=retriable)


def other_tokens(spec: EngineSpec) -> ErrorInfo:
    """A resumed attempt differs from the one before it, and nothing of it was sent."""
    message = (
        "determinism: the attempt that took up this task made other tokens than the one before it;"
        " none of them was sent. Submit the task again under a new task_id"
    )
    return attempt_error(spec, "WORKER_RESET", message, retriable=False)


def too_large(spec: EngineSpec, inputs: int) -> ErrorInfo:
    """The results of an embedding or a rerank take too much room."""
    message = (
        f"the results of {inputs} inputs are over the limit of {RESULT_BYTES_MAX} bytes; send fewer inputs in a task"
    )
    return attempt_error(spec, "INVALID_PARAMS", message, retriable=False)
