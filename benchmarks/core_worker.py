"""One process that runs the core: jobs come as lines of JSON, results go back likewise.

Started by `benchmarks/core.py`, once for the source and once for the compiled build.
"""

import gc
import resource
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

from benchmarks.core_loop import Loop, Scenario
from orchestrator.core import scheduler

#: As in the scheduler's process: what has lived through the start is not looked at again, and young objects
#: are collected by the many.
GC_THRESHOLDS: Final = (50_000, 20, 100)


What = Literal["fill", "run", "cancel", "progress", "status", "garbage"]


class Job(msgspec.Struct, frozen=True):
    """What to measure: `run` and `garbage` count cycles, the others operations. `fill` makes the loop first."""

    scenario: Scenario
    what: What
    count: int = 0


class Measured(msgspec.Struct, frozen=True):
    """CPU nanoseconds of `count` operations; of a cycle they are given in two parts.

    `fill` tells the bytes by which the process grew for `count` waiting tasks, `garbage` the objects left.
    """

    count: int
    submit_ns: int = 0
    end_ns: int = 0
    other_ns: int = 0
    grown_bytes: int = 0
    garbage: int = 0
    compiled: bool = False

    @property
    def cycle_us(self) -> float:
        """Microseconds for a task's whole way: submitted, started, ended."""
        return (self.submit_ns + self.end_ns) / self.count / 1000

    @property
    def other_us(self) -> float:
        """Microseconds of one of the other operations."""
        return self.other_ns / self.count / 1000


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(loops: dict[Scenario, Loop], job: Job) -> Measured:
    """Do one job. Raises `KeyError` when its loop was not filled."""
    if job.what == "fill":
        return _fill(loops, job.scenario)
    loop = loops[job.scenario]
    if job.what == "run":
        submit_ns, end_ns = loop.run(job.count)
        return Measured(job.count, submit_ns, end_ns)
    if job.what == "garbage":
        return Measured(job.count, garbage=loop.garbage(job.count))
    operation = {"cancel": loop.cancel, "progress": loop.progress, "status": loop.status}[job.what]
    return Measured(job.count, other_ns=operation(job.count))


def _fill(loops: dict[Scenario, Loop], scenario: Scenario) -> Measured:
    """Memory is read from a tenth of the queue on, when tables and free lists have their sizes."""
    loop = Loop(scenario)
    loops[scenario] = loop
    warm = scenario.queue // 10
    loop.fill(warm)
    before = resident_bytes()
    loop.fill(scenario.queue)
    grown = resident_bytes() - before
    gc.collect()
    gc.freeze()
    compiled = not str(scheduler.__file__).endswith(".py")
    return Measured(scenario.queue - warm, grown_bytes=grown, compiled=compiled)


def main() -> None:
    gc.set_threshold(*GC_THRESHOLDS)
    loops: dict[Scenario, Loop] = {}
    for line in sys.stdin:
        result = measure(loops, msgspec.json.decode(line, type=Job))
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
