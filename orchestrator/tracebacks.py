"""Exceptions as text without the texts of the exceptions, which may hold what a client sent (OC-CTRL-2041)."""

import traceback
from typing import Final

#: How much is told: exceptions that led to one another, and frames of each.
CAUSES_MAX: Final = 4
FRAMES_MAX: Final = 20


def without_texts(error: BaseException | None) -> str:
    """Types and places, the newest exception first; of errors of the operating system also what it says."""
    lines: list[str] = []
    for _ in range(CAUSES_MAX):
        if error is None:
            break
        text = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        lines += [f"{type(error).__qualname__}{text}\n", *traceback.format_tb(error.__traceback__, limit=FRAMES_MAX)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines)
