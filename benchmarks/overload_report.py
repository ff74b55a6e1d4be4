"""From what clients saw in the overload case to rows, figures and a table."""

from collections import Counter
from typing import Final

import msgspec

from benchmarks.overload_load import Ending
from benchmarks.report import percentile

CLASSES: Final = ("interactive", "batch")
_RESUMED: Final = b'"resumed":true'


class Tally(msgspec.Struct, frozen=True):
    """One class under one policy. `accepted` are those that were not refused at once.

    Waits are theirs; what was dropped without a start counts with how long it had waited until then.
    `errors` counts refused, dropped and given-up tasks by code and, where the answer was one, HTTP status.
    `tokens_per_s` counts tasks that ended while they were counted. `resumed` counts interruptions gone over.
    """

    policy: str
    priority: str
    offered: int
    met: int
    met_percent: float
    late: int
    accepted: int
    wait_p50_ms: float
    wait_p99_ms: float
    tokens_per_s: float
    resumed: int
    lag_p99_ms: float
    errors: dict[str, int]


def tallies(policy: str, endings: list[Ending], warm_up_s: float, counted_s: float) -> list[Tally]:
    """One row for each class, and tokens of what ended between the warm-up and the last arrival."""
    from_ms, until_ms = warm_up_s * 1000, (warm_up_s + counted_s) * 1000
    counted = [ending for ending in endings if ending.arrival.at_ms >= from_ms]
    rows = []
    for priority in CLASSES:
        tokens = sum(
            ending.tokens
            for ending in endings
            if ending.arrival.priority == priority
            and ending.code == ""
            and from_ms <= ending.arrival.at_ms + ending.ended_ms < until_ms
        )
        rows.append(_tally(policy, priority, counted, tokens / counted_s))
    return rows


def preemption_tallies(policy: str, endings: list[Ending]) -> list[Tally]:
    """All tasks count; tokens per second are over the time until the last batch task ended."""
    seconds = max(ending.arrival.at_ms + ending.ended_ms for ending in endings) / 1000
    return [
        _tally(
            policy,
            priority,
            endings,
            sum(ending.tokens for ending in endings if ending.arrival.priority == priority) / seconds,
        )
        for priority in CLASSES
    ]


def _tally(policy: str, priority: str, counted: list[Ending], tokens_per_s: float) -> Tally:
    own = [ending for ending in counted if ending.arrival.priority == priority]
    accepted = [ending for ending in own if ending.status in (0, 200)]
    waits = [ending.waited_ms for ending in accepted] or [0.0]
    met = sum(ending.met for ending in own)
    return Tally(
        policy=policy,
        priority=priority,
        offered=len(own),
        met=met,
        met_percent=100 * met / max(1, len(own)),
        late=sum(ending.code == "" and not ending.met for ending in own),
        accepted=len(accepted),
        wait_p50_ms=percentile(waits, 0.5),
        wait_p99_ms=percentile(waits, 0.99),
        tokens_per_s=tokens_per_s,
        resumed=sum(ending.body.count(_RESUMED) for ending in own),
        lag_p99_ms=percentile([ending.lag_ms for ending in own] or [0.0], 0.99),
        errors=dict(sorted(Counter(_error(ending) for ending in own if ending.code).items())),
    )


def _error(ending: Ending) -> str:
    return f"{ending.code} {ending.status}" if ending.status not in (0, 200) else ending.code


def figures(rows: list[Tally]) -> dict[str, float]:
    """What limits are set for. Ratios to nothing are taken to one, so that they stay finite."""
    by = {(row.policy, row.priority): row for row in rows}

    def met(policy: str) -> int:
        return sum(by[policy, priority].met for priority in CLASSES)

    others = ("fifo", "fifo_short", "strict", "strict_short")
    reached = {f"default_over_{other}": met("default") / max(1, met(other)) for other in others}
    for priority in CLASSES:
        reached[f"default/{priority}/met_percent"] = by["default", priority].met_percent
    accepted = sum(by["default", priority].accepted for priority in CLASSES)
    reached["default/accepted_met_percent"] = 100 * met("default") / max(1, accepted)
    reached["default/batch/tokens_per_s"] = by["default", "batch"].tokens_per_s
    off, hard = by["preemption_off", "interactive"], by["preemption_hard", "interactive"]
    reached["preemption/hard_over_off"] = hard.met / max(1, off.met)
    reached["preemption/wait_p50_ratio"] = off.wait_p50_ms / max(1.0, hard.wait_p50_ms)
    reached["preemption/wait_p99_ratio"] = off.wait_p99_ms / max(1.0, hard.wait_p99_ms)
    reached["preemption_hard/interactive/met_percent"] = hard.met_percent
    reached["preemption_hard/batch/met_percent"] = by["preemption_hard", "batch"].met_percent
    reached["preemption_hard/batch/resumed"] = by["preemption_hard", "batch"].resumed
    return {name: round(value, 3) for name, value in reached.items()}


def table(rows: list[Tally]) -> str:
    """For people."""
    lines = [
        f"{'policy':16}{'class':12}{'offered':>8}{'met':>6}{'met %':>7}{'accepted':>9}{'late':>6}"
        f"{'wait p50':>10}{'p99 ms':>8}{'tokens/s':>10}{'resumed':>8}{'lag p99':>8}  refused, dropped, given up"
    ]
    for row in rows:
        errors = ", ".join(f"{code}: {count}" for code, count in row.errors.items())
        lines.append(
            f"{row.policy:16}{row.priority:12}{row.offered:8}{row.met:6}{row.met_percent:7.1f}"
            f"{row.accepted:9}{row.late:6}{row.wait_p50_ms:10.0f}{row.wait_p99_ms:8.0f}"
            f"{row.tokens_per_s:10.0f}{row.resumed:8}{row.lag_p99_ms:8.1f}  {errors}"
        )
    return "\n".join(lines)
