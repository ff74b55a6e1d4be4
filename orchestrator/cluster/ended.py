"""Ended attempts of a replica whose tokens can still be subscribed to here; later readers ask the scheduler."""

from collections import OrderedDict
from typing import Final

from orchestrator.cluster.transcript import Transcript

ENDED_KEPT_MAX: Final = 64
#: What they take together, but for the last one.
ENDED_BYTES_MAX: Final = 64 * 1024 * 1024
#: Older ended attempts are still known by name: a subscription to one must not wait for its start.
GONE_KEPT_MAX: Final = 4096

Key = tuple[str, int]


class EndedAttempts:
    """Transcripts by task and attempt, oldest first, within the bounds above."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, tuple[Transcript, int]] = OrderedDict()
        self._kept_bytes = 0
        self._gone: OrderedDict[Key, None] = OrderedDict()

    def add(self, key: Key, transcript: Transcript, size_bytes: int) -> None:
        """Keep an attempt that has just ended."""
        self._kept[key] = transcript, size_bytes
        self._kept_bytes += size_bytes
        while len(self._kept) > ENDED_KEPT_MAX or (self._kept_bytes > ENDED_BYTES_MAX and len(self._kept) > 1):
            oldest, (_, oldest_bytes) = self._kept.popitem(last=False)
            self._kept_bytes -= oldest_bytes
            self._gone[oldest] = None
        while len(self._gone) > GONE_KEPT_MAX:
            self._gone.popitem(last=False)

    def get(self, key: Key) -> Transcript | None:
        """The transcript of an attempt, while it is kept."""
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    def is_gone(self, key: Key) -> bool:
        """Whether an attempt ended here and is kept no longer."""
        return key in self._gone
