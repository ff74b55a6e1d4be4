"""What leaves over one connection: in one write a turn of the event loop, in order, and bounded.

Large messages wait their turn, unencoded, while more than `BACKLOG_BYTES_MAX` are on their way; what comes after
one waits behind it, so that the order stays.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from contracts.messages import encode

BACKLOG_BYTES_MAX: Final = 32 * 1024 * 1024
#: What large messages that wait for their turn may take together, and how often it is looked whether it has come.
TURNS_BYTES_MAX: Final = 256 * 1024 * 1024
TURN_INTERVAL_S: Final = 0.01

LENGTH: Final = struct.Struct(">I")


class Outbox:
    """Frames on their way to a transport; `flushed` is told after every write, with what is still to leave."""

    def __init__(self, transport: asyncio.Transport, flushed: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._flushed = flushed
        self._frames: list[bytes] = []
        self._frames_bytes = 0
        #: Large messages with their sizes, and bodies of what was sent after them.
        self._turns: deque[tuple[msgspec.Struct | bytes, int]] = deque()
        self._turns_bytes = 0
        self._behind_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; it leaves at the end of this event-loop turn, or behind large ones that wait."""
        body = encode(message)
        if not self._turns:
            self._put(body)
            return
        self._turns.append((body, 0))
        self._behind_bytes += len(body)
        self._flushed(self._backlog() + self._behind_bytes)

    def send_in_turn(self, message: msgspec.Struct, size_bytes: int) -> bool:
        """Queue a large message, of about `size_bytes`. False, and not queued: too many wait already."""
        if not self._turns and self._backlog() <= BACKLOG_BYTES_MAX:
            self._put(encode(message))
            return True
        if self._turns_bytes + size_bytes > TURNS_BYTES_MAX:
            return False
        self._turns.append((message, size_bytes))
        self._turns_bytes += size_bytes
        if self._timer is None:
            self._timer = self._loop.call_later(TURN_INTERVAL_S, self._take_turns)
        return True

    def write_all(self) -> None:
        """Hand over all that waits, at once."""
        while self._turns:
            self._take_turn()
        self.flush()

    def clear(self) -> None:
        """Drop what waits: nobody will read it."""
        self._frames.clear()
        self._turns.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _take_turns(self) -> None:
        self._timer = None
        while self._turns and self._backlog() <= BACKLOG_BYTES_MAX:
            self._take_turn()
        if self._turns:
            self._timer = self._loop.call_later(TURN_INTERVAL_S, self._take_turns)

    def _take_turn(self) -> None:
        message, size_bytes = self._turns.popleft()
        self._turns_bytes -= size_bytes
        if isinstance(message, bytes):
            self._behind_bytes -= len(message)
            self._put(message)
        else:
            self._put(encode(message))

    def _put(self, body: bytes) -> None:
        if not self._frames:
            self._loop.call_soon(self.flush)
        self._frames.append(LENGTH.pack(len(body)))
        self._frames.append(body)
        self._frames_bytes += len(body)

    def flush(self) -> None:
        """Hand over now what does not wait for a turn."""
        if self._frames:
            self._transport.write(b"".join(self._frames))
            self._frames.clear()
        self._frames_bytes = 0
        self._flushed(self._backlog() + self._behind_bytes)

    def _backlog(self) -> int:
        """Bytes that have been put and have not left."""
        return self._frames_bytes + self._transport.get_write_buffer_size()
