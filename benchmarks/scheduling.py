"""Fairness, overload and honesty of the scheduler: `python benchmarks/scheduling.py [--check] [--real] [--json FILE]`.

The scheduler that serves runs in simulated worlds (`orchestrator/simulation`), over several seeds, the same
tasks for every policy that is compared. `--real` measures the overload case once more on a local Ray with a
paced fake engine (`benchmarks/overload_real.py`). What the figures mean:

- fairness: shares of tokens against weights, by 10 s windows, in which every tenant has work waiting.
- overload: tasks whose answer was complete by their deadline, of all that were sent, against two baselines that
  know no deadlines: first come first served, and strict priority, both to the least loaded replica.
- honesty: told starts against real ones (a task counts as right within 15 % or 50 ms), told chances against what
  happened (expected calibration error), 429s kept (who comes back exactly when told is admitted), and refusals
  and acceptances of deadlines that were wrong. A task let in that is late is a false accept. Under overload
  some task has to go, so a refusal is false only if letting the task in would have put more tasks on time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from benchmarks import scheduling_cases as cases  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from orchestrator.simulation.experiment import build, report  # noqa: E402
from orchestrator.simulation.job import NEVER  # noqa: E402
from orchestrator.simulation.ledger import Column, TaskRow  # noqa: E402
from orchestrator.simulation.report import Report  # noqa: E402
from orchestrator.simulation.scenario import Scenario  # noqa: E402
from orchestrator.simulation.world import World  # noqa: E402

NS_PER_MS: Final = 1_000_000
#: A told start is right within this part of the real wait, or within so many milliseconds.
START_ERROR: Final = 0.15
START_ERROR_MS: Final = 50.0

Figures = dict[str, float]


def simulate(scenario: Scenario, seed: int) -> tuple[World, Report]:
    """Run a scenario to its end; the world still holds the story of each task."""
    world = build(scenario, seed)
    world.run()
    return world, report(world, scenario, seed)


# ------------------------------------------------------------------------ fairness


def fairness(seeds: list[int], quick: bool) -> Figures:
    """Share errors over 10 s windows: of a large set, and of a small one, where single tasks show."""
    figures: Figures = {}
    sizes = {"small": (16, 16, 260.0)} if quick else {"large": (64, 32, 120.0), "small": (16, 16, 260.0)}
    for name, (replicas, slots, seconds) in sizes.items():
        scenario = cases.fairness(replicas=replicas, slots=slots, seconds=seconds, warmup_s=40)
        shares = [simulate(scenario, seed)[1].tenant_shares["interactive"] for seed in seeds]
        figures[f"fairness/{name}/share_error_mean"] = statistics.median(s.mean_error or 0.0 for s in shares)
        figures[f"fairness/{name}/share_error_max"] = statistics.median(s.max_error or 0.0 for s in shares)
        figures[f"fairness/{name}/jain"] = statistics.median(s.jain or 0.0 for s in shares)
        figures[f"fairness/{name}/windows"] = sum(s.windows for s in shares)
    return figures


# ------------------------------------------------------------------------ overload


def overload(seeds: list[int], quick: bool) -> Figures:
    """Deadlines met at 1.5 times what the set can serve, by policy, and over mixes of the classes."""
    figures: Figures = {}
    for mix in (0.75,) if quick else (0.75, 0.6, 0.9):
        name = f"overload/interactive_{mix:.0%}".replace("%", "")
        reports = {
            policy: [simulate(cases.overload(policy, interactive=mix), seed)[1] for seed in seeds]
            for policy in cases.POLICIES
        }
        for policy, runs in reports.items():
            figures[f"{name}/{policy}/met"] = statistics.median(r.total.on_time_of_submitted for r in runs)
        for baseline in ("fifo", "strict"):
            pairs = zip(reports["default"], reports[baseline], strict=True)
            figures[f"{name}/over_{baseline}"] = statistics.median(
                ours.total.on_time / theirs.total.on_time for ours, theirs in pairs
            )
        ours = reports["default"]
        figures[f"{name}/default/interactive_wait_p99_ms"] = statistics.median(
            _wait_p99_ms(r, "interactive") for r in ours
        )
        figures[f"{name}/default/batch_tokens_share"] = statistics.median(
            r.classes["batch"].tokens / r.total.tokens for r in ours
        )
    for mode in ("off", "hard"):
        runs = [simulate(cases.inversion(mode), seed)[1] for seed in seeds]
        name = f"inversion/{mode}"
        figures[f"{name}/interactive_met"] = statistics.median(
            r.classes["interactive"].on_time_of_submitted for r in runs
        )
        figures[f"{name}/interactive_wait_p99_ms"] = statistics.median(_wait_p99_ms(r, "interactive") for r in runs)
        figures[f"{name}/batch_finished"] = statistics.median(
            r.classes["batch"].finished / r.classes["batch"].submitted for r in runs
        )
        figures[f"{name}/preemptions"] = statistics.median(r.preemptions for r in runs)
    return figures


def _wait_p99_ms(run: Report, priority: str) -> float:
    wait = run.classes[priority].wait
    return wait.p99_ms if wait is not None else 0.0


# ------------------------------------------------------------------------ honesty


def honesty(seeds: list[int], quick: bool) -> Figures:
    """Whether what clients are told comes true in steady overload."""
    figures: Figures = {}
    replicas, slots = (8, 8) if quick else (32, 16)
    steady = cases.overload("default", seconds=200, warmup_s=60, capacity=20_000, replicas=replicas, slots=slots)
    deadlined = [simulate(steady, seed) for seed in seeds]
    figures["honesty/start_error"] = statistics.median(_start_error(world) for world, _ in deadlined)
    figures["honesty/start_right"] = statistics.median(_start_right(world) for world, _ in deadlined)
    figures["honesty/calibration_error"] = statistics.median(r.honesty.calibration_error or 0.0 for _, r in deadlined)
    figures["honesty/false_accepts"] = statistics.median(1.0 - r.total.on_time_of_admitted for _, r in deadlined)
    # Deadlines that nobody misses, so that the queue is what is full.
    patient = cases.overload(
        "default",
        seconds=400,
        warmup_s=100,
        capacity=256,
        retrying=0.1,
        deadlines_ms=((600_000, 600_000), (900_000, 900_000)),
    )
    waits = [simulate(patient, seed)[1] for seed in seeds]
    figures["honesty/retries"] = sum(r.honesty.promises for r in waits)
    figures["honesty/retries_kept"] = statistics.median(r.honesty.kept_promises or 0.0 for r in waits)
    figures.update(_false_rejects(seeds))
    return figures


def _starts(world: World) -> list[tuple[float, float]]:
    """(told, real) wait in ms of the tasks that had to wait."""
    rows = world.clients.ledger.columns(Column.ADMITTED_NS, Column.STARTED_NS, Column.PREDICTED_MS)
    return [
        (float(predicted_ms), (started_ns - admitted_ns) / NS_PER_MS)
        for admitted_ns, started_ns, predicted_ms in rows
        if started_ns != NEVER and admitted_ns != NEVER and predicted_ms
    ]


def _start_error(world: World) -> float:
    """Median error as a part of what is allowed: 1.0 is 15 % or 50 ms off, whichever is more."""
    return statistics.median(
        abs(told - real) / max(START_ERROR * real, START_ERROR_MS) for told, real in _starts(world)
    )


def _start_right(world: World) -> float:
    errors = [abs(told - real) <= max(START_ERROR * real, START_ERROR_MS) for told, real in _starts(world)]
    return sum(errors) / len(errors)


def _false_rejects(seeds: list[int]) -> Figures:
    """What letting refused tasks in would have gained: tasks on time, per refused task let in.

    The same world is run again with a tenth of the tasks that were refused let in, by the smallest
    deadline that was offered to them; all are judged by the deadlines they came with.
    """
    gains: list[float] = []
    own: list[float] = []
    for seed in seeds:
        scenario = cases.overload("default", seconds=400, warmup_s=60)
        world, before = simulate(scenario, seed)
        refused = [row for row in world.clients.ledger.rows() if _was_refused(row, scenario)]
        chosen = Random(seed).sample(refused, len(refused) // 10)
        offers = {row.task_id: row.earliest_deadline_ms * 21 // 20 for row in chosen}
        again = build(scenario, seed, deadline_override=offers)
        again.run()
        let_in = [r for r in again.clients.ledger.rows() if r.task_id in offers and r.admitted_ns != NEVER]
        after = report(again, scenario, seed)
        gains.append((after.total.on_time - before.total.on_time) / len(let_in))
        own.append(sum(row.on_time for row in let_in) / len(let_in))
    return {
        "honesty/false_rejects": max(0.0, statistics.median(gains)),
        "honesty/refused_gain": statistics.median(gains),
        "honesty/refused_on_time_themselves": statistics.median(own),
    }


def _was_refused(row: TaskRow, scenario: Scenario) -> bool:
    counted = row.arrived_ns >= scenario.warmup_s * 1e9
    return counted and row.outcome == "refused DEADLINE_UNMET" and row.earliest_deadline_ms > 0


# ------------------------------------------------------------------------ running

PARTS: Final[dict[str, Callable[[list[int], bool], Figures]]] = {
    "fairness": fairness,
    "overload": overload,
    "honesty": honesty,
}


def main() -> int:
    """Exit status 0, or 1 when `--check` finds a limit missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--check", action="store_true", help="hold the figures against limits.yaml")
    parser.add_argument("--quick", action="store_true", help="one seed, small worlds")
    parser.add_argument("--real", action="store_true", help="the overload case on a local Ray as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    seeds = [1] if options.quick else [1, 2, 3]
    figures: Figures = {}
    for name in options.parts or PARTS:
        began = time.monotonic()
        part = PARTS[name](seeds, options.quick)
        figures |= part
        print(f"{name}, {len(seeds)} seeds, {time.monotonic() - began:.0f} s")
        for figure, value in part.items():
            print(f"  {figure:<58}{value:>12,.4g}")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    missed: list[str] = []
    if options.check:
        limits = load_limits("scheduling")
        wanted = {name: limit for name, limit in limits.items() if name in figures or not options.parts}
        missed = shortfalls(figures, wanted)
        print("\n".join(f"MISSED {line}" for line in missed) or "all limits hold")
    if options.real:
        from benchmarks import overload_real

        flags = [*(["--check"] if options.check else []), *(["--quick"] if options.quick else [])]
        return max(overload_real.main(flags), 1 if missed else 0)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
