"""CPU time by process group, from /proc: who pays for a token."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

#: Group by a word of the command line; the first that fits counts.
GROUPS: Final = (
    ("haproxy", "haproxy -"),
    ("ingress", "ray::ServeReplica"),
    ("scheduler", "ray::SchedulerActor"),
    ("replica", "ray::ReplicaActor"),
    ("engine", "adapters.testing.fake_llama_server"),
    ("driver", "benchmarks.load"),
)
REST: Final = "ray"


def group_of(command: str) -> str:
    """The group of a process of the service; what is none of the known parts is Ray's own."""
    return next((group for group, word in GROUPS if word in command), REST)


def parse_stat(stat: str) -> tuple[int, float]:
    """Parent's pid and CPU seconds so far of a /proc/PID/stat line; the name in it may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK_S


def _all() -> Iterator[tuple[int, int, float]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                yield int(entry), *parse_stat(Path("/proc", entry, "stat").read_text())
            except OSError:
                continue  # it ended meanwhile


def descendants(root: int) -> list[int]:
    """All processes below `root`, without it."""
    children: dict[int, list[int]] = {}
    for pid, parent, _ in _all():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


class CpuMeter:
    """CPU seconds per group of the processes below this one, and those of the whole machine."""

    def __init__(self, apart: dict[int, str]) -> None:
        """`apart` gives processes a group of their own, by pid."""
        self._apart = apart

    def read(self) -> "Reading":
        """CPU seconds so far. Looks for processes anew: HAProxy replaces itself, workers take their names late."""
        processes: dict[int, tuple[str, float]] = {}
        for pid in descendants(os.getpid()):
            place = Path("/proc", str(pid))
            try:
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                seconds = parse_stat((place / "stat").read_text())[1]
            except OSError:
                continue  # it ended meanwhile
            processes[pid] = (self._apart.get(pid) or group_of(command), seconds)
        user, nice, system, _idle, _wait, *interrupts = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        return Reading(processes, (user + nice + system + sum(interrupts)) * _TICK_S)


class Reading(NamedTuple):
    """CPU seconds by pid, with the group, and of the whole machine, whoever was busy."""

    processes: dict[int, tuple[str, float]]
    machine: float

    def since(self, before: "Reading") -> dict[str, float]:
        """Seconds used between two readings by group, and by the `machine`; what ended in between is not counted."""
        used = {group: 0.0 for group, _ in self.processes.values()}
        for pid, (group, seconds) in self.processes.items():
            used[group] += seconds - before.processes.get(pid, (group, 0.0))[1]
        return used | {"machine": self.machine - before.machine}
