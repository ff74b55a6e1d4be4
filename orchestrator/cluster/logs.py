"""Structured logs, one JSON object a line, for every process of the service."""

import logging
import sys

import structlog


def configure() -> None:
    """Log JSON to standard error.

    Tracebacks are plain text: a renderer that prints local variables would print prompts and keys
    (OC-CTRL-2041).
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
