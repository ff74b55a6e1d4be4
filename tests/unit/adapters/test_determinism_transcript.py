"""Where two texts part, in tokens and bytes; what is compared and what is not."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.testing.determinism.transcript import Recording, Transcript, divergence
from contracts.engine import Chunk, EngineAdapter, EngineError, Finish, GenerateRequest

REQUEST = GenerateRequest(task_id="t", max_tokens=9, seed=1, prompt="p")


class Stream:
    """Of an adapter no more than the stream."""

    def __init__(self, *items: Chunk | Finish) -> None:
        self._items = items

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        del attempt_key, request
        for item in self._items:
            yield item


async def record(*items: Chunk | Finish) -> Transcript:
    adapter: EngineAdapter = Stream(*items)  # type: ignore[assignment]
    return await Recording().run(adapter, "a", REQUEST)


async def test_chunk_borders_and_cached_tokens_are_not_compared() -> None:
    one = await record(Chunk(" sea 🌊", 3), Chunk(" log"), Finish("length", 5))
    other = await record(Chunk(" sea"), Chunk(" 🌊 log", 3), Finish("length", 5, tokens_cached=4))
    assert divergence(one, other) is None
    assert one.digest == other.digest
    assert one.marks != other.marks


@pytest.mark.parametrize(
    "other",
    [
        (Chunk(" sea 🌊", 4), Finish("length", 5)),
        (Chunk(" sea 🌊", 3), Finish("stop", 5)),
        (Chunk(" sea 🌊", 3), Finish("length", 6)),
        (Chunk(" sea 🌊", 3), Finish("length", 5, stop_sequence=".")),
        (Chunk(" sea 🌊\n", 3), Finish("length", 5)),
    ],
)
async def test_counts_and_ends_are_compared_like_text(other: tuple[Chunk | Finish, ...]) -> None:
    one = await record(Chunk(" sea 🌊", 3), Finish("length", 5))
    different = await record(*other)
    assert divergence(one, different) is not None
    assert one.digest != different.digest


async def test_the_first_token_that_differs_is_named() -> None:
    one = await record(Chunk(" sea"), Chunk(" 🌊", 2), Chunk(" log"), Finish("length", 5))
    other = await record(Chunk(" sea"), Chunk(" 🌊", 2), Chunk(" lot"), Finish("length", 5))
    where = divergence(one, other)
    assert where is not None
    assert (where.token_index, where.byte_index) == (3, len(" sea 🌊 lo".encode()))
    assert (where.common, where.expected, where.found) == (" sea 🌊 lo", "g", "t")


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_common_and_continuations_make_up_both_texts(common: str, one: str, other: str) -> None:
    first, second = (Transcript(common + rest, 1, "stop", 1) for rest in (one, other))
    where = divergence(first, second)
    if one == other:
        assert where is None
        return
    assert where is not None
    same = len(first.text) - len(where.expected)
    assert first.text[:same] == second.text[:same]
    assert second.text[same:] == where.found
    assert where.expected[:1] != where.found[:1]
    assert same >= len(common)


@pytest.mark.parametrize(
    "items", [(Chunk("a"),), (), (Finish("stop", 1), Chunk("a")), (Chunk("a"), Finish("stop", 1), Finish("stop", 1))]
)
async def test_a_stream_that_ends_otherwise_than_once_is_an_error(items: tuple[Chunk | Finish, ...]) -> None:
    with pytest.raises(EngineError):
        await record(*items)
