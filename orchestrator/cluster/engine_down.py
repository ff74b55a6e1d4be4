"""Why an engine does not serve, or does not any more."""

from typing import NamedTuple

from contracts.engine import EngineExit
from contracts.pools import FaultKind


class Down(NamedTuple):
    """What the scheduler is told of it; `stderr` are the last lines that the engine wrote."""

    kind: FaultKind
    reason: str
    stderr: tuple[str, ...] = ()


def down_of(end: EngineExit) -> Down:
    """The reason that the end of its process gives."""
    tail = f": {end.stderr_tail[-1]}" if end.stderr_tail else ""
    return Down(end.kind, f"the engine process ended with status {end.status}{tail}", end.stderr_tail)
