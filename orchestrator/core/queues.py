"""First in, first out, with cheap removal and cheap positions (ORCH-3004, OC-CORE-1001, 1003).

Waiting tasks carry consecutive tickets. Taking one out of the middle leaves a gap; a position is
the distance of two tickets less the gaps between. Gaps are swept by renumbering when they
outnumber the waiting tasks, so enqueueing stays O(1) amortised and the memory stays bounded.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Final

from contracts.api import Priority
from contracts.policies import QueuePolicy
from orchestrator.core.records import TaskRecord

GAPS_MAX: Final = 32


def _order(record: TaskRecord) -> int:
    return record.order


class FifoFlow:
    """A `policies.Flow` in arrival order. Does not enforce its bound: admission does, before it pushes."""

    def __init__(self, priority: Priority, policy: QueuePolicy) -> None:
        self.priority: Priority = priority
        self.policy = policy
        self.reserved = 0
        self.tokens = 0
        #: Tasks that had started before, by arrival; never more than there were slots.
        self._returned: list[TaskRecord] = []
        self._fresh: OrderedDict[int, TaskRecord] = OrderedDict()
        self._gaps: list[int] = []
        self._next_ticket = 0

    def __len__(self) -> int:
        return len(self._returned) + len(self._fresh)

    @property
    def gaps(self) -> int:
        """Tickets without a task that still take memory."""
        return len(self._gaps)

    def waiting(self) -> list[TaskRecord]:
        """All waiting tasks in the order in which they start; O(n), for checks."""
        return [*self._returned, *self._fresh.values()]

    def push(self, record: TaskRecord) -> None:
        record.ticket = self._next_ticket
        self._fresh[record.ticket] = record
        self._next_ticket += 1
        self.tokens += record.expected_tokens

    def give_back(self, record: TaskRecord) -> None:
        # Every task that started came before all that still wait, so arrival order is kept as well.
        record.ticket = -1
        insort(self._returned, record, key=_order)
        self.tokens += record.expected_tokens

    def pop(self) -> TaskRecord:
        if self._returned:
            record = self._returned.pop(0)
        elif self._fresh:
            record = self._fresh.popitem(last=False)[1]
        else:
            raise IndexError("pop from an empty flow")
        self.tokens -= record.expected_tokens
        return record

    def discard(self, record: TaskRecord) -> None:
        self.tokens -= record.expected_tokens
        if record.ticket < 0:
            del self._returned[bisect_left(self._returned, record.order, key=_order)]
            return
        at_head = record.ticket == self._head()
        del self._fresh[record.ticket]
        if not at_head:
            insort(self._gaps, record.ticket)
            if len(self._gaps) > len(self._fresh) + GAPS_MAX:
                self._renumber()

    def position(self, record: TaskRecord) -> int:
        if record.ticket < 0:
            return bisect_left(self._returned, record.order, key=_order)
        head = self._head()
        gaps = bisect_left(self._gaps, record.ticket) - bisect_left(self._gaps, head)
        return len(self._returned) + record.ticket - head - gaps

    def oldest(self) -> TaskRecord | None:
        return self._fresh[self._head()] if self._fresh else None

    def newest(self) -> TaskRecord | None:
        return self._fresh[next(reversed(self._fresh))] if self._fresh else None

    def _head(self) -> int:
        return next(iter(self._fresh))

    def _renumber(self) -> None:
        records = list(self._fresh.values())
        self._fresh.clear()
        self._gaps.clear()
        for ticket, record in enumerate(records):
            record.ticket = ticket
            self._fresh[ticket] = record
        self._next_ticket = len(records)
