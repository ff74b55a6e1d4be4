"""`llorch simulate --schedules`: many runs of a scenario, each with another random schedule of faults."""

from pathlib import Path
from typing import Final

import msgspec
import typer

from orchestrator.cli_submit import FAILED, OK
from orchestrator.simulation.campaign import ENDS, Verdict, campaign
from orchestrator.simulation.scenario import Scenario

COLUMNS: Final = ("seed", "faults", "tasks", "accepted", "finished", "failed", "lost", "taken up", "restarts", "full")


def run_schedules(scenario: Scenario, path: Path, seeds: range, workers: int, *, as_json: bool) -> int:
    """Run a schedule for each seed, tell of each as it ends, and say which ones broke a promise."""
    broken: list[Verdict] = []
    total = dict.fromkeys(COLUMNS[1:], 0)
    if not as_json:
        typer.echo("  ".join(f"{name:>8}" for name in COLUMNS))
    for verdict in campaign(scenario, seeds, workers=workers, folder=path.parent):
        row = _row(verdict)
        for name, count in row.items():
            total[name] += count
        if verdict.broken:
            broken.append(verdict)
        if as_json:
            typer.echo(msgspec.json.encode(verdict).decode())
            continue
        typer.echo("  ".join(f"{count:>8,}" for count in (verdict.seed, *row.values())))
        if verdict.broken:
            typer.echo(f"          BROKEN {verdict.broken}")
    if not as_json:
        typer.echo("  ".join([f"{'all':>8}", *(f"{count:>8,}" for count in total.values())]))
    for verdict in broken:
        typer.echo(f"repeat it: llorch simulate {path} --schedules 1 --seed {verdict.seed}", err=True)
    if broken:
        typer.echo(f"{len(broken)} of {len(seeds)} schedules broke a promise", err=True)
    return FAILED if broken else OK


def _row(verdict: Verdict) -> dict[str, int]:
    ends = dict.fromkeys(ENDS, 0)
    for outcome, count in verdict.ends.items():
        end = outcome.partition(" ")[0]
        if end in ends:
            ends[end] += count
    values = (
        verdict.faults,
        verdict.tasks,
        verdict.accepted,
        ends["finished"],
        ends["failed"] + ends["dropped"],
        verdict.lost,
        verdict.adopted,
        verdict.recoveries,
        verdict.full_disks,
    )
    return dict(zip(COLUMNS[1:], values, strict=True))
