"""A report as text for people who plan capacity: what is needed, what each class sees, who is refused."""

from typing import Final

from orchestrator.simulation.honesty import Honesty
from orchestrator.simulation.report import Group, Report, Spread
from orchestrator.simulation.shares import ShareReport

#: Tenants shown, those with the most tasks first.
TENANTS_MAX: Final = 12
_NONE: Final = "-"


def render(report: Report) -> str:
    """The report as lines of plain text."""
    blocks = [
        _opening(report),
        _groups("class", list(report.classes.items())),
        _tenants(report.tenants),
        _counts(report),
        _fairness(report),
        _honesty(report.honesty),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _opening(report: Report) -> str:
    load, total, goodput = report.load, report.total, report.goodput
    enough = "enough" if load.replicas_needed <= load.replicas else "too few"
    rows = [
        [
            "run",
            f"{report.scenario}, seed {report.seed}: {total.submitted:,} tasks in {report.counted_s:g} s,"
            f" {report.steps:,} steps of the scheduler",
        ],
        [
            "capacity",
            f"{_many(load.replicas, 'replica')}, {_many(load.slots, 'slot')}, {load.utilisation:.0%} busy",
        ],
        [
            "demand",
            f"{load.slots_needed:.1f} busy slots on average if all were served;"
            f" {_many(load.replicas_needed, 'replica')} at 80 % busy: {enough}",
        ],
        ["goodput", f"{goodput.tasks_per_s:.2f} tasks/s and {goodput.tokens_per_s:,.0f} tokens/s on time"],
        [
            "on time",
            f"{total.on_time_of_submitted:.1%} of submitted, {total.on_time_of_admitted:.1%} of admitted tasks",
        ],
    ]
    return _columns(rows, left=2)


def _groups(kind: str, groups: list[tuple[str, Group]]) -> str:
    rows = [
        [
            kind,
            "tasks",
            "admitted",
            "on time",
            "of admitted",
            "wait p50",
            "p90",
            "p99",
            "first token p50",
            "p90",
            "p99",
        ]
    ]
    for name, group in groups:
        if not group.submitted:
            continue
        rows.append(
            [
                name,
                f"{group.submitted:,}",
                f"{group.admitted:,}",
                f"{group.on_time_of_submitted:.1%}",
                f"{group.on_time_of_admitted:.1%}",
                *_spread(group.wait),
                *_spread(group.first_token),
            ]
        )
    return _columns(rows, left=1)


def _tenants(tenants: dict[str, Group]) -> str:
    if len(tenants) < 2:
        return ""
    busiest = sorted(tenants.items(), key=lambda entry: (-entry[1].submitted, entry[0]))
    text = _groups("tenant", busiest[:TENANTS_MAX])
    left_out = len(busiest) - TENANTS_MAX
    return f"{text}\nand {_many(left_out, 'more tenant')}" if left_out > 0 else text


def _counts(report: Report) -> str:
    refused = report.refused_submissions
    rows = [
        ["outcomes", ", ".join(f"{count:,} {name}" for name, count in report.outcomes.items()) or "none"],
        ["refusals", ", ".join(f"{count:,} x {code}" for code, count in refused.items()) or "none"],
        ["disturbed", f"{report.preemptions:,} preempted, {report.retried_attempts:,} attempts tried again"],
    ]
    lost = report.lost
    if lost.attempts or lost.recoveries:
        told = f"{lost.attempts:,} attempts with their replicas or links; {lost.adopted:,} were taken up again"
        rows.append(["lost", f"{told}; {_many(lost.recoveries, 'restart')} of the scheduler"])
    return _columns(rows, left=2)


def _fairness(report: Report) -> str:
    """Only what contended: shares say nothing where there was enough for all."""
    rows = [["shares while backlogged", "windows", "got", "due", "mean error", "Jain index"]]
    named: list[tuple[str, ShareReport]] = [("class", report.class_shares)]
    named += [(f"tenant in {priority}", shares) for priority, shares in report.tenant_shares.items()]
    for kind, shares in named:
        for position, flow in enumerate(shares.flows[:TENANTS_MAX]):
            error, index = shares.mean_error, shares.jain
            rows.append(
                [
                    f"{kind} {flow.name}",
                    str(flow.windows),
                    f"{flow.share:.1%}",
                    f"{flow.due:.1%}",
                    _NONE if position or error is None else f"{error:.1%}",
                    _NONE if position or index is None else f"{index:.4f}",
                ]
            )
    return _columns(rows, left=1) if len(rows) > 1 else ""


def _honesty(honesty: Honesty) -> str:
    starts = honesty.starts
    rows: list[list[str]] = []
    if starts.bias_ms is not None and starts.absolute_ms is not None and starts.relative is not None:
        told = f"{_ms(abs(starts.bias_ms))} too {'late' if starts.bias_ms >= 0 else 'early'}"
        rows.append(
            [
                "predicted start",
                f"of {_many(starts.tasks, 'task')} that waited: median off by {_ms(starts.absolute_ms)}"
                f" ({starts.relative:.0%}), told {told}",
            ]
        )
    if honesty.calibration_error is not None:
        rows.append(["told chance of being on time", f"off by {honesty.calibration_error:.1%} on average"])
    if honesty.kept_promises is not None:
        rows.append(
            [
                "told when to try again",
                f"of {_many(honesty.promises, 'client')} that came back, {honesty.kept_promises:.1%} were admitted",
            ]
        )
    return _columns(rows, left=2)


def _spread(spread: Spread | None) -> list[str]:
    return [_NONE] * 3 if spread is None else [_ms(spread.p50_ms), _ms(spread.p90_ms), _ms(spread.p99_ms)]


def _ms(value_ms: float) -> str:
    """Three digits are enough to plan with."""
    if value_ms < 1000:
        return f"{value_ms:.0f} ms"
    return f"{value_ms / 1000:.2f} s" if value_ms < 10_000 else f"{value_ms / 1000:.1f} s"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _columns(rows: list[list[str]], *, left: int) -> str:
    """Rows as aligned columns; the first `left` columns are text, the others figures."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
