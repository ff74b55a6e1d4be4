"""Streams that are open: how many each key has, and their end when the key is revoked (ORCH-3035)."""

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Final

from contracts.errors import ErrorInfo, OrchError
from orchestrator.ingress.keyring import ANYONE, REVOKED, Keyring
from orchestrator.ingress.settings import Key

#: What a key with too many streams is told to wait; how long streams go on is for their clients to know.
RETRY_MS: Final = 1_000


class StreamSlot:
    """One stream's place, held for a `with` block.

    Whoever serves the stream sets `end_with`, which is called when the key is revoked.
    """

    __slots__ = ("_leave", "end_with", "key", "revoked")

    def __init__(self, key: Key, leave: "Callable[[StreamSlot], None]") -> None:
        self.key = key
        self.revoked = False
        self.end_with: Callable[[ErrorInfo], None] | None = None
        self._leave = leave

    def __enter__(self) -> "StreamSlot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_with = None
        self._leave(self)

    def revoke(self) -> None:
        """End the stream, now or as soon as it is served."""
        self.revoked = True
        if self.end_with is not None:
            self.end_with(REVOKED)

    def check(self) -> None:
        """Raise OrchError when the key was revoked before the stream began."""
        if self.revoked:
            raise OrchError(REVOKED)


class OpenStreams:
    """The streams of one ingress replica, by key. Without authentication nobody's are counted."""

    def __init__(self, keyring: Keyring, streams_max: int) -> None:
        self._keyring = keyring
        self._max = streams_max
        self._open: dict[str, set[StreamSlot]] = defaultdict(set)
        keyring.on_change(self._keys_changed)

    def take(self, key: Key) -> StreamSlot:
        """A place for a stream of this key; use it as a `with` block. Raises OrchError when it has too many open."""
        slot = StreamSlot(key, self._left)
        if key is ANYONE:
            return slot
        if not self._keyring.still_allows(key, "submit"):
            raise OrchError(REVOKED)  # revoked while the request was read
        if self.count(key) >= self._max:
            raise OrchError(self._full())
        self._open[key.sha256].add(slot)
        return slot

    def count(self, key: Key) -> int:
        """How many streams the key has open."""
        return len(self._open.get(key.sha256, ()))

    def _left(self, slot: StreamSlot) -> None:
        mine = self._open.get(slot.key.sha256, set())
        mine.discard(slot)
        if not mine:
            self._open.pop(slot.key.sha256, None)

    def _keys_changed(self) -> None:
        for slots in list(self._open.values()):
            for slot in list(slots):
                if not self._keyring.still_allows(slot.key, "submit"):
                    slot.revoke()

    def _full(self) -> ErrorInfo:
        return ErrorInfo(
            "ADMISSION_REJECT",
            f"This API key has {self._max} streams open, which is its limit here. Close some, or wait for their ends.",
            retriable=True,
            retry_after_ms=RETRY_MS,
            policy_label="reject",
        )
