"""How fast the scheduler's core decides: `python benchmarks/core.py [--compiled] [--check] [--json FILE]`.

One process, one thread, no network: `step` is called with the events of tasks that come, run and end while the
queue is kept at one length. A cycle is a task's whole way: submitted, admitted, started, ended, finished. Measured
is CPU time, so that what else the machine runs counts little; the cases take turns, a slice each, and the
medians of the slices are told. `--compiled` measures the build of `make compiled` as well, slice by slice beside
the sources.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from benchmarks.core_loop import Scenario  # noqa: E402
from benchmarks.core_worker import Job, Measured, What  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from tools.compile_core import CompileError, compile_core, overlay  # noqa: E402

#: Cycles of one slice, and operations of the other kinds.
SLICE: Final = 200
OTHERS: Final[tuple[What, ...]] = ("cancel", "progress", "status")
#: What is aimed at on a processor of today with 10,000 waiting; printed beside what is reached.
TARGET_PER_S: Final = 100_000
BASE: Final = Scenario(10_000)
QUEUE_BASE: Final = Scenario(1_000)
REPLICAS_BASE: Final = Scenario(10_000, replicas=1_000)


class Case(NamedTuple):
    """A scenario by the name that its figures have; cycles are told against those of `base`."""

    name: str
    scenario: Scenario
    base: str = ""


QUICK: Final = (
    Case("policies/all", BASE),
    Case("policies/breakers", Scenario(10_000, policies="breakers"), "policies/all"),
    Case("policies/plain", Scenario(10_000, policies="plain"), "policies/all"),
    Case("queue/1k", QUEUE_BASE),
    Case("replicas/10", Scenario(10_000, replicas=10), "replicas/1k"),
    Case("replicas/1k", REPLICAS_BASE),
)
FULL: Final = (
    *QUICK,
    Case("queue/100k", Scenario(100_000), "queue/1k"),
    Case("queue/1M", Scenario(1_000_000), "queue/1k"),
    Case("replicas/10k", Scenario(10_000, replicas=10_000), "replicas/1k"),
)


class Row(msgspec.Struct, frozen=True):
    """One line of the table: medians in microseconds of CPU time. `speedup`: of the compiled side over the source."""

    name: str
    side: str
    cycles_per_s: float
    cycle_us: float
    submit_us: float
    end_us: float
    ratio: float | None
    speedup: float | None
    others_us: dict[str, float]
    task_bytes: float


class Worker:
    """A process that runs the core, from the sources or as compiled."""

    def __init__(self, side: str) -> None:
        self.side = side
        # -P: the current folder is not searched, so that PYTHONPATH alone says which core it is.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.core_worker"],
            cwd=ROOT,
            env=overlay() if side == "compiled" else os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def do(self, scenario: Scenario, what: What, count: int = 0) -> Measured:
        """Have one job done. Raises `RuntimeError` when the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Job(scenario, what, count)).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.side} core's process ended: see its message above")
        return msgspec.json.decode(line, type=Measured)


class Taken(NamedTuple):
    """All slices of one case on one side."""

    filled: Measured
    slices: list[Measured]
    others: dict[What, list[Measured]]


def measure(workers: list[Worker], cases: tuple[Case, ...], slices: int) -> dict[tuple[str, str], Taken]:
    """All cases on all sides, in turn; the turn's first changes with each repetition."""
    taken: dict[tuple[str, str], Taken] = {}
    for case in cases:
        for worker in workers:
            filled = worker.do(case.scenario, "fill")
            if filled.compiled != (worker.side == "compiled"):
                raise RuntimeError(f"the {worker.side} side does not run the core that it is named after")
            worker.do(case.scenario, "run", SLICE)
            taken[case.name, worker.side] = Taken(filled, [], {what: [] for what in OTHERS})
        print(f"{case.name}: filled", file=sys.stderr, flush=True)
    turns = [(case, worker) for case in cases for worker in workers]
    for repetition in range(slices):
        first = repetition % len(turns)
        for case, worker in turns[first:] + turns[:first]:
            entry = taken[case.name, worker.side]
            entry.slices.append(worker.do(case.scenario, "run", SLICE))
            for what in OTHERS:
                entry.others[what].append(worker.do(case.scenario, what, SLICE))
    return taken


def make_rows(cases: tuple[Case, ...], sides: list[str], taken: dict[tuple[str, str], Taken]) -> list[Row]:
    """Medians over slices; ratios and speed-ups are medians over neighbours."""
    rows = []
    for case in cases:
        for side in sides:
            own = taken[case.name, side]
            cycle_us = statistics.median(each.cycle_us for each in own.slices)
            base = taken.get((case.base, side))
            source = taken[case.name, sides[0]] if side != sides[0] else None
            rows.append(
                Row(
                    name=case.name,
                    side=side,
                    cycles_per_s=1e6 / cycle_us,
                    cycle_us=cycle_us,
                    submit_us=statistics.median(each.submit_ns / each.count / 1000 for each in own.slices),
                    end_us=statistics.median(each.end_ns / each.count / 1000 for each in own.slices),
                    ratio=_beside(own, base) if base is not None else None,
                    speedup=1 / _beside(own, source) if source is not None else None,
                    others_us={
                        what: statistics.median(each.other_us for each in all_) for what, all_ in own.others.items()
                    },
                    task_bytes=own.filled.grown_bytes / own.filled.count,
                )
            )
    return rows


def _beside(own: Taken, other: Taken) -> float:
    """Median quotient of the cycles of slices taken in the same repetition."""
    return statistics.median(
        mine.cycle_us / theirs.cycle_us for mine, theirs in zip(own.slices, other.slices, strict=True)
    )


def figures(rows: list[Row], garbage: int) -> dict[str, float]:
    """What limits can be set on, by name: `case/side/quantity`."""
    found: dict[str, float] = {"garbage_objects": garbage}
    for row in rows:
        place = f"{row.name}/{row.side}"
        found[f"{place}/cycles_per_s"] = row.cycles_per_s
        found[f"{place}/task_bytes"] = row.task_bytes
        if row.ratio is not None:
            found[f"{place}/ratio"] = row.ratio
        if row.speedup is not None:
            found[f"{place}/speedup"] = row.speedup
    return found


def table(rows: list[Row]) -> str:
    """All rows as text."""
    heads = ["", "cycles/s", "cycle", "submit", "end", *OTHERS, "ratio", "speed-up", "bytes/task"]
    lines = [heads]
    for row in rows:
        numbers = [row.cycle_us, row.submit_us, row.end_us, *(row.others_us[what] for what in OTHERS)]
        lines.append(
            [
                f"{row.name}/{row.side}",
                f"{row.cycles_per_s:.0f}",
                *(f"{number:.1f}" for number in numbers),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if row.speedup is None else f"{row.speedup:.2f}",
                f"{row.task_bytes:.0f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def run_all(sides: list[str], cases: tuple[Case, ...], slices: int) -> tuple[list[Row], int]:
    """The rows, and the objects that the core left to the garbage collector."""
    workers = [Worker(side) for side in sides]
    try:
        taken = measure(workers, cases, slices)
        garbage = workers[0].do(cases[0].scenario, "garbage", 10 * SLICE).garbage
    finally:
        for worker in workers:
            worker.close()
    return make_rows(cases, sides, taken), garbage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with limits.yaml; exit 1 where a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there")
    parser.add_argument("--quick", action="store_true", help="no long queues, fewer slices: about a minute")
    parser.add_argument("--compiled", action="store_true", help="measure the compiled core too; compiles it if need be")
    asked = parser.parse_args()
    sides = ["source"]
    if asked.compiled:
        try:
            compile_core()
        except CompileError as error:
            parser.exit(1, f"{error}\n")
        sides.append("compiled")
    cases = QUICK if asked.quick else FULL
    load_before, begun = os.getloadavg()[0], time.monotonic()
    rows, garbage = run_all(sides, cases, 15 if asked.quick else 40)
    reached = figures(rows, garbage)
    # A shorter run is not held to what it left out.
    left_out = asked.quick or not asked.compiled
    limits = {name: limit for name, limit in load_limits("core").items() if name in reached or not left_out}
    missed = shortfalls(reached, limits) if asked.check else []
    machine = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(table(rows))
    print("times in microseconds of CPU; ratio: cycle against 1k waiting, 1k replicas or all policies")
    print(f"target: {TARGET_PER_S} cycles/s with all policies; objects left to the garbage collector: {garbage}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if asked.json:
        report = {"benchmark": "core", "machine": machine, "figures": reached, "rows": rows, "missed": missed}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
