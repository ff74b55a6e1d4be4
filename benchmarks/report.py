"""From samples to figures and a table: medians over repetitions, each beside its direct neighbour."""

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.load import Result

#: Columns of CPU time, in the order in which a request passes them.
CPU_GROUPS: Final = ("driver", "haproxy", "ingress", "scheduler", "replica", "engine", "ray")


class Sample(msgspec.Struct, frozen=True):
    """One repetition: what the driver measured, CPU seconds meanwhile by process group, and how long that was."""

    result: Result
    cpu_s: dict[str, float]
    wall_s: float


class Row(msgspec.Struct, frozen=True):
    """One line of the table; times in milliseconds, CPU in microseconds per token (per request where none is made)."""

    pace: str
    streams: int
    side: str
    requests: int
    requests_per_s: float
    tokens_per_s: float
    tokens_ratio: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    ttft_added_ms: float | None
    cpu_us: dict[str, float]
    foreign_cpu: float

    @property
    def name(self) -> str:
        return f"{self.pace}/{self.streams}/{self.side}"


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all are no greater than (nearest rank)."""
    ordered = sorted(samples)
    rank = -int(-share * len(ordered) // 1)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def make_row(
    pace: str, streams: int, side: str, samples: Sequence[Sample], direct: Sequence[Sample] | None = None
) -> Row:
    """Summarize the repetitions of one side. `direct` holds those that ran beside them, in the same order.

    Rates and ratios are medians over repetitions, p50 too; p99 is over all requests. Added time to first
    token is the median difference of the p50 of neighbours.
    """
    results = [sample.result for sample in samples]
    p50s = [percentile(result.first_token_ms, 0.5) for result in results if result.first_token_ms]
    firsts = [ms for result in results for ms in result.first_token_ms]
    ratio = added = None
    if direct is not None:
        beside = [sample.result for sample in direct]
        ratio = statistics.median(_rate(own) / _rate(other) for own, other in zip(results, beside, strict=True))
        added = statistics.median(
            own - percentile(other.first_token_ms, 0.5) for own, other in zip(p50s, beside, strict=True)
        )
    return Row(
        pace=pace,
        streams=streams,
        side=side,
        requests=sum(result.requests for result in results),
        requests_per_s=statistics.median(result.requests / result.seconds for result in results),
        tokens_per_s=statistics.median(_rate(result) for result in results),
        tokens_ratio=ratio,
        ttft_p50_ms=statistics.median(p50s) if p50s else None,
        ttft_p99_ms=percentile(firsts, 0.99) if firsts else None,
        ttft_added_ms=added,
        cpu_us=_cpu_us(samples),
        foreign_cpu=_foreign_cpu(samples),
    )


def _rate(result: Result) -> float:
    return result.tokens / result.seconds


def _cpu_us(samples: Sequence[Sample]) -> dict[str, float]:
    units = sum(sample.result.tokens or sample.result.requests for sample in samples)
    groups = {group for sample in samples for group in sample.cpu_s if group != "machine"}
    return {group: sum(sample.cpu_s[group] for sample in samples) * 1e6 / max(units, 1) for group in sorted(groups)}


def _foreign_cpu(samples: Sequence[Sample]) -> float:
    """Processors kept busy by whom we did not start, on average: what else the machine did meanwhile."""
    machine = sum(sample.cpu_s["machine"] for sample in samples)
    ours = sum(sum(sample.cpu_s.values()) for sample in samples) - machine
    return max(0.0, (machine - ours) / sum(sample.wall_s for sample in samples))


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """What limits can be set on, by name: `pace/streams/side/quantity`."""
    found: dict[str, float] = {}
    for row in rows:
        for quantity in ("requests_per_s", "tokens_per_s", "tokens_ratio", "ttft_added_ms"):
            value = getattr(row, quantity)
            if value is not None:
                found[f"{row.name}/{quantity}"] = value
    return found


def table(rows: Sequence[Row]) -> str:
    """All rows as text."""
    heads = ["", "req/s", "tok/s", "ratio", "ttft50", "ttft99", "added", *CPU_GROUPS, "others"]
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _cells(row: Row) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.name,
        cell(row.requests_per_s, ".1f"),
        cell(row.tokens_per_s or None, ".0f"),
        cell(row.tokens_ratio, ".3f"),
        cell(row.ttft_p50_ms, ".2f"),
        cell(row.ttft_p99_ms, ".2f"),
        cell(row.ttft_added_ms, "+.2f"),
        *(cell(row.cpu_us.get(group), ".1f") for group in CPU_GROUPS),
        cell(row.foreign_cpu, ".2f"),
    ]
