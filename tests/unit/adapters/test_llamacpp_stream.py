"""Reading completion streams, from frames as a real llama-server sent them."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from adapters.attempts import Attempt
from adapters.llamacpp.stream import read_completion
from contracts.engine import Chunk, EngineError, Finish

EMOJI = (
    'data: {"index":0,"content":"","tokens":[0],"stop":false,"id_slot":-1,"tokens_predicted":0,"tokens_evaluated":13,'
    '"prompt_progress":{"total":13,"cache":0,"processed":13,"time_ms":15}}\n\n'
    'data: {"index":0,"content":"🙂","tokens":[38887],"stop":false,"id_slot":-1,"tokens_predicted":2,'
    '"tokens_evaluated":13}\n\n'
    'data: {"index":0,"content":"","tokens":[2],"stop":false,"id_slot":-1,"tokens_predicted":3,'
    '"tokens_evaluated":13}\n\n'
).encode()
LAST = (
    b'data: {"content":"","stop":true,"stop_type":"eos","stopping_word":"","tokens_predicted":%d,'
    b'"tokens_evaluated":13,"timings/cache_n":4}\n\n'
)


class Content:
    """The body of a response: chunks, then an end or an error."""

    def __init__(self, chunks: Sequence[bytes | Exception], attempt: Attempt | None = None) -> None:
        self._chunks = list(chunks)
        self._attempt = attempt

    async def read(self) -> bytes:
        chunk = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, Exception):
            raise chunk
        return chunk


async def read(*chunks: bytes | Exception, attempt: Attempt | None = None) -> list[Chunk | Finish]:
    response = cast(Any, Content(chunks))
    return [item async for item in read_completion(attempt or Attempt("a"), response)]


@pytest.mark.req("OC-ADAPT-5001", "OC-ADAPT-5010")
async def test_tokens_are_counted_not_frames() -> None:
    attempt = Attempt("a")
    got = await read(EMOJI, LAST % 3, attempt=attempt)
    assert got == [Chunk("🙂", 2), Chunk("", 1), Finish("stop", tokens_in=13, tokens_cached=4)]
    assert attempt.finished


@pytest.mark.req("OC-ADAPT-5010")
async def test_a_character_split_between_chunks_arrives_whole() -> None:
    data = EMOJI + LAST % 3
    whole = await read(data)
    for border in range(1, len(data)):
        assert await read(data[:border], data[border:]) == whole


@pytest.mark.req("OC-ADAPT-5001")
async def test_tokens_that_only_the_last_frame_counts_are_not_lost() -> None:
    got = await read(EMOJI, LAST % 5)
    assert got[-2:] == [Chunk("", 2), Finish("stop", tokens_in=13, tokens_cached=4)]


@pytest.mark.req("ORCH-3025", "ORCH-2006")
@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ([EMOJI], "WORKER_RESET"),
        ([EMOJI, (LAST % 3)[:-10]], "WORKER_RESET"),
        ([EMOJI, ConnectionError("cut")], "WORKER_RESET"),
        ([EMOJI, ConnectionResetError()], "WORKER_RESET"),
        ([EMOJI, b"data: {garbage}\n\n"], "WORKER_RESET"),
        ([EMOJI, b'data: {"content":5}\n\n'], "WORKER_RESET"),
        ([EMOJI, b"data: " + b"x" * 2_000_000], "WORKER_RESET"),
        ([EMOJI, b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n'], "INTERNAL"),
        ([b'data: {"error":{"code":503,"message":"m","type":"unavailable_error"}}\n\n'], "POOL_UNREADY"),
    ],
)
async def test_a_stream_that_does_not_end_properly_is_an_error(chunks: list[bytes | Exception], code: str) -> None:
    attempt = Attempt("a")
    with pytest.raises(EngineError) as raised:
        await read(*chunks, attempt=attempt)
    assert raised.value.info.code == code
    assert raised.value.info.retriable is True
    assert not attempt.finished


@pytest.mark.req("ORCH-3026")
async def test_no_chunk_follows_a_cancel() -> None:
    attempt = Attempt("a")
    stream = read_completion(attempt, cast(Any, Content([EMOJI, LAST % 3])))
    assert await anext(stream) == Chunk("🙂", 2)
    attempt.stop()
    assert [item async for item in stream] == []


@pytest.mark.req("ORCH-3026")
async def test_a_broken_connection_after_a_cancel_is_no_error() -> None:
    attempt = Attempt("a")
    attempt.stop()
    assert await read(ConnectionError(), attempt=attempt) == []
