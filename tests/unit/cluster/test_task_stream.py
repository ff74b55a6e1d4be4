"""One client's stream through preemption and resumption, and what it hears while it waits and while it runs."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest

from contracts import messages as wire
from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import StreamEvent, Tokens
from contracts.tasks import Outcome
from orchestrator.cluster.task_stream import TaskStream
from tests.unit.cluster.scripted import task, until
from tests.unit.cluster.scripted_core import ENDPOINT, REPLICA

TASK = task("a")
PAUSED = Metrics(predicted_start_ms=250, preempted=True, resumable=True)
RESUMED = Metrics(preempted=True, resumed=True, kv_migrated=False)
NEVER_S = 3600.0


def started(attempt: int, resume_tokens: int = 0, metrics: Metrics | None = None) -> wire.TaskStarted:
    frame = metrics or Metrics(queue_depth=attempt)
    return wire.TaskStarted("a", attempt, REPLICA, ENDPOINT, 3, 420, 388, True, frame, resume_tokens)


class Source:
    """Stands for the gateway: notes subscriptions and questions, and holds the scheduler's transcript."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[int, int]] = []
        self.kept: list[str] | None = None
        self.asked = 0

    async def subscribe(self, _stream: TaskStream, message: wire.TaskStarted, first: int, _credit: int) -> int:
        self.subscriptions.append((message.attempt, first))
        return len(self.subscriptions)

    def grant(self, sid: int, tokens: int) -> None:
        """No test here uses up its credit."""

    def unsubscribe(self, sid: int) -> None:
        """The stream fences a subscription off by itself."""

    async def transcript(self, _task_id: str, _tenant: str) -> bytes:
        if self.kept is None:
            raise OrchError(ErrorInfo("NOT_FOUND", "none"))
        return msgspec.msgpack.encode(self.kept)

    def ask_plan(self, _task_id: str, _tenant: str) -> int:
        self.asked += 1
        return self.asked


class Reader:
    """A stream and what its client has got."""

    def __init__(self, after: int = -1, metrics_interval_s: float = NEVER_S) -> None:
        self.source = Source()
        self.stream = TaskStream(self.source, after, metrics_interval_s)
        self.got: list[StreamEvent] = []
        self._events: AsyncGenerator[StreamEvent] = self.stream.events(TASK)

    async def read(self) -> None:
        async for event in self._events:
            self.got.append(event)

    def texts(self) -> list[str]:
        return [text for event in self.got if isinstance(event, Tokens) for text in event.texts]

    def of(self, kind: type) -> list[StreamEvent]:
        return [event for event in self.got if isinstance(event, kind)]

    def finish(self, sid: int, tokens_out: int) -> None:
        outcome = Outcome("finished", tokens_out=tokens_out, finish_reason="stop")
        self.stream.over(wire.StreamOver(sid, "finished", outcome))


@contextlib.asynccontextmanager
async def reader(after: int = -1, metrics_interval_s: float = NEVER_S) -> AsyncIterator[Reader]:
    made = Reader(after, metrics_interval_s)
    reading = asyncio.create_task(made.read())
    try:
        yield made
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def resumed(client: Reader) -> None:
    """Three tokens, a preemption, and the next attempt."""
    client.stream.started(started(1))
    await until(lambda: client.source.subscriptions)
    client.stream.tokens(1, 0, ["a", "b", "c"])
    await until(lambda: len(client.texts()) == 3)
    client.stream.over(wire.StreamOver(1, "stopped"))
    client.stream.paused(PAUSED)
    await until(lambda: PAUSED in client.got)
    client.stream.started(started(2, 3, RESUMED))
    await until(lambda: RESUMED in client.got)


@pytest.mark.req("ORCH-3086", "ORCH-2002", "OC-CTRL-2023")
async def test_a_preempted_stream_goes_on_without_gap_or_repeat() -> None:
    async with reader() as client:
        await resumed(client)
        assert client.source.subscriptions == [(1, 0), (2, 3)]
        client.stream.tokens(1, 3, ["stale"])  # a late frame of the first attempt
        client.stream.tokens(2, 3, ["d", "e"])
        client.finish(2, 5)
        await until(lambda: client.of(End))
    assert client.texts() == ["a", "b", "c", "d", "e"]
    assert [event.first for event in client.got if isinstance(event, Tokens)] == [0, 3]
    assert len(client.of(Started)) == 1
    assert client.of(Metrics) == [Metrics(queue_depth=1), PAUSED, RESUMED]


@pytest.mark.req("ORCH-3086")
async def test_tokens_that_were_still_under_way_come_from_the_transcript() -> None:
    async with reader() as client:
        client.stream.started(started(1))
        await until(lambda: client.source.subscriptions)
        client.stream.tokens(1, 0, ["a"])
        await until(lambda: client.texts())
        client.source.kept = ["a", "b", "c"]
        # The new attempt is told of before the old replica's last tokens are here.
        client.stream.paused(PAUSED)
        client.stream.started(started(2, 3))
        await until(lambda: len(client.source.subscriptions) == 2)
        client.stream.tokens(1, 1, ["b", "c"])
        client.stream.tokens(2, 3, ["d"])
        client.finish(2, 4)
        await until(lambda: client.of(End))
    assert client.source.subscriptions == [(1, 0), (2, 3)]
    assert client.texts() == ["a", "b", "c", "d"]


@pytest.mark.req("ORCH-3086", "ORCH-2002")
async def test_a_client_that_comes_back_gets_the_earlier_tokens_as_they_were() -> None:
    async with reader(after=0) as client:
        client.source.kept = ["a", "b", "c"]
        client.stream.started(started(2, 3, RESUMED))
        await until(lambda: client.source.subscriptions)
        client.stream.tokens(1, 3, ["d"])
        client.finish(1, 4)
        await until(lambda: client.of(End))
    assert client.source.subscriptions == [(2, 3)]
    assert client.texts() == ["b", "c", "d"]
    assert isinstance(client.got[0], Started)
    assert (client.got[0].kv_warmth, client.got[0].attempt) == (True, 2)


@pytest.mark.req("ORCH-3086")
async def test_without_a_transcript_the_resumed_attempt_gives_the_earlier_tokens() -> None:
    async with reader() as client:
        client.stream.started(started(2, 3, RESUMED))
        await until(lambda: client.source.subscriptions)
        assert client.source.subscriptions == [(2, 0)]


@pytest.mark.req("OC-CTRL-2021")
async def test_an_attempt_after_one_that_delivered_nothing_is_a_start_again() -> None:
    async with reader() as client:
        client.stream.started(started(1))
        await until(lambda: client.source.subscriptions)
        client.stream.over(wire.StreamOver(1, "failed"))
        client.stream.started(started(2))
        await until(lambda: len(client.of(Metrics)) == 2)
    assert [event.attempt for event in client.got if isinstance(event, Started)] == [1, 2]


@pytest.mark.req("ORCH-3086", "ORCH-3025")
async def test_a_task_whose_resumption_failed_ends_its_stream_with_the_error() -> None:
    error = ErrorInfo("WORKER_RESET", "determinism: other tokens", retriable=False)
    async with reader() as client:
        await resumed(client)
        client.source.kept = ["a", "b", "c"]
        client.stream.over(wire.StreamOver(2, "failed"))
        client.stream.ended(Outcome("failed", tokens_out=4, error=error))
        await until(lambda: client.of(ErrorInfo))
    assert client.texts() == ["a", "b", "c"]
    assert client.got[-1] == error


@pytest.mark.req("ORCH-3100", "OC-CTRL-2023", "ORCH-3081")
async def test_a_client_hears_how_its_task_stands_while_it_waits_and_while_it_runs() -> None:
    async with reader(metrics_interval_s=0.01) as client:
        for state in ("waits", "runs"):
            if state == "runs":
                client.stream.started(started(1))
            before = client.source.asked
            await until(lambda before=before: client.source.asked > before)  # type: ignore[misc]
            frame = Metrics(on_time_probability=0.5, kv_warmth=state == "runs")
            client.stream.planned(client.source.asked, frame)
            await until(lambda frame=frame: frame in client.got)  # type: ignore[misc]
        # An answer to another stream of the task is not ours.
        client.stream.planned(10_000, Metrics(on_time_probability=0.1))
        client.finish(1, 0)
        await until(lambda: client.of(End))
    assert Metrics(on_time_probability=0.1) not in client.got
    ticker = client.stream._ticker
    assert ticker is not None
    assert ticker.cancelled()
