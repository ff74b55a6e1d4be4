"""One client's stream of one task, put together from what scheduler and replicas tell.

The scheduler says that an attempt runs and where, and how the task ended; the replica sends the
tokens and, when the engine finished, the end. Only `finished` ends a stream by itself: every
other end is the scheduler's verdict. Tokens that the replica can no longer give come from the
transcript that the scheduler keeps.

A preempted task is taken up by another attempt. What came before it is not sent again: a stream that
lacks some of it takes it from the transcript, and the new attempt's tokens follow (ORCH-3086).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final, Protocol

import msgspec

from contracts import messages as wire
from contracts.api import End, Metrics
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import StreamEvent, Tokens
from contracts.tasks import Outcome, TaskInfo
from orchestrator.cluster.stream_events import started_event, terminal_event

#: Tokens that may be under way to one stream; half of it used up, more is granted.
CREDIT_TOKENS: Final = 1024
#: The same of embeddings, each of which may take hundreds of kilobytes.
CREDIT_RESULTS: Final = 16
#: How long a stream waits for the replica's last tokens once the scheduler told the end.
TAIL_TIMEOUT_S: Final = 2.0

_TEXTS: Final = msgspec.msgpack.Decoder(list[str])


class StreamSource(Protocol):
    """What a stream needs of its gateway."""

    async def subscribe(self, stream: "TaskStream", started: wire.TaskStarted, first: int, credit: int) -> int:
        """Subscribe to an attempt's tokens and return the subscription's id. Raises ChannelError."""

    def grant(self, sid: int, tokens: int) -> None:
        """Let the replica send more."""

    def unsubscribe(self, sid: int) -> None:
        """Stop a subscription."""

    async def transcript(self, task_id: str, tenant: str) -> bytes:
        """The tokens of a task's ended attempts."""

    def ask_plan(self, task_id: str, tenant: str) -> int:
        """Ask how the task stands; what comes under the number returned is told to `TaskStream.planned`."""


class TaskStream:
    """Collects what is told about a task; `events` gives it to the client in order."""

    def __init__(self, source: StreamSource, after: int, metrics_interval_s: float) -> None:
        self._source = source
        self._metrics_interval_s = metrics_interval_s
        self._first = self._next = after + 1
        self._wake = asyncio.Event()
        self._started: wire.TaskStarted | None = None
        self._attempt = 0
        self._sid = 0
        self._texts: list[str] = []
        self._received = after + 1
        self._credit = CREDIT_TOKENS
        self._consumed = 0
        self._over: wire.StreamOver | None = None
        self._outcome: Outcome | None = None
        self._paused: Metrics | None = None
        self._plan: Metrics | None = None
        self._asked = 0
        self._ticker: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ told by the gateway

    def started(self, message: wire.TaskStarted) -> None:
        self._started = message
        self._wake.set()

    def paused(self, metrics: Metrics) -> None:
        self._paused = metrics
        self._wake.set()

    def planned(self, req: int, metrics: Metrics) -> None:
        # Other streams of the task ask too; each takes its own answer only.
        if req == self._asked:
            self._plan = metrics
            self._wake.set()

    def ended(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._wake.set()

    def tokens(self, sid: int, first: int, texts: list[str]) -> None:
        # Tokens of an earlier subscription are fenced off; a gap cannot happen on an ordered channel.
        if sid == self._sid and first == self._received:
            self._received += len(texts)
            self._texts += texts
            self._wake.set()

    def over(self, message: wire.StreamOver) -> None:
        if message.sid == self._sid:
            self._over = message
            self._wake.set()

    # ------------------------------------------------------------- read by the client

    async def events(self, task: TaskInfo) -> AsyncGenerator[StreamEvent]:
        """Everything from token `after + 1` on, ending with one `End` or `ErrorInfo`.

        The results of an embedding or a rerank come as tokens, one for each input.
        """
        self._credit = CREDIT_TOKENS if task.decodes else CREDIT_RESULTS
        self._tick(task, ask=False)
        try:
            while True:
                if self._texts:
                    yield self._take()
                    continue
                if self._paused is not None:
                    paused, self._paused = self._paused, None
                    yield paused
                    continue
                if self._started is not None and self._started.attempt > self._attempt:
                    started = self._started
                    await self._enter(started, task)
                    # Once per stream: what follows a preemption is the same stream to the client.
                    if self._next == self._first:
                        yield started_event(started, task)
                    yield started.metrics
                    continue
                end = self._end(task)
                if end is not None:
                    yield end
                    return
                if self._outcome is not None and not await self._tail(self._outcome):
                    events = await self._from_transcript(task, self._outcome)
                    while events:  # let go of the tokens as soon as they are told
                        yield events.pop(0)
                    return
                if self._plan is not None:
                    planned, self._plan = self._plan, None
                    yield planned
                elif self._outcome is None:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            if self._ticker is not None:
                self._ticker.cancel()
            self._unsubscribe()

    def _tick(self, task: TaskInfo, *, ask: bool = True) -> None:
        """Ask for planning figures once an interval; tokens do not wait for the answer (ORCH-3100)."""
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(self._metrics_interval_s, self._tick, task)
        if ask:
            self._asked = self._source.ask_plan(task.task_id, task.tenant)

    def _take(self) -> Tokens:
        texts, self._texts = self._texts, []
        event = Tokens(self._next, texts)
        self._next += len(texts)
        self._consumed += len(texts)
        if self._consumed * 2 >= self._credit and self._over is None:
            self._source.grant(self._sid, self._consumed)
            self._consumed = 0
        return event

    def _end(self, task: TaskInfo) -> End | ErrorInfo | None:
        """The terminal event, once every token before it was given."""
        if self._over is not None and self._over.result == "finished" and self._over.outcome is not None:
            return terminal_event(self._over.outcome, task)
        if self._outcome is None or self._next < self._outcome.tokens_out:
            return None
        return terminal_event(self._outcome, task)

    async def _tail(self, outcome: Outcome) -> bool:
        """Wait for the tokens still under way; false when the replica will not send them."""
        if not self._sid or self._over is not None or self._next >= outcome.tokens_out:
            return False
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAIL_TIMEOUT_S):
                await self._wake.wait()
                return True
        return False

    async def _from_transcript(self, task: TaskInfo, outcome: Outcome) -> list[StreamEvent]:
        """What is left of an ended task, from the scheduler's store."""
        try:
            texts = _TEXTS.decode(await self._source.transcript(task.task_id, task.tenant))
        except OrchError as gone:
            # The end is known but not all tokens are: say so, a silent gap would be a lie.
            return [outcome.error or gone.info]
        events: list[StreamEvent] = []
        if len(texts) > self._next:
            events.append(Tokens(self._next, texts[self._next :]))
        events.append(terminal_event(outcome, task))
        return events

    # ------------------------------------------------------------------- subscription

    async def _enter(self, started: wire.TaskStarted, task: TaskInfo) -> None:
        """Go over to an attempt: what of the one before is still missing, then the new one's tokens."""
        self._attempt = started.attempt
        self._unsubscribe()
        self._over = None
        self._consumed = 0
        if self._outcome is not None:
            return
        if self._next < started.resume_tokens:
            with contextlib.suppress(OrchError):  # the new attempt makes these tokens too
                texts = _TEXTS.decode(await self._source.transcript(task.task_id, task.tenant))
                self._texts = texts[self._next : started.resume_tokens]
        self._received = self._next + len(self._texts)
        # A replica that cannot be reached is the scheduler's to judge; its verdict will come.
        with contextlib.suppress(ConnectionError):
            self._sid = await self._source.subscribe(self, started, self._received, self._credit)

    def _unsubscribe(self) -> None:
        if self._sid:
            self._source.unsubscribe(self._sid)
            self._sid = 0
