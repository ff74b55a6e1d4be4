"""Structured logs, one JSON object a line, for every process of the service."""

import logging
import os
import sys
from typing import Any, BinaryIO, cast

import msgspec
import structlog


def _json(value: Any, **_options: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=repr)


def _level() -> int:
    """`LLORCH_LOG_LEVEL`: debug shows every decision of the scheduler; anything unknown is info."""
    return logging.getLevelNamesMapping().get(os.environ.get("LLORCH_LOG_LEVEL", "").upper(), logging.INFO)


def configure() -> None:
    """Log JSON to the process's own standard error.

    Serve puts a logger of its own in the place of `sys.stderr`, which costs more than all of an
    admission's parsing does.

    Tracebacks are plain text: a renderer that prints local variables would print prompts and keys
    (OC-CTRL-2041).
    """
    assert sys.__stderr__ is not None  # the service's processes have one
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=structlog.BytesLoggerFactory(file=cast(BinaryIO, sys.__stderr__.buffer)),
        cache_logger_on_first_use=True,
    )
