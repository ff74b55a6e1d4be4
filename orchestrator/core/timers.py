"""One wake-up per key on a heap, and one timer at the shell for all of them.

Re-arming leaves a stale heap entry behind; they are swept when they outnumber the live ones, so
the heap stays within twice the live timers plus a constant.
"""

from heapq import heapify, heappop, heappush
from typing import Final

STALE_MAX: Final = 64


class Timers:
    """Wake-ups by key. Instants are `_ns` of the shell's clock; equal ones fire in the order they were armed."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._armed: dict[str, tuple[int, int]] = {}
        self._sequence = 0
        self._alarm_ns: int | None = None

    def __len__(self) -> int:
        return len(self._armed)

    @property
    def heap_size(self) -> int:
        """Entries on the heap, stale ones included."""
        return len(self._heap)

    def arm(self, key: str, at_ns: int) -> None:
        """Wake `key` at `at_ns`, and not at the instant armed before."""
        held = self._armed.get(key)
        if held is not None and held[0] == at_ns:
            return
        self._sequence += 1
        self._armed[key] = (at_ns, self._sequence)
        heappush(self._heap, (at_ns, self._sequence, key))
        if len(self._heap) > 2 * len(self._armed) + STALE_MAX:
            self._heap = [(at, sequence, name) for name, (at, sequence) in self._armed.items()]
            heapify(self._heap)

    def disarm(self, key: str) -> None:
        """Do not wake `key`; it need not be armed."""
        self._armed.pop(key, None)

    def armed_at(self, key: str) -> int | None:
        """The instant at which `key` will be woken, if it is armed."""
        held = self._armed.get(key)
        return None if held is None else held[0]

    def pop_due(self, now_ns: int) -> str | None:
        """The key whose wake-up is due and earliest; it is disarmed. None when nothing is due."""
        earliest_ns = self.earliest_ns()
        if earliest_ns is None or earliest_ns > now_ns:
            return None
        key = heappop(self._heap)[2]
        del self._armed[key]
        return key

    def earliest_ns(self) -> int | None:
        """The next wake-up."""
        while self._heap:
            at_ns, sequence, key = self._heap[0]
            if self._armed.get(key) == (at_ns, sequence):
                return at_ns
            heappop(self._heap)
        return None

    def alarm_rang(self) -> None:
        """The shell's timer fired, so it is no longer set."""
        self._alarm_ns = None

    def next_alarm(self, now_ns: int) -> int | None:
        """For when the shell's timer must be set now; None when it is right as it stands.

        An alarm that is too early is left alone: it rings, nothing is due, the next one is set. That
        is one wake-up too many instead of a command for every step that moves the earliest back.
        """
        earliest_ns = self.earliest_ns()
        if earliest_ns is None:
            return None
        if self._alarm_ns is not None and now_ns < self._alarm_ns <= earliest_ns:
            return None
        self._alarm_ns = earliest_ns
        return earliest_ns
