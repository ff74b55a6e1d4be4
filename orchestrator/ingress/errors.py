"""Errors that the ingress itself finds, and how any `ErrorInfo` becomes an HTTP reply (ORCH-2006, OC-CTRL-2030)."""

import math
import sys
from typing import Final

import msgspec
import structlog

from contracts.errors import HTTP_STATUS, ErrorCode, ErrorInfo, OrchError
from orchestrator.ingress.http import JSON, Headers, Reply
from orchestrator.tracebacks import without_texts

#: Told with a 429 or 503 for which the scheduler could not compute a time.
RETRY_DEFAULT_MS: Final = 1_000

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


def refuse(code: ErrorCode, message: str, engine: str | None = None) -> OrchError:
    """An error of the request itself: sending the same again cannot help (ORCH-3025)."""
    return OrchError(ErrorInfo(code=code, message=message, engine=engine, retriable=False))


def internal() -> ErrorInfo:
    """The envelope of a failure inside; details go to the log, never to the client (OC-CTRL-2041)."""
    return ErrorInfo(
        code="INTERNAL",
        message="The service failed to handle this. The task_id makes a repeat safe; quote the correlation id.",
        retriable=True,
    )


def log_failure(event: str, **fields: str) -> None:
    """Log the exception at hand without its text, which may hold what a client sent (OC-CTRL-2041)."""
    _log.error(event, traceback=without_texts(sys.exception()), **fields)


def backpressure(info: ErrorInfo, status: int) -> ErrorInfo:
    """Complete a 429 as its contract demands: a policy label and a retry time, always (ORCH-2007, OC-CTRL-2011)."""
    if status != 429:
        return info
    return msgspec.structs.replace(
        info,
        policy_label=info.policy_label or "reject",
        retry_after_ms=RETRY_DEFAULT_MS if info.retry_after_ms is None else info.retry_after_ms,
    )


def error_reply(info: ErrorInfo) -> Reply:
    """The envelope with the status of its code, and retry headers where the envelope has a retry time."""
    status = HTTP_STATUS[info.code]
    info = backpressure(info, status)
    headers: Headers = []
    if status in (429, 503) and info.retry_after_ms is not None:
        seconds = max(1, math.ceil(info.retry_after_ms / 1000))
        headers = [(b"retry-after", b"%d" % seconds), (b"x-backoff-ms", b"%d" % info.retry_after_ms)]
    if status == 401:
        headers = [(b"www-authenticate", b'Bearer realm="llama-orch"')]
    return Reply(status, _encode(info), JSON, headers)
