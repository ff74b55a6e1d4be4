"""Where a task stands, when it will start, and whether it will be on time (ORCH-3029, ORCH-3079, ORCH-3081).

A task starts when the tokens ahead of it have been started: those before it in its own line, times
what fairness lets other flows have meanwhile. The raw wait is that work over the set's speed; what
such predictions were off by in the past corrects it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.records import NS_PER_MS, TaskRecord, ceil_ms

if TYPE_CHECKING:
    from orchestrator.core.replica_set import ReplicaSet


class Outlook:
    """A forecast for one task.

    `wait_ns` is the expected wait, `start_ms` the middling one: what a client is told. `sureness` is its
    chance to be on time before calibration, `chance` after; `is_informed`: enough outputs like its own were
    seen, or its length was told.
    """

    __slots__ = ("chance", "is_informed", "position", "raw_wait_ns", "start_ms", "sureness", "wait_ns")

    def __init__(
        self,
        position: int,
        raw_wait_ns: int,
        wait_ns: int,
        middle: float,
        sureness: float,
        chance: float,
        is_informed: bool,
    ) -> None:
        self.position = position
        self.raw_wait_ns = raw_wait_ns
        self.wait_ns = wait_ns
        self.start_ms = max(1, ceil_ms(int(wait_ns * middle))) if raw_wait_ns else 0
        self.sureness = sureness
        self.is_informed = is_informed
        self.chance = chance


def of_arrival(home: ReplicaSet, record: TaskRecord, now_ns: int, deadline_ms: int) -> Outlook:
    """The outlook of a task that comes now with this deadline; its own is used where it is admitted."""
    slack_ns = deadline_ms * NS_PER_MS
    if home.starts_at_once(record):
        return _outlook(home, record, 0, 0, deadline_ms, slack_ns)
    position, raw_ns = queue_wait(home, record, home.key_of(now_ns + slack_ns, record.order), now_ns)
    return _outlook(home, record, position, raw_ns, deadline_ms, slack_ns)


def of_waiting(home: ReplicaSet, record: TaskRecord, now_ns: int) -> Outlook:
    """The outlook, from now, of a task that waits."""
    position, raw_ns = queue_wait(home, record, record.key, now_ns)
    return _outlook(home, record, position, raw_ns, record.task.deadline_ms, record.deadline_ns - now_ns)


def _outlook(
    home: ReplicaSet, record: TaskRecord, position: int, raw_wait_ns: int, deadline_ms: int, slack_ns: int
) -> Outlook:
    task = record.task
    ratio = home.bias_of(task.priority, deadline_ms)
    wait_ns = int(raw_wait_ns * ratio.factor())
    middle = home.middle_of(task.priority, wait_ns).factor
    sureness = chance(home, record, slack_ns, wait_ns, ratio.spread())
    is_informed = (
        not task.decodes or bool(task.expected_tokens) or home.predictor.knows_lengths(task.tenant, task.workload)
    )
    return Outlook(position, raw_wait_ns, wait_ns, middle, sureness, home.on_time.corrected(sureness), is_informed)


def queue_wait(home: ReplicaSet, record: TaskRecord, key: int, now_ns: int) -> tuple[int, int]:
    """(tasks that start before a task with this key, raw time until it starts)."""
    flow = record.flow
    tasks, tokens = flow.line.ahead(key, record.order)
    distance = home.fairness.distance(flow, tokens)
    others = home.waiting - len(flow.line)
    if others > 0:
        mean = max(1, home.waiting_tokens // home.waiting)
        tasks += min(others, max(0, distance - tokens) // mean)
    return tasks, wait_of(home, distance, now_ns)


def wait_of(home: ReplicaSet, tokens_ahead: int, now_ns: int) -> int:
    """How long the set takes to start the work ahead and to have a slot free then.

    With D slots of mean residual work r, the next one is free after about r / D, and then one more for
    every D-th part of the work of a task.
    """
    slots = max(1, home.slots)
    tokens = tokens_ahead + home.running_tokens / slots
    wait_ns = int(tokens * home.predictor.cost_ns / slots)
    # Never 0: that is for tasks that start at once.
    return max(1, wait_ns if home.slots else wait_ns + home.load_remaining_ns(now_ns))


def chance(home: ReplicaSet, record: TaskRecord, slack_ns: int, wait_ns: int, spread: float) -> float:
    """Chance that a task ends within `slack_ns`, before calibration."""
    task = record.task
    predictor = home.predictor
    prefill_ns = predictor.prefill_ns(record.prompt_tokens)
    return predictor.on_time(
        task.tenant, task.workload, task.output_max_tokens, task.expected_tokens, slack_ns, wait_ns, spread, prefill_ns
    )


def on_time_now(home: ReplicaSet, record: TaskRecord, now_ns: int) -> float:
    """Calibrated chance of a waiting or running task to be on time."""
    if record.state == "queued":
        return of_waiting(home, record, now_ns).chance
    task, predictor = record.task, home.predictor
    left_ns = record.deadline_ns - now_ns
    if left_ns <= 0:
        return 0.0
    if not task.decodes:
        left_ns -= max(0, predictor.prefill_ns(record.prompt_tokens) - (now_ns - record.started_ns))
        return 1.0 if left_ns >= 0 else 0.0
    if not record.tokens_out:
        left_ns -= max(0, predictor.prefill_ns(record.prompt_tokens) - (now_ns - record.started_ns))
    more = max(0, left_ns // predictor.decode_ns)
    return predictor.outputs_by(
        task.tenant, task.workload, task.max_tokens, record.tokens_out + more, record.tokens_out
    )
