"""One client's stream of one task, put together from what scheduler and replicas tell.

The scheduler says that an attempt runs and where, and how the task ended; the replica sends the tokens and, when the
engine finished, the end. Only `finished` ends a stream by itself: every other end is the scheduler's verdict. Neither
a lost scheduler nor a lost replica ends it. Tokens that the replica can no longer give come from the transcript that
the scheduler keeps.

A task that was preempted, or whose replica was lost, is taken up by another attempt, which makes again what the
client has: that is compared and not sent again (ORCH-3086, ORCH-3045).
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
from orchestrator.cluster.following import CREDIT_RESULTS, CREDIT_TOKENS, Following, TokenSource
from orchestrator.cluster.stream_events import TRANSCRIPT_GONE, started_event, terminal_event

#: How long a stream waits for the replica's last tokens once the scheduler told the end.
TAIL_TIMEOUT_S: Final = 2.0

_OTHER_ATTEMPT: Final = ErrorInfo(
    "WORKER_RESET",
    "this best_effort task was begun again, and its text may be another than that which came before Last-Event-ID;"
    " attach without Last-Event-ID to read it from its start",
    retriable=False,
)
_TEXTS: Final = msgspec.msgpack.Decoder(list[str])


class StreamSource(TokenSource, Protocol):
    """What a stream needs of its gateway."""

    async def transcript(self, task_id: str, tenant: str) -> bytes:
        """The tokens of a task's ended attempts."""

    def ask_plan(self, task_id: str, tenant: str) -> int:
        """Ask how the task stands; what comes under the number returned is told to `TaskStream.planned`."""


class TaskStream:
    """Collects what is told about a task; `events` gives it to the client in order.

    `tenant` is set once the scheduler has answered that there is such a task.
    """

    def __init__(self, source: StreamSource, after: int, metrics_interval_s: float) -> None:
        self.tenant: str | None = None
        self._source = source
        self._metrics_interval_s = metrics_interval_s
        self._first = self._next = after + 1
        self._wake = asyncio.Event()
        self._following = Following(source, self._first, self._wake.set)
        self._started: wire.TaskStarted | None = None
        self._outcome: Outcome | None = None
        self._paused: Metrics | None = None
        self._paused_attempt = 0
        self._plan: Metrics | None = None
        self._asked = 0
        self._ticker: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ told by the gateway

    def started(self, message: wire.TaskStarted) -> None:
        # Told again after each loss of the scheduler: an attempt that is known is no news to the client.
        if message.attempt == self._following.attempt:
            self._following.told_again(message)
        elif self._started is None or message.attempt >= self._started.attempt:
            self._started = message
            self._wake.set()

    def paused(self, message: wire.TaskPaused) -> None:
        if message.attempt > self._paused_attempt:
            self._paused_attempt = message.attempt
            self._paused = message.metrics
            self._wake.set()

    def planned(self, req: int, metrics: Metrics) -> None:
        # Other streams of the task ask too; each takes its own answer only.
        if req == self._asked:
            self._plan = metrics
            self._wake.set()

    def ended(self, outcome: Outcome) -> None:
        # No token follows the end of a task, also where a replica that was given up still makes some (ORCH-3026).
        self._outcome = outcome
        self._following.end_at(outcome.tokens_out, at_once=outcome.state != "finished")
        self._wake.set()

    # ------------------------------------------------------------- read by the client

    async def events(self, task: TaskInfo) -> AsyncGenerator[StreamEvent]:
        """Everything from token `after + 1` on, ending with one `End` or `ErrorInfo`.

        The results of an embedding or a rerank come as tokens, one for each input.
        """
        self._following.credit = CREDIT_TOKENS if task.decodes else CREDIT_RESULTS
        self._tick(task, ask=False)
        try:
            while True:
                told = self._told(task)
                for event in told:
                    yield event
                if told and isinstance(told[-1], End | ErrorInfo):
                    return
                if told:
                    continue
                if self._outcome is not None:
                    if not await self._tail():
                        events = await self._from_transcript(task, self._outcome)
                        while events:  # let go of the tokens as soon as they are told
                            yield events.pop(0)
                        return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            if self._ticker is not None:
                self._ticker.cancel()
            self._following.leave()

    def _told(self, task: TaskInfo) -> list[StreamEvent]:
        """What there is to be told next; nothing: wait."""
        texts = self._following.take()
        if texts:
            return [self._tokens(texts)]
        if self._following.failure is not None:
            return [self._following.failure]
        if self._paused is not None:
            paused, self._paused = self._paused, None
            return [paused]
        started = self._started
        if started is not None and started.attempt > self._following.attempt:
            if self._is_other_text(started):
                return [_OTHER_ATTEMPT]
            self._following.enter(started, subscribe=self._outcome is None)
            # Once per stream: what follows a preemption or a loss is the same stream to the client.
            head = [started_event(started, task)] if self._next == self._first else []
            return [*head, started.metrics]
        end = self._end(task)
        if end is not None:
            return [end]
        if self._plan is not None:
            planned, self._plan = self._plan, None
            return [planned]
        return []

    def _is_other_text(self, started: wire.TaskStarted) -> bool:
        """Whether the client may have got what it has from an earlier attempt, whose text this one need not repeat."""
        return (
            started.determinism != "strict"
            and started.attempt > 1
            and max(self._following.delivered.count, started.resume_tokens) < self._first
        )

    def _tick(self, task: TaskInfo, *, ask: bool = True) -> None:
        """Ask for planning figures once an interval; tokens do not wait for the answer (ORCH-3100)."""
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(self._metrics_interval_s, self._tick, task)
        if ask:
            self._asked = self._source.ask_plan(task.task_id, task.tenant)

    def _tokens(self, texts: list[str]) -> Tokens:
        event = Tokens(self._next, texts)
        self._next += len(texts)
        return event

    # ------------------------------------------------------------------------ the end

    def _end(self, task: TaskInfo) -> End | ErrorInfo | None:
        """The terminal event, once every token before it was given."""
        over = self._following.result
        if over is not None and over.result == "finished" and over.outcome is not None:
            return terminal_event(over.outcome, task)
        if self._outcome is None or self._lacks(self._outcome):
            return None
        return terminal_event(self._outcome, task)

    def _lacks(self, outcome: Outcome) -> bool:
        """Whether tokens of the ended task have not been given, or given ones not been compared to its last attempt."""
        is_behind = outcome.state == "finished" and self._following.delivered.is_catching_up
        return self._next < outcome.tokens_out or is_behind

    async def _tail(self) -> bool:
        """Wait for the tokens still under way; false when the replica will not send them."""
        if not self._following.is_subscribed:
            return False
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAIL_TIMEOUT_S):
                await self._wake.wait()
                return True
        return False

    async def _from_transcript(self, task: TaskInfo, outcome: Outcome) -> list[StreamEvent]:
        """What is left of an ended task, from the scheduler's store; its text, too, must be what was delivered."""
        following = self._following
        following.leave()
        try:
            texts = _TEXTS.decode(await self._source.transcript(task.task_id, task.tenant))
        except OrchError as gone:
            # The end is known but not all tokens are: say so, a silent gap would be a lie.
            return [outcome.error or gone.info]
        if outcome.state == "finished" and len(texts) < outcome.tokens_out:
            return [TRANSCRIPT_GONE]  # what is kept is an earlier attempt's: an end behind that would be another lie
        following.delivered.begin()
        following.take_in(texts)
        if outcome.state == "finished" and following.failure is None:
            following.complete()
        events: list[StreamEvent] = []
        rest = following.take()
        if rest:
            events.append(self._tokens(rest))
        events.append(following.failure or terminal_event(outcome, task))
        return events
