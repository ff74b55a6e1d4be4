"""`llorch simulate`: what would the scheduler do with this load, on that many replicas, under those policies?"""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli_schedules import run_schedules
from orchestrator.cli_submit import FAILED, INTERRUPTED, OK, USAGE
from orchestrator.scenariofile import ScenarioError, load
from orchestrator.simulation import experiment
from orchestrator.simulation.errors import BrokenPromiseError, TraceError
from orchestrator.simulation.eventlog import EventLog, replay
from orchestrator.simulation.faults import UnknownReplicaError
from orchestrator.simulation.pictures import NoPicturesError, draw
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.table import render


def simulate(
    scenario: Annotated[Path | None, typer.Argument(help="scenario file; see examples/simulation")] = None,
    seed: Annotated[int, typer.Option("--seed", help="another seed is another run of the same scenario")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="the whole report as JSON")] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PLACE=VALUE", help="over the file, as in pools.gpu.replicas=6; repeatable"),
    ] = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="folder for pictures as PNG")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="write the event log here; .jsonl for text")] = None,
    replayed: Annotated[Path | None, typer.Option("--replay", help="repeat an event log instead")] = None,
    schedules: Annotated[
        int | None,
        typer.Option("--schedules", min=1, help="as many runs, each with another random schedule of faults"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="processes that share the schedules")] = 1,
) -> None:
    """Run a scenario in simulated time, with the same scheduler as the cluster, and report."""
    if (scenario is None) == (replayed is None):
        _say("name a scenario file, or an event log with --replay")
        raise typer.Exit(USAGE)
    if schedules is not None and (replayed or pictures or log):
        _say("--schedules goes with a scenario file, and not with --pictures, --log or --replay")
        raise typer.Exit(USAGE)
    path = scenario or Path()
    try:
        if schedules is not None:
            seeds = range(seed, seed + schedules)
            status = run_schedules(load(path, change or []), path, seeds, workers, as_json=as_json)
        else:
            status = _replay(replayed) if replayed else _run(path, seed, change or [], as_json, pictures, log)
    except ScenarioError as error:
        for problem in error.problems:
            _say(f"{problem}")
            if problem.hint:
                _say(f"    {problem.hint}")
        status = FAILED
    except (TraceError, UnknownReplicaError, NoPicturesError, BrokenPromiseError, OSError) as error:
        _say(f"{error}")
        status = FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    raise typer.Exit(status)


def _run(path: Path, seed: int, changes: list[str], as_json: bool, pictures: Path | None, log_path: Path | None) -> int:
    scenario = load(path, changes)
    if log_path is None:
        _report(scenario, seed, path.parent, as_json, pictures, None)
    else:
        with EventLog(log_path) as log:
            _report(scenario, seed, path.parent, as_json, pictures, log)
    return OK


def _report(
    scenario: Scenario, seed: int, folder: Path, as_json: bool, pictures: Path | None, log: EventLog | None
) -> None:
    world = experiment.build(scenario, seed, log=log, folder=folder)
    world.run()
    report = experiment.report(world, scenario, seed)
    typer.echo(report.to_json().decode() if as_json else render(report), nl=as_json)
    for file in draw(world, report, pictures) if pictures else []:
        _say(f"wrote {file}")


def _replay(path: Path) -> int:
    """Whether this version of the scheduler still decides what the log's did."""
    found = replay(path)
    typer.echo(f"{found.steps:,} steps, sha256 of all commands {found.commands}")
    if found.recorded is None:
        typer.echo("the log has no digest to compare with; its run was cut off")
        return OK
    typer.echo("the same commands as recorded" if found.same else f"NOT the commands recorded: {found.recorded}")
    return OK if found.same else FAILED


def _say(text: str) -> None:
    typer.echo(text, err=True)
