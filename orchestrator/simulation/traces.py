"""Traces of recorded tasks: one JSON object a line, read as they are needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from orchestrator.simulation.errors import TraceError

Size = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TraceTask(Struct, frozen=True, forbid_unknown_fields=True):
    """One recorded task. What is left out (0 or empty) is drawn as the workload says."""

    at_ms: Annotated[float, Meta(ge=0)]
    tenant: str = ""
    priority: str = ""
    session_id: str = ""
    prompt_tokens: Size = 0
    output_tokens: Size = 0
    max_tokens: Size = 0
    deadline_ms: Size = 0


def read(path: Path) -> Iterator[TraceTask]:
    """The tasks of a trace in their order. Raises `TraceError` with the line where something is wrong."""
    decoder = msgspec.json.Decoder(TraceTask)
    last_ms = 0.0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    task = decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise TraceError(f"{path}:{number}: {error}") from None
                if task.at_ms < last_ms:
                    raise TraceError(f"{path}:{number}: at_ms {task.at_ms:g} is before {last_ms:g}; sort the trace")
                last_ms = task.at_ms
                yield task
    except OSError as error:
        raise TraceError(f"{path}: cannot read: {error.strerror or error}") from None
