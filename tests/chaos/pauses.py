"""Pauses as clients saw them: which faults they overlap, and whether the bounds hold. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from tests.chaos.history import FaultRecord, Reference, TaskHistory
from tests.chaos.plan import TaskPlan

#: A pause is a gap between tokens that is longer than the recipe's longest undisturbed one by this much.
PAUSE_MIN_S: Final = 0.25
#: Bounds of the brief: a lost replica costs the prefix again, times this, plus this.
RERUN_FACTOR: Final = 1.5
RERUN_SLACK_S: Final = 1.0
#: What a stream may stand still while the scheduler is away: the jitter of a busy machine.
SCHEDULER_PAUSE_MAX_S: Final = 1.0
ADMISSION_MAX_S: Final = 5.0
#: Who asks so soon after a kill feels it, also where another leads already: ingresses and replicas link up with that.
ADMISSION_FELT_S: Final = 2.0
#: What holds admissions up besides a kill of the scheduler.
_HOLD_UP: Final = ("stop scheduler", "end scheduler", "disk full", "lose scheduler link", "stop ingress")
REATTACH_MAX_S: Final = 1.0
#: A connection that breaks so soon after a kill broke by it: the kernel closes a dead process's sockets at once.
BROKEN_BY_S: Final = 0.5
#: A fault is felt at most this long after it (detection included), when nothing tells when it was over.
FELT_MAX_S: Final = 10.0


class Pause(Struct, frozen=True):
    """One gap of a stream. `rerun_s` is what making the tokens before it again takes, by the recipe's own pace."""

    task: int
    began_s: float
    ended_s: float
    over_s: float
    rerun_s: float
    moved: bool
    reattached: bool


class Bound(Struct, frozen=True):
    """One bound: what was measured (None: nothing to measure), and whether it held."""

    name: str
    limit: str
    measured: str
    held: bool


def pauses(
    plans: Sequence[TaskPlan], histories: Sequence[TaskHistory], reference: Mapping[int, Reference]
) -> list[Pause]:
    """Gaps of streams that are longer than normal. Slow readers are left out: their gaps are their own.

    The time that a client stayed away of its own will is not part of a pause.
    """
    by_index = {plan.index: plan for plan in plans}
    found = []
    for each in histories:
        plan = by_index[each.index]
        if plan.slow_ms:
            continue
        good = reference[plan.recipe]
        away_s = plan.away_ms / 1000
        for (had, i, _, before_s), (now, _, _, after_s) in zip(each.arrivals, each.arrivals[1:], strict=False):
            left = had != now and each.attaches[had].ended == "left"
            over_s = after_s - before_s - good.gap_max_s - (away_s if left else 0)
            if over_s > PAUSE_MIN_S:
                rerun_s = good.first_token_s + (i + 1) * good.gap_s
                found.append(Pause(each.index, before_s, after_s, over_s, rerun_s, each.failovers > 0, had != now))
    return found


def overlapping(pause: Pause, faults: Sequence[FaultRecord]) -> list[FaultRecord]:
    """The faults that were made or lasted while the stream stood still."""
    return [
        fault for fault in faults if fault.at_s <= pause.ended_s and max(fault.at_s, fault.until_s) >= pause.began_s
    ]


def by_kind(found: Sequence[Pause], faults: Sequence[FaultRecord]) -> dict[str, list[Pause]]:
    """Pauses by the kinds of fault that overlap them; one may count for several, or for `none`."""
    sorted_out: dict[str, list[Pause]] = {}
    for pause in found:
        for kind in sorted({fault.kind for fault in overlapping(pause, faults)}) or ["none"]:
            sorted_out.setdefault(kind, []).append(pause)
    return sorted_out


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; 0 of nothing."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def bounds(found: Sequence[Pause], faults: Sequence[FaultRecord], histories: Sequence[TaskHistory]) -> list[Bound]:
    """What clients are to notice of each kind of loss, at most."""
    return [
        _replica(found, faults),
        _scheduler(found, faults),
        _admissions(faults, histories),
        _ingress(faults, histories),
    ]


def _replica(found: Sequence[Pause], faults: Sequence[FaultRecord]) -> Bound:
    """Streams that went on elsewhere after a kill: half of them within the bound, each with its own prefix."""
    shares = [
        pause.over_s / (RERUN_FACTOR * pause.rerun_s + RERUN_SLACK_S)
        for pause in found
        if pause.moved and {"kill replica", "kill node"} & {fault.kind for fault in overlapping(pause, faults)}
    ]
    p50 = quantile(shares, 0.5)
    return Bound(
        "replica lost: pause p50",
        f"{RERUN_FACTOR} x the prefix made again + {RERUN_SLACK_S:.0f} s",
        f"{p50:.0%} of it, {len(shares)} pauses" if shares else "no pause",
        p50 <= 1,
    )


def _scheduler(found: Sequence[Pause], faults: Sequence[FaultRecord]) -> Bound:
    """Pauses that only a kill of the scheduler can explain."""
    alone = [
        pause.over_s
        for pause in found
        if {fault.kind for fault in overlapping(pause, faults)} == {"kill scheduler"}
        and not any(_is_felt(fault, pause) for fault in faults if fault.kind != "kill scheduler")
    ]
    worst = max(alone, default=0.0)
    return Bound(
        "scheduler lost: running streams",
        f"no pause over {SCHEDULER_PAUSE_MAX_S:.0f} s",
        f"longest {worst:.2f} s, {len(alone)} pauses",
        worst <= SCHEDULER_PAUSE_MAX_S,
    )


def _is_felt(fault: FaultRecord, pause: Pause) -> bool:
    """Whether a fault before the pause may still be the reason: its process was not back yet."""
    return fault.at_s <= pause.ended_s and _over_s(fault) >= pause.began_s


def _over_s(fault: FaultRecord) -> float:
    """When a fault was made good, as far as is known."""
    return max(fault.back_s if fault.back_s >= 0 else fault.at_s + FELT_MAX_S, fault.until_s)


def _admissions(faults: Sequence[FaultRecord], histories: Sequence[TaskHistory]) -> Bound:
    """Tasks first asked for after a kill of the scheduler, until its return at least: how long to their admission.

    Not those that something else held up as well: a scheduler or an ingress that stands still, a scheduler
    that cannot write, a link that loses. A killed ingress is no excuse: there is another.
    """
    waits = [
        each.admitted_s - each.first_asked_s
        for fault in faults
        if fault.kind == "kill scheduler"
        for each in histories
        if each.was_admitted
        and fault.at_s <= each.first_asked_s <= max(_over_s(fault), fault.at_s + ADMISSION_FELT_S)
        and not any(
            other.kind in _HOLD_UP and other.at_s <= each.admitted_s and _over_s(other) >= each.first_asked_s
            for other in faults
        )
    ]
    worst = max(waits, default=0.0)
    return Bound(
        "scheduler lost: new tasks are admitted",
        f"within {ADMISSION_MAX_S:.0f} s",
        f"longest {worst:.2f} s, {len(waits)} tasks",
        worst <= ADMISSION_MAX_S,
    )


def _ingress(faults: Sequence[FaultRecord], histories: Sequence[TaskHistory]) -> Bound:
    """From a connection that broke under a stream, as an ingress replica was killed, to the answer of the next one.

    Not while the scheduler is away as well: nobody else knows where a task runs.
    """
    away = [fault for fault in faults if fault.kind in ("kill scheduler", "stop scheduler", "end scheduler")]
    killed_s = [fault.at_s for fault in faults if fault.kind == "kill ingress"]
    gaps = [
        gap_s
        for broken_s, gap_s in reattach_times(histories)
        if any(0 <= broken_s - at_s <= BROKEN_BY_S for at_s in killed_s)
        and not any(fault.at_s <= broken_s + gap_s and _over_s(fault) >= broken_s for fault in away)
    ]
    p50 = quantile(gaps, 0.5)
    return Bound(
        "ingress lost: re-attached p50",
        f"within {REATTACH_MAX_S:.0f} s",
        f"p50 {p50:.2f} s, longest {max(gaps, default=0.0):.2f} s, {len(gaps)} streams",
        p50 <= REATTACH_MAX_S,
    )


def reattach_times(histories: Sequence[TaskHistory]) -> Iterator[tuple[float, float]]:
    """When each stream broke, and the seconds until the service answered its next connection with a stream."""
    for each in histories:
        broken_s = -1.0
        for attach in each.attaches:
            if attach.answered_s >= 0 and broken_s >= 0 and attach.ended not in ("404", "429", "500", "502", "503"):
                yield broken_s, attach.answered_s - broken_s
                broken_s = -1.0
            if attach.ended == "broken" and attach.answered_s >= 0:
                broken_s = attach.closed_s
