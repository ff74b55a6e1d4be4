"""What happens when a task comes and the queue is full (ORCH-3005, ORCH-3080, ORCH-3085, OC-CORE-1002).

The policy is that of the arriving task's class, and soft preemption stands above it: either the
arrival is refused, or a waiting task loses its place to it, and then the number of waiting tasks does
not change, so the bounds hold. Tasks that have started before, or whose prompt is being measured,
never lose their place.
"""

from itertools import islice
from typing import Final

from contracts.errors import ErrorCode, ErrorInfo
from orchestrator.core import refusals
from orchestrator.core.estimates import departure_ns
from orchestrator.core.flows import Flow, Tier
from orchestrator.core.outlook import of_waiting
from orchestrator.core.records import TaskRecord, ceil_ms
from orchestrator.core.replica_set import ReplicaSet

#: How many of those that start next are looked at, and how many of all, evenly spread.
HEAD_MAX: Final = 4
SPREAD_MAX: Final = 8
#: How many flows of a class are looked at.
FLOWS_MAX: Final = 64


def victim_for(home: ReplicaSet, tier: Tier[TaskRecord], now_ns: int) -> TaskRecord | None:
    """The waiting task that gives up its place to an arrival of class `tier`; None: the arrival is refused."""
    if not home.is_class_full(tier, now_ns):
        policy = home.policy
        if tier.policy.full_policy == "shed-low-priority" or policy.preemption.mode != "off":
            for lower in reversed(home.tiers):
                if lower is tier:
                    break
                if lower.policy.priority not in policy.preemption.protect:
                    victim = _latest(home, lower, now_ns)
                    if victim is not None:
                        return victim
    if tier.policy.full_policy == "drop-lru":
        return _oldest(home, tier, now_ns)
    return None


def victim_error(home: ReplicaSet, tier: Tier[TaskRecord], victim: TaskRecord) -> ErrorInfo:
    """What a task is told that gives up its place to an arrival of class `tier`."""
    retry_ms = max(1, ceil_ms(departure_ns(home)))
    if victim.flow.priority == tier.policy.priority:
        return refusals.full(home, "QUEUE_FULL_DROP_LRU", "drop-lru", retry_ms)
    return refusals.shed_for(home, retry_ms)


def refusal(home: ReplicaSet, tier: Tier[TaskRecord], task_id: str, now_ns: int) -> ErrorInfo:
    """The 429 for an arrival that finds no place, with an appointment to come again."""
    at_ns = home.appointments[tier.policy.priority].book(now_ns, task_id, departure_ns(home))
    label = tier.policy.full_policy
    code: ErrorCode = "QUEUE_FULL_DROP_LRU" if label == "drop-lru" else "ADMISSION_REJECT"
    return refusals.full(home, code, label, max(1, ceil_ms(at_ns - now_ns)))


def _latest(home: ReplicaSet, tier: Tier[TaskRecord], now_ns: int) -> TaskRecord | None:
    """The task of a class whose loss costs least: the one least likely to be on time, of equals the last to start.

    Looked for in the line that holds most for its weight, among a few of its tasks spread over it.
    """
    worst: Flow[TaskRecord] | None = None
    for flow in islice(tier.flows.values(), FLOWS_MAX):
        if len(flow.line) and (
            worst is None or flow.line.cost_tokens * worst.weight > worst.line.cost_tokens * flow.weight
        ):
            worst = flow
    if worst is None:
        return None
    victim: TaskRecord | None = None
    least = 2.0
    spread = [item for item, _ in worst.line.checkpoints(0, 0, SPREAD_MAX)]
    for item in [*worst.line.head(HEAD_MAX), *spread]:
        if item.fresh:
            sureness = of_waiting(home, item, now_ns).sureness
            if sureness <= least:
                victim, least = item, sureness
    return victim or worst.line.newest_fresh()


def _oldest(home: ReplicaSet, tier: Tier[TaskRecord], now_ns: int) -> TaskRecord | None:
    if home.policy.eviction == "eta":
        return _latest(home, tier, now_ns)
    oldest: TaskRecord | None = None
    for flow in islice(tier.flows.values(), FLOWS_MAX):
        candidate = flow.line.oldest_fresh()
        if candidate is not None and (oldest is None or candidate.order < oldest.order):
            oldest = candidate
    return oldest
