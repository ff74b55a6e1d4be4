"""What follows from what a replica set has learnt: who is too late, how fast places become free, what tokens cost."""

from orchestrator.core.flows import Tier
from orchestrator.core.records import TaskRecord, ceil_ms
from orchestrator.core.replica_set import ReplicaSet


def is_doomed(home: ReplicaSet, record: TaskRecord, now_ns: int) -> bool:
    """Whether a task cannot be on time any more, even if it starts now and is among the shortest tenth."""
    left_ns = record.deadline_ns - now_ns
    predictor = home.predictor
    if predictor.service_ns(record.prompt_tokens, record.output_tokens) <= left_ns:
        return False
    if not home.policy.on_time_percent_min:
        return left_ns <= 0
    task = record.task
    low = 0
    if task.decodes:
        low = min(record.output_tokens, predictor.low_output(task.tenant, task.workload, task.max_tokens))
    return predictor.service_ns(record.prompt_tokens, low) > left_ns


def in_time_at_once(home: ReplicaSet, record: TaskRecord, now_ns: int) -> bool:
    """Whether a waiting task would be on time if it started now."""
    service_ns = home.predictor.service_ns(record.prompt_tokens, record.output_tokens)
    return service_ns <= record.deadline_ns - now_ns


def departure_ns(home: ReplicaSet) -> int:
    """Mean time between two departures while all slots are busy, judged by the tasks that are here."""
    tasks = home.waiting + home.slots - home.free_slots
    tokens = home.waiting_tokens + home.running_tokens
    mean_cost = tokens / tasks if tasks else home.predictor.mean_cost
    return max(1, int(mean_cost * home.predictor.cost_ns / max(1, home.slots)))


def backoff_ms(home: ReplicaSet, tier: Tier[TaskRecord]) -> int:
    """How long a well-behaved client waits before it submits more.

    0 while the queue is under half full; above that, the expected time until it is half empty
    again: the number of tasks above half times the mean time between two departures.
    """
    overfill = max(
        tier.waiting + tier.reserved - tier.policy.capacity // 2, home.places_taken - home.policy.capacity // 2
    )
    return ceil_ms(overfill * departure_ns(home)) if overfill > 0 else 0


def cost_micros(home: ReplicaSet, tokens_in: int, tokens_out: int) -> int:
    """What so many tokens cost, in millionths of the currency, rounded up."""
    policy = home.policy
    return -(-(tokens_in * policy.price_in_micros + tokens_out * policy.price_out_micros) // 1000)
