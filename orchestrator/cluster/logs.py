"""Structured logs, one JSON object a line, for every process of the service."""

import contextlib
import logging
import os
import sys
from typing import Any, BinaryIO, Final, cast

import msgspec
import structlog
from structlog.typing import EventDict

from orchestrator.tracebacks import without_texts

#: Fields of lines about a task.
OF_TASKS: Final = frozenset({"job_id", "task_id", "correlation_id"})


def _json(value: Any, **_options: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=repr)


def format_exceptions(logger: Any, method: str, event: EventDict) -> EventDict:
    """A structlog processor: tracebacks as plain text, and without the exceptions' own texts in lines about a task.

    Code that fails on a task may say in its exception what it was given (OC-CTRL-2041).
    """
    given = event.get("exc_info")
    if not given or not OF_TASKS & event.keys():
        return structlog.processors.format_exc_info(logger, method, event)
    del event["exc_info"]
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exception()
    return {**event, "exception": without_texts(error)}


def _level() -> int:
    """`LLORCH_LOG_LEVEL`: debug shows every decision of the scheduler; anything unknown is info."""
    return logging.getLevelNamesMapping().get(os.environ.get("LLORCH_LOG_LEVEL", "").upper(), logging.INFO)


class BestEffort:
    """A file descriptor as a file that takes what it can: a full disk must not end those who log about it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, line: bytes) -> int:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line)
        return len(line)

    def flush(self) -> None:
        """Nothing is kept back."""


def configure() -> None:
    """Log JSON to the process's own standard error.

    Serve puts a logger of its own in the place of `sys.stderr`, which costs more than all of an
    admission's parsing does.

    Tracebacks are plain text: a renderer that prints local variables would print prompts and keys.
    """
    assert sys.__stderr__ is not None  # the service's processes have one
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            format_exceptions,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=structlog.BytesLoggerFactory(file=cast(BinaryIO, BestEffort(sys.__stderr__.fileno()))),
        cache_logger_on_first_use=True,
    )
