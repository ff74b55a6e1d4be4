"""The host's memory as this process may use it: what is free under its control group.

Sources: proc(5) for /proc/meminfo; the kernel's admin guide for control groups, version 2
(memory.max, memory.current, memory.stat) and version 1 (memory.limit_in_bytes and so on).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

#: Nested groups that are looked at, from this process's own upwards.
_GROUPS_MAX: Final = 32


class HostMemory(Struct, frozen=True):
    """Memory of the host or of the tightest control group around this process."""

    total_bytes: int
    available_bytes: int

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.available_bytes


class _Names(NamedTuple):
    """How a version of control groups calls its files and keys."""

    limit: str
    usage: str
    reclaimable: str


_V2: Final = _Names("memory.max", "memory.current", "inactive_file")
_V1: Final = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def read_host(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """The host's memory now.

    Page cache that nobody used lately counts as available, as it does in MemAvailable.
    """
    meminfo = _table(proc / "meminfo")
    total, available = meminfo["MemTotal:"] * 1024, meminfo["MemAvailable:"] * 1024
    for group, names in _groups(proc, cgroups):
        limit, usage = _number(group / names.limit), _number(group / names.usage)
        if limit is None or usage is None:
            continue
        reclaimable = _table(group / "memory.stat").get(names.reclaimable, 0)
        total = min(total, limit)
        available = min(available, max(0, limit - usage + min(reclaimable, usage)))
    return HostMemory(total, min(available, total))


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, _Names]]:
    """This process's memory group and those around it, inside out.

    In a container the path of the group may be that of the host and not exist here; its outermost folder,
    which is then the container's own group, does.
    """
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, names = cgroups / "memory", _V1
        elif number == "0":
            root, names = cgroups, _V2
        else:
            continue
        group = root / path.lstrip("/")
        for _ in range(_GROUPS_MAX):
            yield group, names
            if group == root or not group.is_relative_to(root):
                break
            group = group.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _table(path: Path) -> dict[str, int]:
    """Lines of `key number`, whatever follows."""
    words = [line.split() for line in _lines(path)]
    return {word[0]: int(word[1]) for word in words if len(word) >= 2 and word[1].isdecimal()}


def _number(path: Path) -> int | None:
    """A file with one number; None for one that is absent or says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None
