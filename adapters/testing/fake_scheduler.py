"""Slots and pacing of the fake engine: who runs, who waits, and when the next token is due."""

import asyncio
import heapq
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct

from adapters.testing.fake_completion import Completion
from adapters.testing.fake_pooled import Answer

_BURST_FRAMES: Final = 64
_TICK_NS: Final = 1_000_000


class Pace(Struct, frozen=True):
    """How fast tokens come, after how many of them a completion dies or falls silent, and what is said at death."""

    first_ns: int = 0
    token_ns: int = 0
    die_after: int | None = None
    stall_after: int | None = None
    last_words: str = ""

    @property
    def paced(self) -> bool:
        return self.first_ns > 0 or self.token_ns > 0


class Listener(Protocol):
    """The connection that a completion writes to."""

    writable: bool

    def send_frames(self, frames: bytes, last: bool) -> None: ...

    def send_head(self) -> None: ...


class Stream:
    """A completion in a slot."""

    def __init__(self, listener: Listener, completion: Completion, wanted_slot: int) -> None:
        self.listener = listener
        self.completion = completion
        self.wanted_slot = wanted_slot
        self.slot = -1
        self.start_ns = 0
        self.gone = False


class SlotScheduler:
    """Runs at most one completion per slot; further ones wait in order, as in llama-server.

    Paced completions share one timer: each tick serves all that are due, on an absolute schedule
    that does not drift.
    """

    def __init__(self, slots: int, pace: Pace) -> None:
        self._pace = pace
        self.running: list[Stream | None] = [None] * slots
        self.waiting: deque[Stream] = deque()
        self.tokens_in = 0
        self.tokens_out = 0
        #: Inputs of embeddings and ranks that are being computed.
        self.computing = 0
        self._due: list[tuple[int, int, Stream]] = []
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None

    def compute(self, answer: Answer, deliver: Callable[[Answer], None]) -> None:
        """Answer after the time of a first token. Nothing stops it, as in llama-server."""
        if answer.status != 200 or not self._pace.first_ns:
            self.tokens_in += answer.tokens
            deliver(answer)
            return
        self.computing += 1
        asyncio.get_running_loop().call_later(self._pace.first_ns / 1e9, self._computed, answer, deliver)

    def _computed(self, answer: Answer, deliver: Callable[[Answer], None]) -> None:
        self.computing -= 1
        self.tokens_in += answer.tokens
        deliver(answer)

    def submit(self, stream: Stream) -> None:
        self.waiting.append(stream)
        self._fill()

    def drop(self, stream: Stream) -> None:
        """The client is gone."""
        stream.gone = True
        if stream.slot >= 0:
            self._free(stream)
        elif stream in self.waiting:
            self.waiting.remove(stream)

    def _fill(self) -> None:
        for stream in list(self.waiting):
            slot = self._slot_for(stream)
            if slot is None:
                continue
            self.waiting.remove(stream)
            self.running[slot] = stream
            stream.slot = slot
            stream.start_ns = time.monotonic_ns()
            self.tokens_in += stream.completion.prompt_tokens
            stream.listener.send_head()
            if self._pace.paced:
                self._schedule(stream, stream.start_ns + self._pace.first_ns)
            else:
                asyncio.get_running_loop().call_soon(self._burst, stream)

    def _slot_for(self, stream: Stream) -> int | None:
        wanted = stream.wanted_slot
        if 0 <= wanted < len(self.running):
            return wanted if self.running[wanted] is None else None
        return next((n for n, taken in enumerate(self.running) if taken is None), None)

    def _free(self, stream: Stream) -> None:
        self.running[stream.slot] = None
        stream.slot = -1
        self._fill()

    def _burst(self, stream: Stream) -> None:
        if stream.gone:
            return
        if stream.listener.writable:
            if not self._advance(stream, _BURST_FRAMES):
                return
            asyncio.get_running_loop().call_soon(self._burst, stream)
        else:
            asyncio.get_running_loop().call_later(_TICK_NS / 1e9, self._burst, stream)

    def _schedule(self, stream: Stream, due_ns: int) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due_ns, self._sequence, stream))
        if self._due[0][2] is stream and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        if self._due:
            delay_ns = max(self._due[0][0] - time.monotonic_ns(), 0)
            self._timer = asyncio.get_running_loop().call_later(delay_ns / 1e9, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns() + _TICK_NS // 2
        while self._due and self._due[0][0] <= now_ns:
            _, _, stream = heapq.heappop(self._due)
            if stream.gone:
                continue
            if self._pace.token_ns == 0:
                self._burst(stream)
            elif self._advance(stream, 1):
                due_ns = stream.start_ns + self._pace.first_ns + stream.completion.made * self._pace.token_ns
                self._sequence += 1
                heapq.heappush(self._due, (due_ns, self._sequence, stream))
        if self._timer is None:
            self._arm()

    def _advance(self, stream: Stream, count: int) -> bool:
        """Make up to `count` tokens; False when the stream needs no further turn."""
        completion, pace, before = stream.completion, self._pace, stream.completion.made
        for bound in (pace.stall_after, pace.die_after):
            if bound is not None:
                count = min(count, bound - before)
        if count <= 0:
            if pace.die_after is not None and before >= pace.die_after:
                os.write(2, f"{pace.last_words}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return False  # stalled: silent, but still in its slot
        frames = completion.frames(count)
        self.tokens_out += completion.made - before
        over = bool(completion.stop_type)
        stream.listener.send_frames(frames, over)
        if over:
            self._free(stream)
        return not over
