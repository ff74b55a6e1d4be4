"""Whether a deadline can be met, asked before a task is let in (ORCH-3079).

Two questions: is the task itself likely enough to be on time, and would it, by going before others
with later deadlines, make one of those late that was promised its own? Either is answered
with the smallest deadline that would do.
"""

from __future__ import annotations

from typing import Final

from contracts.errors import ErrorInfo
from orchestrator.core import outlook, refusals
from orchestrator.core.outlook import Outlook
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet

#: Waiting tasks behind the arrival that are looked at, spread evenly over the line.
CHECKPOINTS_MAX: Final = 4
#: The search for the smallest deadline doubles so often, then halves so often: to within 2 %.
DOUBLINGS_MAX: Final = 24
HALVINGS: Final = 6
#: A task that starts at once is never asked to be surer than this.
AT_ONCE_PERCENT: Final = 50
#: Arrivals of a flow between two looks at those behind, and how many times an arrival's delay must be to spare.
UNCHECKED_MAX: Final = 32
SPARE_PARTS: Final = 16.0
#: Nor is one of whose kind too few outputs were seen.
UNINFORMED_PERCENT: Final = 15


def refusal(home: ReplicaSet, record: TaskRecord, now_ns: int) -> ErrorInfo | None:
    """DEADLINE_UNMET, or None; leaves the task's outlook in the record."""
    task = record.task
    seen = record.outlook = outlook.of_arrival(home, record, now_ns, task.deadline_ms)
    if not home.policy.on_time_percent_min:
        return None
    if not is_likely(home, seen):
        start = f"in about {seen.start_ms} ms" if seen.start_ms else "at once"
        reason = f"it would start {start} and is {seen.chance:.0%} sure to end in time"
    elif first_harmed(home, record, now_ns, task.deadline_ms) is not None:
        reason = "tasks that were promised their deadlines would become late"
    else:
        return None
    earliest_ms = earliest_deadline_ms(home, record, now_ns)
    return refusals.deadline_unmet(home, task.deadline_ms, earliest_ms, reason, seen.start_ms)


def is_likely(home: ReplicaSet, seen: Outlook) -> bool:
    """Whether a task is sure enough to be on time.

    One that starts at once is judged more mildly: it takes a slot that nobody waits for. It is also judged
    uncalibrated, since what it does is what a bad record mends by. And while nobody knows how long such
    outputs are, it is refused only if next to impossible: refusing teaches nothing.
    """
    percent = home.policy.on_time_percent_min
    if not seen.raw_wait_ns:
        return seen.sureness * 100.0 >= min(percent, AT_ONCE_PERCENT if seen.is_informed else UNINFORMED_PERCENT)
    return seen.chance * 100.0 >= percent


def is_late(home: ReplicaSet, record: TaskRecord) -> bool:
    """Whether a task whose outlook is known is not sure enough to be on time by waiting."""
    return record.outlook is not None and not is_likely(home, record.outlook)


def earliest_deadline_ms(home: ReplicaSet, record: TaskRecord, now_ns: int) -> int:
    """About the smallest deadline over the task's own that would be accepted now, to within 2 %."""
    low = high = record.task.deadline_ms
    for _ in range(DOUBLINGS_MAX):
        high *= 2
        if _acceptable(home, record, now_ns, high):
            break
        low = high
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        if _acceptable(home, record, now_ns, middle):
            high = middle
        else:
            low = middle
    return high


def _acceptable(home: ReplicaSet, record: TaskRecord, now_ns: int, deadline_ms: int) -> bool:
    seen = outlook.of_arrival(home, record, now_ns, deadline_ms)
    return is_likely(home, seen) and first_harmed(home, record, now_ns, deadline_ms) is None


def first_harmed(home: ReplicaSet, record: TaskRecord, now_ns: int, deadline_ms: int) -> TaskRecord | None:
    """A task behind an arrival with this deadline that would be late because of it, if there is one.

    Looking costs more than all the rest of an admission, so what was found is used for a while: the least
    time that any of those that wait had to spare, less what has come before them since.
    """
    flow = record.flow
    if home.policy.ordering != "edf" or not len(flow.line) or home.starts_at_once(record):
        return None
    if flow.unchecked < UNCHECKED_MAX and flow.spare_ns > SPARE_PARTS * flow.delay_ns * record.cost_tokens:
        return None
    # The wait grows evenly along the line: known at both ends, it is known between.
    predictor = home.predictor
    whole = flow.line.cost_tokens
    start_ns = outlook.wait_of(home, home.fairness.distance(flow, 0), now_ns)
    delay_ns = (outlook.wait_of(home, home.fairness.distance(flow, whole), now_ns) - start_ns) / whole
    added_ns = delay_ns * record.cost_tokens
    least_ns = float(now_ns)
    key = home.key_of(now_ns + deadline_ms * NS_PER_MS, record.order)
    for item, tokens in flow.line.checkpoints(key, record.order, CHECKPOINTS_MAX):
        left_ns = item.deadline_ns - now_ns - predictor.service_ns(item.prompt_tokens, item.output_tokens)
        factor = home.bias_of(item.task.priority, item.task.deadline_ms).factor()
        spare_ns = left_ns / factor - (start_ns + delay_ns * (tokens - item.cost_tokens))
        if 0.0 <= spare_ns < added_ns:
            return item
        if 0.0 <= spare_ns < least_ns:
            least_ns = spare_ns
    if deadline_ms == record.task.deadline_ms:
        flow.unchecked, flow.spare_ns, flow.delay_ns = 0, least_ns, delay_ns
    return None


def joined(record: TaskRecord) -> None:
    """A task joined its line: those behind it have less time to spare."""
    flow = record.flow
    flow.unchecked += 1
    flow.spare_ns -= flow.delay_ns * record.cost_tokens
