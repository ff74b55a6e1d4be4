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
        self._armed: dict[str, tuple[int, int, str]] = {}
        self._sequence = 0
        self._alarm_ns: int | None = None
        #: An instant of the service itself, which has no key; 0: there is none.
        self.service_ns = 0

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
        entry = self._armed[key] = (at_ns, self._sequence, key)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._armed) + STALE_MAX:
            self._heap = list(self._armed.values())
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
        heap = self._heap
        # A stale entry that lies ahead is left alone: what is due is all in front of it.
        while heap and heap[0][0] <= now_ns:
            entry = heappop(heap)
            if self._is_current(entry):
                del self._armed[entry[2]]
                return entry[2]
        return None

    def earliest_ns(self) -> int | None:
        """The next wake-up."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if self._is_current(entry):
                return entry[0]
            heappop(heap)
        return None

    def _is_current(self, entry: tuple[int, int, str]) -> bool:
        """By number, not by identity: compiled code makes tuples anew."""
        held = self._armed.get(entry[2])
        return held is not None and held[1] == entry[1]

    def alarm_rang(self) -> None:
        """The shell's timer fired, so it is no longer set."""
        self._alarm_ns = None

    def next_alarm(self, now_ns: int) -> int | None:
        """For when the shell's timer must be set now; None when it is right as it stands.

        An alarm that is too early is left alone: it rings, nothing is due, the next one is set. That
        is one wake-up too many instead of a command for every step that moves the earliest back.
        """
        alarm_ns, service_ns = self._alarm_ns, self.service_ns
        # Nothing is earlier than the front of the heap, stale or not.
        if (
            alarm_ns is not None
            and now_ns < alarm_ns
            and (not service_ns or alarm_ns <= service_ns)
            and (not self._heap or alarm_ns <= self._heap[0][0])
        ):
            return None
        earliest_ns = self.earliest_ns()
        if service_ns and (earliest_ns is None or service_ns < earliest_ns):
            # One that is due by now came up too late in the step to be acted on in it.
            earliest_ns = max(service_ns, now_ns + 1)
        if earliest_ns is None or (alarm_ns is not None and now_ns < alarm_ns <= earliest_ns):
            return None
        self._alarm_ns = earliest_ns
        return earliest_ns
