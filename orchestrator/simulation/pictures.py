"""Pictures of a run as PNG files. matplotlib is read on use; it comes with the extra `pictures`."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.simulation.job import NEVER
from orchestrator.simulation.ledger import Column
from orchestrator.simulation.report import Report

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_S: Final = 1_000_000_000
SIZE_INCHES: Final = (9, 4.5)
DOTS_PER_INCH: Final = 110
#: Waits are shown as percentiles of so many stretches of the run.
STRETCHES: Final = 60
#: Tenants drawn, those with the most service first.
TENANTS_MAX: Final = 10


class NoPicturesError(RuntimeError):
    """matplotlib is not installed."""

    def __init__(self) -> None:
        super().__init__("pictures need matplotlib: install the extra `pictures` (pip install 'llama-orch[pictures]')")


def draw(world: "World", report: Report, folder: Path) -> list[Path]:
    """Draw everything there is to see of a run that is over; returns the files. Raises `NoPicturesError`."""
    try:
        figures = import_module("matplotlib.figure")
    except ImportError:
        raise NoPicturesError from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, title, paint in (
        ("queue", f"{report.scenario}: waiting tasks and busy slots", _queue),
        ("waits", f"{report.scenario}: waits from admission to start", _waits),
        ("shares", f"{report.scenario}: share of the tokens of tasks that started", _shares),
        ("calibration", f"{report.scenario}: chance of being on time, told and real", _calibration),
    ):
        figure = figures.Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        paint(axes, world, report)
        axes.grid(visible=True, alpha=0.3)
        path = folder / f"{name}.png"
        figure.savefig(path)
        files.append(path)
    return files


def _queue(axes: Any, world: "World", _: Report) -> None:
    timeline = world.timeline
    for priority, waiting in timeline.waiting.items():
        axes.plot(timeline.at_s, waiting, label=f"{priority} waiting")
    axes.plot(timeline.at_s, timeline.busy, label="busy slots", color="grey", linestyle=":")
    axes.set_xlabel("seconds")
    axes.set_ylabel("tasks")
    axes.set_ylim(bottom=0)
    axes.legend()


def _waits(axes: Any, world: "World", _: Report) -> None:
    """Median and 90th percentile by class, by the time of the start."""
    ledger = world.clients.ledger
    stretch_ns = max(1, world.horizon_ns // STRETCHES)
    found: dict[str, dict[int, list[int]]] = {priority: {} for priority in world.timeline.waiting}
    for flow, admitted_ns, started_ns in ledger.columns(Column.FLOW, Column.ADMITTED_NS, Column.STARTED_NS):
        if started_ns != NEVER:
            stretches = found.setdefault(ledger.flows.meters[flow].priority, {})
            stretches.setdefault(started_ns // stretch_ns, []).append(started_ns - admitted_ns)
    for priority, stretches in found.items():
        keys = sorted(stretches)
        at_s = [(key + 0.5) * stretch_ns / NS_PER_S for key in keys]
        waits = [sorted(stretches[key]) for key in keys]
        (line,) = axes.plot(at_s, [w[len(w) // 2] / NS_PER_S for w in waits], label=f"{priority} median")
        high = [w[len(w) * 9 // 10] / NS_PER_S for w in waits]
        axes.plot(at_s, high, label=f"{priority} 90th percentile", color=line.get_color(), linestyle="--")
    axes.set_xlabel("seconds")
    axes.set_ylabel("wait in seconds")
    axes.set_ylim(bottom=0)
    axes.legend()


def _shares(axes: Any, world: "World", _: Report) -> None:
    """Each window's tokens by class and tenant, as a share of all."""
    flows = world.clients.ledger.flows
    meters = sorted(flows.meters, key=lambda meter: -sum(meter.service.values()))[:TENANTS_MAX]
    windows = range(world.horizon_ns // flows.window_ns)
    sums = [sum(meter.service.get(window, 0) for meter in flows.meters) or 1 for window in windows]
    at_s = [(window + 0.5) * flows.window_ns / NS_PER_S for window in windows]
    for meter in meters:
        shares = [meter.service.get(window, 0) / sums[window] for window in windows]
        axes.plot(at_s, shares, label=f"{meter.priority} {meter.tenant}, weight {meter.class_weight} x {meter.weight}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1)
    if meters:
        axes.legend()


def _calibration(axes: Any, _: "World", report: Report) -> None:
    """On the diagonal, what clients were told came true."""
    bins = report.honesty.bins
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot([b.told for b in bins], [b.on_time for b in bins], marker="o")
    for entry in bins:
        axes.annotate(f"{entry.tasks:,}", (entry.told, entry.on_time), textcoords="offset points", xytext=(6, -10))
    axes.set_xlabel("told chance of being on time (numbers: tasks)")
    axes.set_ylabel("share that was on time")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1.05)
