"""How adapters make their errors."""

from typing import Final

from contracts.engine import EngineError, EngineSpec
from contracts.errors import ErrorCode, ErrorInfo
from contracts.pools import FaultKind

MESSAGE_CHARS_MAX: Final = 4096


def engine_error(
    code: ErrorCode,
    message: str,
    *,
    engine: str,
    retriable: bool,
    kind: FaultKind = "launch",
    stderr_tail: tuple[str, ...] = (),
) -> EngineError:
    """An `EngineError` to raise, naming the engine and saying whether trying again can help (ORCH-3025).

    `kind` and `stderr_tail` matter where the error comes from bringing an engine up.
    """
    # What an engine says is quoted, and may be a page.
    info = ErrorInfo(code=code, message=message[:MESSAGE_CHARS_MAX], engine=engine, retriable=retriable)
    return EngineError(info, kind, stderr_tail)


def model_error(spec: EngineSpec, reason: str, remedy: str) -> EngineError:
    """The model that a pool names cannot be served from this node; its file may be put right (ORCH-3003)."""
    message = f"pool {spec.pool_id} cannot load its model on this node: {reason}; {remedy}"
    return engine_error("POOL_UNREADY", message, engine=spec.engine, retriable=True, kind="model")


def worker_reset(message: str, engine: str) -> EngineError:
    """The engine broke off; the same task can be run again elsewhere."""
    return engine_error("WORKER_RESET", f"{message}; submit the task again", engine=engine, retriable=True)
