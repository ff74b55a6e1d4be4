"""Places held for tasks that were refused because the queue was full (ORCH-3005).

A refusal tells when to come again. Under overload that would be an empty promise: a place that
becomes free is taken by whoever happens to come. So a refused task gets an appointment: from a
little before the time it was told until a little after, one place is held for its task_id.
Appointments are spaced so that they use at most half of the departures and a quarter of the
queue; those who do not come lose their place to anyone.
"""

from collections import deque
from typing import Final

from orchestrator.core.records import NS_PER_MS

#: How late a client may come.
GRACE_NS: Final = 500 * NS_PER_MS
#: How far ahead appointments are made; later than that, nothing is held.
HORIZON_NS: Final = 60_000 * NS_PER_MS
#: A place is held from this many expected departures before the appointment on.
LEAD_DEPARTURES: Final = 4


class Appointments:
    """Appointments of one class, in the order of their times."""

    def __init__(self, capacity: int) -> None:
        self._held_max = max(1, capacity // 4)
        #: Made and not yet claimed or over; task_id to instant.
        self._at_ns: dict[str, int] = {}
        #: Not yet held: (from when a place is held, task_id).
        self._coming: deque[tuple[int, str]] = deque()
        #: Held: (until when, task_id).
        self._holding: deque[tuple[int, str]] = deque()
        self._held: dict[str, None] = {}
        self._last_ns = 0

    def __len__(self) -> int:
        return len(self._at_ns)

    def book(self, now_ns: int, task_id: str, departure_ns: int) -> int:
        """When `task_id` should come again, with one departure expected every `departure_ns`.

        A task that has an appointment already gets the same answer as long as it lies ahead.
        """
        known_ns = self._at_ns.get(task_id)
        if known_ns is not None and known_ns > now_ns:
            return known_ns
        self.claim(task_id)
        lead_ns = LEAD_DEPARTURES * departure_ns
        spacing_ns = max(2 * departure_ns, (lead_ns + GRACE_NS) // self._held_max)
        at_ns = max(now_ns + departure_ns, self._last_ns + spacing_ns)
        if at_ns - now_ns > HORIZON_NS:
            return now_ns + HORIZON_NS
        self._last_ns = at_ns
        self._at_ns[task_id] = at_ns
        self._coming.append((at_ns - lead_ns, task_id))
        return at_ns

    def held(self, now_ns: int) -> int:
        """How many places are held now."""
        while self._coming and self._coming[0][0] <= now_ns:
            task_id = self._coming.popleft()[1]
            at_ns = self._at_ns.get(task_id)
            if at_ns is not None:
                self._held[task_id] = None
                self._holding.append((at_ns + GRACE_NS, task_id))
        while self._holding and self._holding[0][0] <= now_ns:
            task_id = self._holding.popleft()[1]
            if task_id in self._held:
                del self._held[task_id], self._at_ns[task_id]
        return len(self._held)

    def is_due(self, now_ns: int, task_id: str) -> bool:
        """Whether a place is held for `task_id` now."""
        return self.held(now_ns) > 0 and task_id in self._held

    def claim(self, task_id: str) -> None:
        """The task came and is in; it needs its appointment no longer."""
        if task_id in self._at_ns:
            del self._at_ns[task_id]
            self._held.pop(task_id, None)
