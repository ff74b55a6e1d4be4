"""How much memory the gathered results of one ingress may take: slow readers must not run it out of it."""

from typing import Final

from contracts.errors import ErrorInfo, OrchError

#: Text of results, of all streams together, that are being gathered or sent.
GATHERED_BYTES_MAX: Final = 256 * 1024 * 1024
RETRY_AFTER_MS: Final = 1000

_FULL: Final = ErrorInfo(
    "ADMISSION_REJECT",
    "This ingress is sending as many results as it can hold. Your task goes on: attach to its stream again shortly.",
    retriable=True,
    retry_after_ms=RETRY_AFTER_MS,
    policy_label="reject",
)


class ResultMemory:
    """The bytes that one ingress process holds, in shares of its streams."""

    def __init__(self, bytes_max: int = GATHERED_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self.used_bytes = 0

    def share(self) -> "Share":
        """A share that takes nothing yet."""
        return Share(self)

    def take(self, size_bytes: int) -> None:
        """Take more. Raises OrchError (ADMISSION_REJECT, retriable) where there is not as much left."""
        if self.used_bytes + size_bytes > self._bytes_max:
            raise OrchError(_FULL)
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Let go of what was taken."""
        self.used_bytes -= size_bytes


class Share:
    """What one stream holds of the memory."""

    __slots__ = ("_memory", "_size_bytes")

    def __init__(self, memory: ResultMemory) -> None:
        self._memory = memory
        self._size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        """Hold at least so much. Raises OrchError as `ResultMemory.take` does."""
        if size_bytes > self._size_bytes:
            self._memory.take(size_bytes - self._size_bytes)
            self._size_bytes = size_bytes

    def release(self) -> None:
        """Hold nothing any more."""
        self._memory.give_back(self._size_bytes)
        self._size_bytes = 0
