"""What provisioning tells while it works, and how a candidate says that it cannot be used."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct


class Progress(Struct, frozen=True):
    """`done` of `total` steps of a phase; a total of 0 or 1 means that there is nothing to count."""

    phase: Literal["check", "wait", "install", "download", "configure", "build"]
    done: int
    total: int
    detail: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A `Report` for those who do not want any."""
    del progress


class UnusableError(Exception):
    """A candidate cannot be used; the text says why."""
