"""How adapters make their errors."""

from contracts.engine import EngineError
from contracts.errors import ErrorCode, ErrorInfo


def engine_error(code: ErrorCode, message: str, *, engine: str, retriable: bool) -> EngineError:
    """An `EngineError` to raise, naming the engine and saying whether trying again can help (ORCH-3025)."""
    return EngineError(ErrorInfo(code=code, message=message, engine=engine, retriable=retriable))
