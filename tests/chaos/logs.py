"""What the service's own logs say about a run: alarms of different text, and errors by name."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.audit import Check

#: The event with which the scheduler tells that an attempt's text was not the one that a client has.
DIVERGED = "task.diverged"


def log_checks(logs: Path) -> tuple[list[Check], str]:
    """The alarms as a check, and one line with every other error, counted, for whoever looks into a run."""
    errors = Counter[str]()
    diverged = []
    for entry in _errors(logs):
        name = str(entry.get("event"))
        errors[name] += 1
        if name == DIVERGED:
            diverged.append(f"task {entry.get('job_id')}, attempt {entry.get('attempt')}")
    told = ", ".join(f"{name} {count}" for name, count in sorted(errors.items()))
    return [Check("no text diverged", f"{len(diverged)} alarms", tuple(diverged))], f"errors logged: {told or 'none'}"


def _errors(logs: Path) -> Iterator[dict[str, Any]]:
    """Entries of level error or worse, of every process of the service; what is no JSON is not the service's."""
    for path in sorted(logs.rglob("*.err")):
        with path.open(errors="replace") as lines:
            for line in lines:
                if '"level":"error"' in line or '"level":"critical"' in line:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict):
                        yield entry
