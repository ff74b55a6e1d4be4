"""How long ended tasks stay known: for status, re-attaching and idempotency (ORCH-3024).

The oldest are given up first, when their time is over or when there are too many of them or of
their transcript bytes. A task whose engine slot is still occupied is set aside until it is free,
because a new task of the same id could not be told from it at the replica; slots bound those.
"""

from collections import deque

from contracts.policies import ResultPolicy
from orchestrator.core.records import NS_PER_MS, TaskRecord


class Retention:
    """Ended tasks in the order in which they ended."""

    def __init__(self, policy: ResultPolicy) -> None:
        self._ttl_ns = policy.ttl_ms * NS_PER_MS
        self._tasks_max = policy.tasks_max
        self._bytes_max = policy.bytes_max
        self._ended: deque[TaskRecord] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._ended)

    def records(self) -> list[TaskRecord]:
        """All kept tasks, oldest first; O(n), for checks."""
        return list(self._ended)

    def keep(self, record: TaskRecord) -> None:
        """An ended task joins; `pop_surplus` says which ones have to go for it."""
        self._ended.append(record)
        self.bytes += record.transcript_bytes

    def pop_surplus(self, now_ns: int) -> TaskRecord | None:
        """The oldest task, if it must go now."""
        ended = self._ended
        if not ended or (
            ended[0].ended_ns + self._ttl_ns > now_ns
            and len(ended) <= self._tasks_max
            and self.bytes <= self._bytes_max
        ):
            return None
        record = ended.popleft()
        self.bytes -= record.transcript_bytes
        return record

    def next_expiry_ns(self) -> int | None:
        """When the oldest task's time is over."""
        return self._ended[0].ended_ns + self._ttl_ns if self._ended else None
