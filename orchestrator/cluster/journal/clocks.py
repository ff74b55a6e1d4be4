"""Instants that outlive a boot: what the scheduler's clock shows against the time of day.

Within one boot the scheduler's clock goes on, whatever is done to the time of day, and instants stay as they are.
A boot starts that clock anew; only then the time of day says how much later it is.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Anchor(msgspec.Struct, frozen=True):
    """A boot, and the time of day (ns) at which its clock showed 0."""

    boot_id: str
    zero_ns: int


class Clocks(NamedTuple):
    """The clock that the scheduler is stepped with, the time of day, and the boot that both belong to."""

    boot_id: str
    now_ns: Callable[[], int] = time.monotonic_ns
    wall_ns: Callable[[], int] = time.time_ns

    def anchor(self) -> Anchor:
        return Anchor(self.boot_id, self.wall_ns() - self.now_ns())


def this_boot(now_ns: Callable[[], int] = time.monotonic_ns) -> Clocks:
    """The clocks of this machine since it was started."""
    return Clocks(_BOOT_ID.read_text().strip(), now_ns)


def moved_by_ns(kept: Anchor | None, present: Anchor) -> int:
    """What is to be added to instants of `kept` to have them on the clock of `present`."""
    if kept is None or kept.boot_id == present.boot_id:
        return 0
    return kept.zero_ns - present.zero_ns
