"""One client's stream through preemption, loss and resumption, and what it hears while it waits and while it runs."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import StreamEvent, Tokens
from contracts.tasks import Outcome
from orchestrator.cluster import following
from orchestrator.cluster.following import CREDIT_TOKENS, Following
from orchestrator.cluster.task_stream import TaskStream
from tests.unit.cluster.scripted import task, until
from tests.unit.cluster.scripted_core import ENDPOINT, REPLICA

TASK = task("a")
PAUSED = Metrics(predicted_start_ms=250, preempted=True, resumable=True)
RESUMED = Metrics(preempted=True, resumed=True, kv_migrated=False)
FAILED_OVER = Metrics(resumed=True, failover=True, kv_warmth=False, kv_migrated=False)
NEVER_S = 3600.0


def started(attempt: int, resume_tokens: int = 0, metrics: Metrics | None = None) -> wire.TaskStarted:
    frame = metrics or Metrics(queue_depth=attempt)
    return wire.TaskStarted("a", attempt, REPLICA, ENDPOINT, 3, 420, 388, True, frame, resume_tokens)


def paused(attempt: int = 1) -> wire.TaskPaused:
    return wire.TaskPaused("a", attempt, PAUSED)


class Source:
    """Stands for the gateway: notes what streams do, and holds the scheduler's transcript."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[int, int]] = []
        self.endpoints: list[wire.Endpoint] = []
        self.credit: list[int] = []
        self.left: list[int] = []
        self.alarms: list[tuple[str, int]] = []
        self.kept: list[str] | None = None
        self.asked = 0

    def subscribe(self, _reader: Following, message: wire.TaskStarted, first: int, credit: int) -> int:
        self.subscriptions.append((message.attempt, first))
        self.endpoints.append(message.endpoint)
        self.credit.append(credit)
        return len(self.subscriptions)

    def grant(self, sid: int, tokens: int) -> None:
        self.credit[sid - 1] += tokens

    def unsubscribe(self, sid: int) -> None:
        self.left.append(sid)

    def diverged(self, task_id: str, attempt: int) -> None:
        self.alarms.append((task_id, attempt))

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

    def tokens(self, sid: int, first: int, texts: list[str]) -> None:
        self.stream._following.tokens(sid, first, texts)

    def over(self, message: wire.StreamOver) -> None:
        self.stream._following.over(message)

    def finish(self, sid: int, tokens_out: int) -> None:
        outcome = Outcome("finished", tokens_out=tokens_out, finish_reason="stop")
        self.over(wire.StreamOver(sid, "finished", outcome))

    async def attempt(self, number: int, metrics: Metrics | None = None) -> int:
        """An attempt starts and the stream goes over to it; the subscription's number."""
        self.stream.started(started(number, metrics=metrics))
        await until(lambda: self.source.subscriptions and self.source.subscriptions[-1][0] == number)
        return len(self.source.subscriptions)

    async def got_text(self, text: str) -> None:
        await until(lambda: "".join(self.texts()) == text)


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
    await client.attempt(1)
    client.tokens(1, 0, ["a", "b", "c"])
    await until(lambda: len(client.texts()) == 3)
    client.over(wire.StreamOver(1, "stopped"))
    client.stream.paused(paused())
    await until(lambda: PAUSED in client.got)
    client.stream.started(started(2, 3, RESUMED))
    await until(lambda: RESUMED in client.got)


@pytest.mark.req("ORCH-3086", "ORCH-2002", "OC-CTRL-2023")
async def test_a_preempted_stream_goes_on_without_gap_or_repeat() -> None:
    async with reader() as client:
        await resumed(client)
        assert client.source.subscriptions == [(1, 0), (2, 0)]
        client.tokens(1, 3, ["stale"])  # a late frame of the first attempt
        client.tokens(2, 0, ["", "ab", "cd"])
        client.tokens(2, 3, ["e", "f"])
        client.finish(2, 5)
        await until(lambda: client.of(End))
    assert client.texts() == ["a", "b", "c", "de", "f"]
    assert [event.first for event in client.got if isinstance(event, Tokens)] == [0, 3]
    assert len(client.of(Started)) == 1
    assert client.of(Metrics) == [Metrics(queue_depth=1), PAUSED, RESUMED]


@pytest.mark.req("ORCH-3009", "ORCH-3023", "ORCH-3045", "OC-CTRL-2022")
async def test_a_stream_whose_replica_is_lost_goes_on_with_one_frame_and_the_same_text() -> None:
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a", "bc"])
        await client.got_text("abc")
        client.over(wire.StreamOver(1, "failed"))
        second = await client.attempt(2, FAILED_OVER)
        client.stream.started(started(2, metrics=FAILED_OVER))  # told again by another scheduler
        client.tokens(second, 0, ["ab"])
        client.tokens(second, 1, ["cd", "e"])
        client.finish(second, 3)
        await until(lambda: client.of(End))
    assert client.texts() == ["a", "bc", "de"]
    assert [event.first for event in client.got if isinstance(event, Tokens)] == [0, 2]
    assert client.of(Metrics) == [Metrics(queue_depth=1), FAILED_OVER]
    assert len(client.of(Started)) == 1


@pytest.mark.req("ORCH-3045", "ORCH-3025")
@pytest.mark.parametrize("determinism", ["strict", "best_effort"])
async def test_another_text_ends_the_stream_and_alarms_where_text_is_promised(determinism: str) -> None:
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a", "b", "c"])
        await client.got_text("abc")
        client.over(wire.StreamOver(1, "failed"))
        client.stream.started(replace(started(2), determinism=determinism))
        await until(lambda: len(client.source.subscriptions) == 2)
        client.tokens(2, 0, ["a", "b"])
        client.tokens(2, 2, ["x", "y"])
        client.stream.started(started(3))  # too late: the stream has failed
        await until(lambda: client.of(ErrorInfo))
    error = client.got[-1]
    assert isinstance(error, ErrorInfo)
    assert (error.code, error.retriable, error.pool_id) == ("WORKER_RESET", False, "pool")
    assert error.message.startswith("determinism: attempt 2")
    assert client.texts() == ["a", "b", "c"]
    assert len(client.source.subscriptions) == 2
    assert client.source.alarms == ([("a", 2)] if determinism == "strict" else [])
    assert 2 in client.source.left


@pytest.mark.req("ORCH-3045")
async def test_an_attempt_that_ends_within_what_was_delivered_is_another_text() -> None:
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a", "b", "c"])
        await client.got_text("abc")
        second = await client.attempt(2)
        client.tokens(second, 0, ["a", "b"])
        client.finish(second, 2)
        await until(lambda: client.of(ErrorInfo))
    assert client.source.alarms == [("a", 2)]


@pytest.mark.req("ORCH-3009", "ORCH-2002")
async def test_a_cut_connection_is_healed_by_subscribing_again_where_the_tokens_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "AGAIN_MIN_S", 0.01)
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a", "b"])
        for sid in (1, 2, 3):  # the third time it can be made again
            client.over(wire.StreamOver(sid, "unknown"))
            await until(lambda sid=sid: len(client.source.subscriptions) > sid)  # type: ignore[misc]
        client.over(wire.StreamOver(2, "unknown"))  # of a subscription that is no longer followed
        client.tokens(4, 2, ["c"])
        client.finish(4, 3)
        await until(lambda: client.of(End))
    assert client.source.subscriptions == [(1, 0), (1, 2), (1, 2), (1, 2)]
    assert client.texts() == ["a", "b", "c"]
    assert len(client.of(Metrics)) == 1


@pytest.mark.req("ORCH-3009")
async def test_a_stream_waits_for_its_replica_until_the_scheduler_tells_of_another_attempt_or_place() -> None:
    elsewhere = replace(ENDPOINT, port=2)
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a"])
        await client.got_text("a")
        client.over(wire.StreamOver(1, "unknown"))
        client.stream.started(replace(started(1), endpoint=elsewhere))  # no need to wait any longer
        assert client.source.endpoints == [ENDPOINT, elsewhere]
        client.stream.started(replace(started(1), endpoint=elsewhere))  # it is subscribed: ignored
        client.over(wire.StreamOver(2, "unknown"))
        await client.attempt(2)
        await asyncio.sleep(0.15)  # the try that was due is no more
        assert client.source.subscriptions == [(1, 0), (1, 1), (2, 0)]


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012")
async def test_no_token_follows_the_end_of_a_task_where_a_lost_replica_still_makes_some() -> None:
    async with reader() as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a", "b"])
        await client.got_text("ab")
        client.tokens(1, 2, ["c", "d", "e"])
        client.stream.ended(Outcome("canceled", tokens_out=3, finish_reason="canceled"))
        client.tokens(1, 5, ["f"])
        await until(lambda: client.of(End))
    assert client.texts() == ["a", "b", "c"]
    assert len(client.of(End)) == 1


@pytest.mark.req("ORCH-2002")
async def test_tokens_that_no_replica_can_give_come_from_the_transcript_and_are_compared_with_what_was_given() -> None:
    for kept, texts in ((["a", "bcd", "e"], ["a", "b", "cde"]), (["a", "x", "c"], ["a", "b"])):
        async with reader() as client:
            await client.attempt(1)
            client.tokens(1, 0, ["a", "b"])
            await client.got_text("ab")
            client.over(wire.StreamOver(1, "unknown"))
            client.source.kept = kept
            client.stream.ended(Outcome("finished", tokens_out=3, finish_reason="stop"))
            await until(lambda client=client: client.of(End) or client.of(ErrorInfo))  # type: ignore[misc]
        assert client.texts()[:2] == texts[:2]
        assert "".join(client.texts()) == "".join(texts)
        assert client.source.alarms == ([] if kept[1] == "bcd" else [("a", 1)])


@pytest.mark.req("ORCH-3086", "ORCH-2002")
async def test_a_client_that_comes_back_is_given_what_it_lacks() -> None:
    async with reader(after=0) as client:
        await client.attempt(2, RESUMED)
        client.tokens(1, 0, ["a"])
        client.tokens(1, 1, ["b", "c", "d"])
        await client.got_text("bcd")
        third = await client.attempt(3)
        client.tokens(third, 0, ["", "abc", "d", "e"])
        client.finish(third, 4)
        await until(lambda: client.of(End))
    # What lies before its own first token is compared as well.
    assert client.source.subscriptions == [(2, 0), (3, 0)]
    assert "".join(client.texts()) == "bcde"
    assert isinstance(client.got[0], Started)
    assert (client.got[0].kv_warmth, client.got[0].attempt) == (True, 2)


@pytest.mark.req("ORCH-3086")
async def test_a_pause_is_told_once_however_often_the_scheduler_tells_it() -> None:
    async with reader() as client:
        await client.attempt(1)
        client.stream.paused(paused())
        await until(lambda: PAUSED in client.got)
        client.stream.paused(paused())  # as a scheduler does that is asked again
        await client.attempt(2)
        client.stream.paused(paused(2))
        await until(lambda: client.got[-1] == PAUSED)
    assert client.of(Metrics) == [Metrics(queue_depth=1), PAUSED, Metrics(queue_depth=2), PAUSED]


async def test_what_is_under_way_to_a_stream_is_bounded_also_while_it_catches_up_and_subscribes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "AGAIN_MIN_S", 0.0)
    stream = TaskStream(source := Source(), -1, NEVER_S)
    follower = stream._following
    follower.enter(started(1), subscribe=True)
    follower.tokens(1, 0, ["t"] * CREDIT_TOKENS)  # and nobody reads
    follower.over(wire.StreamOver(1, "unknown"))
    await until(lambda: len(source.subscriptions) == 2)
    assert source.credit == [CREDIT_TOKENS, 0]
    assert len(follower.take()) == CREDIT_TOKENS
    assert source.credit == [CREDIT_TOKENS, CREDIT_TOKENS]
    follower.enter(started(2), subscribe=True)
    follower.tokens(3, 0, ["t"] * CREDIT_TOKENS)  # held back: no client has to read them
    assert source.credit[2] == 2 * CREDIT_TOKENS
    assert follower.take() == []


@pytest.mark.req("OC-CTRL-2021")
async def test_an_attempt_after_one_that_delivered_nothing_is_a_start_again() -> None:
    async with reader() as client:
        await client.attempt(1)
        client.over(wire.StreamOver(1, "failed"))
        client.stream.started(started(2))
        await until(lambda: len(client.of(Metrics)) == 2)
    assert [event.attempt for event in client.got if isinstance(event, Started)] == [1, 2]


@pytest.mark.req("ORCH-3086", "ORCH-3025")
async def test_a_task_whose_resumption_failed_ends_its_stream_with_the_error() -> None:
    error = ErrorInfo("WORKER_RESET", "determinism: other tokens", retriable=False)
    async with reader() as client:
        await resumed(client)
        client.source.kept = ["a", "b", "c"]
        client.over(wire.StreamOver(2, "failed"))
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
