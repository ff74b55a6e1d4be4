"""Whether what clients were told came true: predicted starts, probabilities, and times to try again."""

from statistics import median
from typing import Final

from msgspec import Struct

from orchestrator.simulation.job import NEVER
from orchestrator.simulation.ledger import PPM, Column, Ledger

NS_PER_MS: Final = 1_000_000
BINS: Final = 10
#: A wait shorter than this is none.
WAIT_MS_MIN: Final = 1.0
#: Errors of shorter waits are taken relative to this: after 1 ms or after 100, half a second off is as bad.
RELATIVE_TO_MS_MIN: Final = 100.0


class StartErrors(Struct, frozen=True):
    """Predicted start against the real one, of admitted tasks that waited or were told to, and that started.

    `bias_ms` is the median of predicted - real: above 0, clients start earlier than they are told.
    `relative` is the median of |predicted - real| / real, waits under 100 ms taken as that.
    """

    tasks: int
    bias_ms: float | None
    absolute_ms: float | None
    relative: float | None


class Bin(Struct, frozen=True):
    """Admitted tasks whose chance of being on time was told to be about the same."""

    tasks: int
    told: float
    on_time: float


class Honesty(Struct, frozen=True):
    """`calibration_error` is the expected calibration error over ten bins of `on_time_probability`.

    `kept_promises` is the share of clients that came back when a 429 told them to and were admitted.
    """

    starts: StartErrors
    calibration_error: float | None
    bins: list[Bin]
    promises: int
    kept_promises: float | None


def honesty(ledger: Ledger) -> Honesty:
    """How honest the answers were to the tasks that count."""
    bins = _bins(ledger)
    told = sum(entry.tasks for entry in bins)
    promises = ledger.promises_kept + ledger.promises_broken
    return Honesty(
        starts=_starts(ledger),
        calibration_error=sum(b.tasks * abs(b.told - b.on_time) for b in bins) / told if told else None,
        bins=bins,
        promises=promises,
        kept_promises=ledger.promises_kept / promises if promises else None,
    )


def _starts(ledger: Ledger) -> StartErrors:
    errors: list[float] = []
    relative: list[float] = []
    rows = ledger.columns(Column.ADMITTED_NS, Column.STARTED_NS, Column.PREDICTED_MS)
    for admitted_ns, started_ns, predicted_ms in rows:
        if started_ns == NEVER:
            continue
        waited_ms = (started_ns - admitted_ns) / NS_PER_MS
        if predicted_ms or waited_ms >= WAIT_MS_MIN:
            errors.append(predicted_ms - waited_ms)
            relative.append(abs(predicted_ms - waited_ms) / max(waited_ms, RELATIVE_TO_MS_MIN))
    if not errors:
        return StartErrors(0, None, None, None)
    return StartErrors(len(errors), median(errors), median(map(abs, errors)), median(relative))


def _bins(ledger: Ledger) -> list[Bin]:
    counts, told, hits = [0] * BINS, [0.0] * BINS, [0] * BINS
    finished = [outcome == "finished" for outcome in ledger.outcomes]
    # A client that cancels its own task says nothing about the forecast.
    canceled = [outcome.startswith("canceled") for outcome in ledger.outcomes]
    rows = ledger.columns(
        Column.ADMITTED_NS, Column.ENDED_NS, Column.DEADLINE_NS, Column.PROBABILITY_PPM, Column.OUTCOME
    )
    for admitted_ns, ended_ns, deadline_ns, ppm, outcome in rows:
        if admitted_ns == NEVER or canceled[outcome]:
            continue
        probability = ppm / PPM
        index = min(BINS - 1, max(0, int(probability * BINS)))
        counts[index] += 1
        told[index] += probability
        hits[index] += finished[outcome] and ended_ns <= deadline_ns
    return [Bin(n, told[i] / n, hits[i] / n) for i, n in enumerate(counts) if n]
