"""How long ended tasks stay known: for status, re-attaching and idempotency (ORCH-3024).

The oldest are given up first, when their time is over or when there are too many of them. Where their transcripts
take too much room, transcripts go and the tasks stay known: large ones may fill half of it, so that the results of
one tenant do not push out everybody's. A task whose engine slot is still occupied is set aside until it is free,
because a new task of the same id could not be told from it at the replica; slots bound those.
"""

from collections import deque
from typing import Final

from contracts.policies import ResultPolicy
from orchestrator.core.records import NS_PER_MS, TaskRecord

#: A transcript is large that takes more than this part of what all may take.
LARGE_PART: Final = 256


class Retention:
    """Ended tasks in the order in which they ended."""

    def __init__(self, policy: ResultPolicy) -> None:
        self._ttl_ns = policy.ttl_ms * NS_PER_MS
        self._tasks_max = policy.tasks_max
        self._bytes_max = policy.bytes_max
        self._ended: deque[TaskRecord] = deque()
        #: Those with transcripts, oldest first.
        self._small: deque[TaskRecord] = deque()
        self._large: deque[TaskRecord] = deque()
        self._large_bytes = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._ended)

    def records(self) -> list[TaskRecord]:
        """All kept tasks, oldest first; O(n), for checks."""
        return list(self._ended)

    def keep(self, record: TaskRecord) -> None:
        """An ended task joins; `pop_surplus` says which ones have to go for it."""
        self._ended.append(record)
        if record.transcript_bytes:
            self.bytes += record.transcript_bytes
            if self._is_large(record):
                self._large.append(record)
                self._large_bytes += record.transcript_bytes
            else:
                self._small.append(record)

    def pop_surplus(self, now_ns: int) -> TaskRecord | None:
        """The oldest task, if it must go now."""
        ended = self._ended
        if not ended or (ended[0].ended_ns + self._ttl_ns > now_ns and len(ended) <= self._tasks_max):
            return None
        record = ended.popleft()
        self._drop(record)
        return record

    def discard(self, record: TaskRecord) -> None:
        """A kept task goes before its time; O(n), and it happens only when a journal fails."""
        self._ended.remove(record)
        size_bytes = record.transcript_bytes
        if not size_bytes:
            return
        if self._is_large(record):
            self._large.remove(record)
            self._large_bytes -= size_bytes
        else:
            self._small.remove(record)
        self.bytes -= size_bytes
        record.transcript_bytes = 0

    def drop_transcript(self) -> TaskRecord | None:
        """A kept task whose transcript must go now, and does: the oldest of the large ones or of the others."""
        if self.bytes <= self._bytes_max:
            return None
        large_first = self._large and (self._large_bytes * 2 > self._bytes_max or not self._small)
        record = (self._large if large_first else self._small)[0]
        self._drop(record)
        return record

    def _drop(self, record: TaskRecord) -> None:
        """Take a transcript off the books. It is the oldest of its line: that is how tasks and transcripts go."""
        size_bytes = record.transcript_bytes
        if not size_bytes:
            return
        if self._is_large(record):
            self._large.popleft()
            self._large_bytes -= size_bytes
        else:
            self._small.popleft()
        self.bytes -= size_bytes
        record.transcript_bytes = 0

    def _is_large(self, record: TaskRecord) -> bool:
        return record.transcript_bytes * LARGE_PART > self._bytes_max

    def next_expiry_ns(self) -> int | None:
        """When the oldest task's time is over."""
        return self._ended[0].ended_ns + self._ttl_ns if self._ended else None
