"""What is only told about the work must not get in its way."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import structlog

log = structlog.get_logger(__name__)

P = ParamSpec("P")


def harmless(account: Callable[P, None]) -> Callable[P, None]:
    """A function that logs its failure instead of raising: metrics may then be wrong, and everything else goes on."""

    @functools.wraps(account)
    def accounted(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            account(*arguments, **named)
        except Exception:
            log.exception("telemetry.failed", where=account.__qualname__)

    return accounted
