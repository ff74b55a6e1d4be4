"""Which slot of the engine serves which attempt.

The adapter names the slot of every request itself. It then knows whose slot has to become free
after a cancel, and never sends more than the engine can run: a request that waits inside the
engine cannot be cancelled there (ORCH-3017, ORCH-3019).
"""

from collections.abc import Sequence
from typing import Final

_PREFIX_CHARS: Final = 4096
#: A shorter prefix is not worth that another session's context has to leave its slot: about 256 tokens of English.
_SHARED_CHARS_MIN: Final = 1024


class SlotTable:
    """Free and taken slots. A free slot remembers how its last prompt began, for prefix reuse."""

    def __init__(self, count: int) -> None:
        self._prefix: dict[int, str] = dict.fromkeys(range(count), "")
        self._free: list[int] = list(range(count))  # least recently used first

    @property
    def free(self) -> int:
        """How many slots can be taken now."""
        return len(self._free)

    def take(self, prompt: str, wanted: int | None = None, costly: Sequence[int] = ()) -> int | None:
        """Take the slot `wanted`, if it is free; else the free one that shares the longest prompt prefix.

        Of equals it is the least recently used. Those that are `costly` to take come last, unless they share much.
        None where all are taken.
        """
        if not self._free:
            return None
        head = prompt[:_PREFIX_CHARS]
        slot = wanted if wanted in self._free else None
        if slot is None:
            # A whole match cannot be bettered, and is what a repeated prompt finds.
            avoided = costly if len(head) < _SHARED_CHARS_MIN else ()
            slot = next((s for s in self._free if self._prefix[s].startswith(head) and s not in avoided), None)
        if slot is None:
            slot = max(self._free, key=lambda s: self._gain(head, s, costly))
        self._free.remove(slot)
        self._prefix[slot] = head
        return slot

    def give_back(self, slot: int) -> None:
        """The engine has let go of `slot`."""
        assert slot not in self._free, f"slot {slot} was given back twice"
        self._free.append(slot)

    def _gain(self, head: str, slot: int, costly: Sequence[int]) -> int:
        """How many characters of the prompt need not be computed there; -1 where that is not worth it."""
        shared = _shared_prefix(head, self._prefix[slot])
        return -1 if slot in costly and shared < _SHARED_CHARS_MIN else shared


def _shared_prefix(one: str, other: str) -> int:
    """Length of the common prefix, found by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
