"""Reading vLLM's streams: as a real server sent them, and whatever else may come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.attempts import Attempt
from adapters.vllm.stream import read_completion
from contracts.engine import Chunk, EngineError, Finish

DATA = Path(__file__).parent / "data" / "vllm"
DONE = b"data: [DONE]\n\n"


def recorded(name: str) -> bytes:
    return bytes(msgspec.json.decode((DATA / f"{name}.json").read_bytes())["body"], "utf-8")


def frame(text: str, count: int, reason: str | None = None, stop: str | int | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason, "stop_reason": stop}
    usage = {"prompt_tokens": 5, "total_tokens": 5 + count, "completion_tokens": count}
    return b"data: " + msgspec.json.encode({"id": "cmpl-1", "choices": [choice], "usage": usage}) + b"\n\n"


def usage_frame(count: int, cached: int = 0) -> bytes:
    usage = {"prompt_tokens": 5, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": cached}}
    return b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n"


class Content:
    """The body of a response: chunks, then an end or an error."""

    def __init__(self, chunks: Sequence[bytes | Exception]) -> None:
        self._chunks = list(chunks)

    async def read(self) -> bytes:
        chunk = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, Exception):
            raise chunk
        return chunk


async def read(*chunks: bytes | Exception, attempt: Attempt | None = None) -> list[Chunk | Finish]:
    response = cast(Any, Content(chunks))
    return [item async for item in read_completion(attempt or Attempt("a"), response)]


def text_of(items: list[Chunk | Finish]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


def tokens_of(items: list[Chunk | Finish]) -> int:
    return sum(item.tokens for item in items if isinstance(item, Chunk))


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3026")
async def test_a_recorded_stream_is_text_and_one_end() -> None:
    attempt = Attempt("a")
    items = await read(recorded("stream"), attempt=attempt)
    assert [type(item) for item in items] == [Chunk] * 6 + [Finish]
    assert items[0] == Chunk(" Paris")
    assert items[-1] == Finish("length", tokens_in=5)
    assert attempt.finished


@pytest.mark.req("OC-ADAPT-5010")
async def test_characters_come_whole_and_tokens_are_the_engines() -> None:
    items = await read(recorded("stream-characters"))
    assert tokens_of(items) == 14
    assert "日" in text_of(items)
    assert "\ufffd" not in text_of(items)
    # Parts of a character are tokens without text.
    assert any(isinstance(item, Chunk) and not item.text for item in items)


@pytest.mark.req("OC-ADAPT-5010")
@pytest.mark.parametrize("name", ["stream-characters", "stream-stop-string"])
async def test_borders_of_reads_do_not_matter(name: str) -> None:
    data = recorded(name)
    whole = await read(data)
    for border in range(1, len(data), 7):
        assert await read(data[:border], data[border:]) == whole


@pytest.mark.req("OC-ADAPT-5001")
async def test_a_stop_string_is_told_and_not_in_the_text() -> None:
    items = await read(recorded("stream-stop-string"))
    end = items[-1]
    assert isinstance(end, Finish)
    assert (end.finish_reason, end.stop_sequence) == ("stop", "answer is")
    assert text_of(items) == " Paris.\n\nThe "


async def test_text_that_was_held_back_comes_at_the_end() -> None:
    items = await read(recorded("stream-held-back"))
    assert text_of(items) == " Paris.\n\nThe answer is: 2018-01-22 12:12:53."
    assert tokens_of(items) == 30


async def test_a_stop_token_is_a_stop_without_a_string() -> None:
    items = await read(frame("a", 1), frame("", 2, "stop", 2), usage_frame(2, cached=3), DONE)
    assert items == [Chunk("a"), Chunk(""), Finish("stop", tokens_in=5, tokens_cached=3)]


async def test_the_context_ends_a_text_that_asked_for_more() -> None:
    items = await read(recorded("stream-clamped"))
    end = items[-1]
    assert isinstance(end, Finish)
    assert end.finish_reason == "length"
    assert end.tokens_in + tokens_of(items) == 256


@pytest.mark.req("ORCH-3025")
async def test_a_refusal_may_come_within_the_stream() -> None:
    attempt = Attempt("a")
    with pytest.raises(EngineError, match="logit_bias") as refused:
        await read(recorded("stream-error"), attempt=attempt)
    assert (refused.value.info.code, refused.value.info.retriable) == ("INVALID_PARAMS", False)
    # The engine holds nothing of it.
    assert attempt.finished


@pytest.mark.req("ORCH-3025", "ORCH-3026")
async def test_a_failure_amid_the_text_is_the_engines() -> None:
    failure = b'data: {"error": {"message": "boom", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
    with pytest.raises(EngineError, match="boom") as failed:
        await read(frame("a", 1) + failure + DONE)
    assert (failed.value.info.code, failed.value.info.retriable) == ("INTERNAL", True)


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize(
    "chunks",
    [
        (b"",),
        (frame("a", 1),),
        (frame("a", 1, "stop"),),
        (frame("a", 1, "stop"), usage_frame(1)),
        (frame("a", 1), usage_frame(1), DONE),
        (frame("a", 1, "stop"), DONE),
        (frame("a", 1, "abort"), usage_frame(1), DONE),
        (frame("a", 2), frame("b", 1, "stop"), usage_frame(1), DONE),
        (frame("a", 1, "stop"), frame("b", 2), usage_frame(2), DONE),
        (frame("a", 1), ConnectionError("reset")),
        (frame("a", 1), b'data: {"choices": [{"text": "b"'),
        (b'data: {"choices": [{"text": "no usage"}]}\n\n', DONE),
        (b"data: <html>\n\n",),
        (b"data: " + b"[" * 100_000 + b"\n\n",),
    ],
)
async def test_anything_but_a_told_end_is_a_reset(chunks: tuple[bytes | Exception, ...]) -> None:
    attempt = Attempt("a")
    with pytest.raises(EngineError) as reset:
        await read(*chunks, attempt=attempt)
    assert (reset.value.info.code, reset.value.info.retriable) == ("WORKER_RESET", True)
    assert not attempt.finished


@pytest.mark.req("ORCH-3017")
async def test_a_canceled_stream_just_ends() -> None:
    attempt = Attempt("a")
    items = []
    response = cast(Any, Content([frame("a", 1) + frame("b", 2), ConnectionError("closed")]))
    async for item in read_completion(attempt, response):
        items.append(item)
        attempt.stop()
    assert items == [Chunk("a")]


PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([frame("ü", 1), frame("", 2), frame("x", 3, "length"), usage_frame(3), DONE, b"\r\n", b"data: "]),
    st.builds(
        lambda value: b"data: " + msgspec.json.encode(value) + b"\n\n",
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(st.sampled_from(["choices", "usage", "error", "text", "code", "message"]), inner),
            ),
            max_leaves=8,
        ),
    ),
)


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3026")
@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(1, 64))
async def test_whatever_comes_is_chunks_and_one_end_or_an_error(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    try:
        items = await read(*(data[at : at + size] for at in range(0, len(data), size)))
    except EngineError:
        return
    assert [type(item) for item in items].count(Finish) == 1
    assert isinstance(items[-1], Finish)
    assert all(item.tokens >= 1 for item in items[:-1] if isinstance(item, Chunk))
    assert sum(len(item.text) for item in items if isinstance(item, Chunk)) <= len(data)
