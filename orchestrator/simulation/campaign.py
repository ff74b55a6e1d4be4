"""Many runs of one scenario, each with a random schedule of faults, over several processes.

A run is good if no promise was broken while it went on, and if its books add up at its end: every task that arrived
was refused or accepted, and every one that was accepted ended once, finished, canceled, or with a typed error.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from msgspec import Struct

from contracts.errors import HTTP_STATUS
from orchestrator.simulation import experiment
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.schedules import disturbed
from orchestrator.simulation.world import World

#: How an accepted task may end, and with which of them an error comes.
ENDS: Final = ("finished", "canceled", "failed", "dropped")
WITH_ERROR: Final = ("failed", "dropped", "refused")


class Verdict(Struct, frozen=True):
    """What one schedule came to. `broken` says what went wrong; empty: nothing."""

    seed: int
    faults: int = 0
    tasks: int = 0
    accepted: int = 0
    ends: dict[str, int] = {}
    lost: int = 0
    adopted: int = 0
    recoveries: int = 0
    full_disks: int = 0
    steps: int = 0
    broken: str = ""


def run(scenario: Scenario, seed: int, folder: Path | None = None) -> Verdict:
    """One schedule, to its end."""
    what = disturbed(scenario, seed)
    world = experiment.build(what, seed, folder=folder)
    broken = ""
    try:
        world.run()
        _check_books(world)
    except (BrokenPromiseError, AssertionError) as error:
        broken = f"after {world.now_ns / 1e9:.3f} s: {str(error) or type(error).__name__}"
    except Exception as error:  # a bug anywhere is what is looked for, and the next schedule is to be run all the same
        broken = f"after {world.now_ns / 1e9:.3f} s: {type(error).__name__}: {error}"
    return _verdict(world, seed, len(what.faults), broken)


def campaign(
    scenario: Scenario, seeds: Sequence[int], *, workers: int = 1, folder: Path | None = None
) -> Iterator[Verdict]:
    """A schedule for each seed, in the order of the seeds."""
    if workers == 1:
        for seed in seeds:
            yield run(scenario, seed, folder)
        return
    # Started anew, not forked: nothing of this process is to leak into a run.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, [scenario] * len(seeds), seeds, [folder] * len(seeds))


def _verdict(world: World, seed: int, faults: int, broken: str) -> Verdict:
    ledger, durability = world.clients.ledger, world.durability
    ends: dict[str, int] = {}
    accepted = 0
    for row in ledger.rows():
        ends[row.outcome] = ends.get(row.outcome, 0) + 1
        accepted += row.admitted_ns != NEVER
    return Verdict(
        seed=seed,
        faults=faults,
        tasks=len(ledger),
        accepted=accepted,
        ends=dict(sorted(ends.items())),
        lost=ledger.lost,
        adopted=ledger.adopted,
        recoveries=world.recoveries,
        full_disks=0 if durability is None else durability.failures,
        steps=world.steps,
        broken=broken,
    )


def _check_books(world: World) -> None:
    """Raise `BrokenPromiseError` unless every task that arrived is there once, and ended as it may."""
    seen: set[str] = set()
    for row in world.clients.ledger.rows():
        if row.task_id in seen:
            raise BrokenPromiseError(f"{row.task_id} is in the books twice")
        seen.add(row.task_id)
        end, _, code = row.outcome.partition(" ")
        if (end in ENDS) != (row.admitted_ns != NEVER):
            raise BrokenPromiseError(f"{row.task_id} is {row.outcome}, admitted at {row.admitted_ns}")
        if (code in HTTP_STATUS) != (end in WITH_ERROR):
            raise BrokenPromiseError(f"{row.task_id} is {row.outcome}: no typed end")
    if len(seen) != world.clients.arrived:
        raise BrokenPromiseError(f"{world.clients.arrived} tasks arrived, {len(seen)} are in the books")
