"""The table of a run, and the JSON beside it that has all that is needed to look into a failure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from tests.chaos.audit import ALLOWED_FAILURES, Check
from tests.chaos.history import FaultRecord, Reference, TaskHistory
from tests.chaos.pauses import Bound, Pause, by_kind, quantile, reattach_times
from tests.chaos.plan import FaultPlan, Recipe, TaskPlan

FINDINGS_SHOWN: Final = 5
Rows = list[tuple[str, ...]]


class Run(msgspec.Struct):
    """Everything about one run."""

    seed: int
    seconds: float
    only: list[str]
    recipes: list[Recipe]
    plans: list[TaskPlan]
    fault_plans: list[FaultPlan]
    reference: dict[int, Reference] = {}
    histories: list[TaskHistory] = []
    faults: list[FaultRecord] = []
    checks: list[Check] = []
    bounds: list[Bound] = []
    pauses: list[Pause] = []
    notes: list[str] = []
    logs: str = ""

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(each.holds for each in (*self.checks, *self.fault_checks()))

    @property
    def bounds_hold(self) -> bool:
        return all(bound.held for bound in self.bounds)

    def fault_checks(self) -> list[Check]:
        """Faults were done as planned, and what they broke was back."""
        done = [each for each in self.faults if each.was_done]
        never = tuple(f"{each.kind} at {each.at_s:.1f} s, {each.victim}" for each in done if each.back_s < 0)
        kinds = {plan.kind for plan in self.fault_plans}
        undone = tuple(
            f"{kind}: " + "; ".join(sorted({each.note for each in self.faults if each.planned == kind}))
            for kind in sorted(kinds - {each.kind for each in done} - {each.planned for each in done})
        )
        return [
            Check("each planned kind of fault was done", f"{len(done)} faults of {len(kinds)} kinds", undone),
            Check("what was broken was back", f"{len(done) - len(never)} of {len(done)}", never),
        ]


def lines(run: Run) -> Iterator[str]:
    """The table: faults, pauses, audit, bounds."""
    yield f"chaos: seed {run.seed}, {run.seconds:.0f} s of load" + (f", only {', '.join(run.only)}" if run.only else "")
    yield ""
    yield from columns([("fault", "done", "back p50", "back max", "pauses", "p50", "p99", "max"), *_fault_rows(run)])
    yield ""
    yield from _clients(run)
    yield ""
    yield from audit_lines(run)
    yield ""
    yield from columns(
        [("bound", "", "", ""), *(("held" if b.held else "MISSED", b.name, b.limit, b.measured) for b in run.bounds)]
    )
    yield ""
    yield "failures that are allowed: " + "; ".join(f"{code}: {why}" for code, why in ALLOWED_FAILURES.items())
    yield from run.notes


def audit_lines(run: Run) -> Iterator[str]:
    """The checks, and under them what speaks against those that fail."""
    rows: Rows = [("audit", "", "")]
    for check in (*run.checks, *run.fault_checks()):
        rows.append(("holds" if check.holds else "FAILS", check.name, check.counted))
    yield from columns(rows)
    for check in (*run.checks, *run.fault_checks()):
        for finding in check.findings[:FINDINGS_SHOWN]:
            yield f"  {check.name}: {finding}"
        if len(check.findings) > FINDINGS_SHOWN:
            yield f"  {check.name}: {len(check.findings) - FINDINGS_SHOWN} more, see the report"


def _fault_rows(run: Run) -> Rows:
    """By kind: how many, time until whole again, and the pauses of streams that overlap."""
    felt = by_kind(run.pauses, run.faults)
    kinds = sorted({each.kind for each in run.faults}) + (["none"] if felt.get("none") else [])
    rows: Rows = []
    for kind in kinds:
        done = [each for each in run.faults if each.kind == kind and each.was_done]
        back = [each.back_s - each.at_s for each in done if each.back_s >= 0]
        rows.append((kind, str(len(done)), _s(quantile(back, 0.5)), _s(max(back, default=0.0)), *_pauses(felt, kind)))
    everything = {"all": list(run.pauses)}
    kills = sum(each.kind.startswith("kill") and each.was_done for each in run.faults)
    rows.append((f"all ({kills} kills)", str(len(run.faults)), "", "", *_pauses(everything, "all")))
    return rows


def _pauses(felt: Mapping[str, Sequence[Pause]], kind: str) -> tuple[str, ...]:
    over = [pause.over_s for pause in felt.get(kind, ())]
    return (str(len(over)), *(_s(quantile(over, share)) for share in (0.5, 0.99, 1.0)))


def _clients(run: Run) -> Iterator[str]:
    accepted = [each for each in run.histories if each.was_admitted]
    resubmitted = sum(max(0, len(each.posts) - 1) for each in run.histories)
    failovers = sum(each.failovers for each in accepted)
    attaches = sum(max(0, len(each.attaches) - 1) for each in accepted)
    early = sum(len(each.early_errors) for each in accepted)
    again = [gap_s for _, gap_s in reattach_times(run.histories)]
    yield (
        f"clients: {len(run.histories)} tasks, {len(accepted)} accepted, {resubmitted} POSTs again, {attaches} attaches"
        f" again, {failovers} failovers seen, {early} error events before the task's end"
    )
    p50, worst = quantile(again, 0.5), max(again, default=0.0)
    yield f"streams that broke were answered again after p50 {p50:.2f} s, max {worst:.2f} s"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds else "-"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_json(run: Run) -> bytes:
    """The whole run."""
    told: dict[str, Any] = msgspec.to_builtins(run)
    told["recipes"] = [msgspec.to_builtins(recipe) for recipe in run.recipes]
    return msgspec.json.format(msgspec.json.encode(told), indent=1)
