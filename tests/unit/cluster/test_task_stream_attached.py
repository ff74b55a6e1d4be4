"""Streams that clients take up in the middle: aligned by the whole text, and never put together of two texts."""

import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts.api import End
from contracts.errors import ErrorInfo
from contracts.gateway import Tokens
from contracts.tasks import Outcome
from tests.unit.cluster.scripted import until
from tests.unit.cluster.test_task_stream import FAILED_OVER, Reader, reader, started

pytestmark = pytest.mark.req("ORCH-2002", "ORCH-3045")

#: Tokens 0 to 97 of both attempts; after them an engine may put the text into other tokens the second time.
BEFORE = [f"w{n} " for n in range(98)]


async def attached(client: Reader) -> None:
    """The client has 100 tokens; it gets three more, and the replica is lost."""
    await client.attempt(1)
    client.tokens(1, 0, [*BEFORE, "a", "b"])
    client.tokens(1, 100, ["c", "d", "e"])
    await client.got_text("cde")
    client.over(wire.StreamOver(1, "failed"))


async def test_a_later_attempt_with_other_tokens_before_the_first_one_wanted_is_no_other_text() -> None:
    async with reader(after=99) as client:
        await attached(client)
        second = await client.attempt(2, FAILED_OVER)
        client.tokens(second, 0, [*BEFORE, "", "", "", "abcd", "e", "f", "g"])
        client.finish(second, 105)
        await until(lambda: client.of(End))
    assert client.texts() == ["c", "d", "e", "f", "g"]
    assert [event.first for event in client.got if isinstance(event, Tokens)] == [100, 103]
    assert client.source.alarms == []


async def test_another_text_before_the_first_token_wanted_is_found_out() -> None:
    async with reader(after=99) as client:
        await attached(client)
        second = await client.attempt(2, FAILED_OVER)
        client.tokens(second, 0, ["x0 ", *BEFORE[1:], "a", "b", "c", "d", "e", "f"])
        await until(lambda: client.of(ErrorInfo))
    assert client.texts() == ["c", "d", "e"]
    assert client.source.alarms == [("a", 2)]


async def test_the_transcript_of_an_attempt_with_other_tokens_is_no_other_text() -> None:
    async with reader(after=99) as client:
        await attached(client)
        client.source.kept = [*BEFORE, "", "", "", "abcd", "e", "f"]
        client.stream.ended(Outcome("finished", tokens_out=104, finish_reason="stop"))
        await until(lambda: client.of(End) or client.of(ErrorInfo))
    assert client.texts() == ["c", "d", "e", "f"]
    assert client.source.alarms == []


async def test_a_first_attempt_that_was_lost_before_the_tokens_wanted_gives_way_to_the_next() -> None:
    async with reader(after=1) as client:
        await client.attempt(1)
        client.tokens(1, 0, ["a"])
        client.over(wire.StreamOver(1, "failed"))
        second = await client.attempt(2, FAILED_OVER)
        client.tokens(second, 0, ["a", "b", "c"])
        client.finish(second, 3)
        await until(lambda: client.of(End))
    assert client.texts() == ["c"]
    assert [event.first for event in client.got if isinstance(event, Tokens)] == [2]


@pytest.mark.req("ORCH-3009")
async def test_an_attempt_that_repeats_nothing_is_not_put_behind_the_text_of_another() -> None:
    async with reader(after=4) as client:
        client.stream.started(replace(started(2), determinism="best_effort"))
        await until(lambda: client.of(ErrorInfo))
    (error,) = client.got
    assert isinstance(error, ErrorInfo)
    assert (error.code, error.retriable) == ("WORKER_RESET", False)
    assert client.source.subscriptions == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (-1, replace(started(2), determinism="best_effort")),
        (4, replace(started(1), determinism="best_effort")),
        (4, replace(started(2, resume_tokens=5), determinism="best_effort")),
        (4, started(2)),
    ],
)
async def test_attempts_whose_text_is_the_clients_are_gone_on_with(after: int, told: wire.TaskStarted) -> None:
    async with reader(after=after) as client:
        client.stream.started(told)
        await until(lambda: client.source.subscriptions == [(told.attempt, 0)])


async def test_a_transcript_that_is_an_earlier_attempts_is_no_end_behind_a_gap() -> None:
    async with reader() as client:
        client.source.kept = ["a", "b"]
        client.stream.started(started(2))
        client.stream.ended(Outcome("finished", tokens_out=5, finish_reason="stop"))
        await until(lambda: client.of(ErrorInfo))
    error = client.got[-1]
    assert isinstance(error, ErrorInfo)
    assert (error.code, client.texts(), client.of(End)) == ("NOT_FOUND", [], [])
