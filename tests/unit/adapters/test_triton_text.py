"""From responses to chunks: whole characters, every token counted once, one end that is told."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.triton.frames import Frame
from adapters.triton.text import Text
from contracts.engine import Chunk, EngineError, Finish


def run(
    frames: list[Frame], *, max_tokens: int = 1000, stops: tuple[str, ...] = (), tells: bool = True
) -> list[object]:
    text = Text(max_tokens=max_tokens, stops=list(stops), tells_reason=tells, tokens_in=3)
    out: list[object] = []
    for frame in frames:
        chunk = text.take(frame)
        if chunk is not None:
            out.append(chunk)
        if text.stopped:
            break
    rest = text.rest()
    return [*out, *([] if rest is None else [rest]), text.finish()]


END = Frame(reason="stop", is_response=False)


@pytest.mark.req("OC-ADAPT-5060")
def test_a_token_a_response_and_the_reason_of_the_model() -> None:
    frames = [Frame(b"one", 1, 7), Frame(b" two", 1, 7, "length")]
    assert run(frames) == [Chunk("one"), Chunk(" two"), Finish("length", tokens_in=7)]


@pytest.mark.req("OC-ADAPT-5010")
def test_characters_that_are_split_between_responses_come_whole() -> None:
    wave = "🌊".encode()
    frames = [Frame(wave[:1], 1), Frame(wave[1:3], 1), Frame(wave[3:] + b"!", 1), END]
    assert run(frames) == [Chunk(""), Chunk(""), Chunk("🌊!"), Finish("stop", tokens_in=3)]


@pytest.mark.parametrize("text", [b"\xff", "é".encode()[:1]])
def test_text_that_is_no_utf_8_breaks_off(text: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        run([Frame(text, 1), END])
    assert caught.value.info.code == "WORKER_RESET"


@pytest.mark.req("ORCH-3058")
def test_a_stop_string_across_responses_is_cut_out_and_told() -> None:
    frames = [Frame(b"one E", 1), Frame(b"N", 1), Frame(b"D two", 1), Frame(b" never", 1)]
    *chunks, finish = run(frames, stops=("END",))
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)) == "one "
    assert sum(chunk.tokens for chunk in chunks if isinstance(chunk, Chunk)) == 3
    assert finish == Finish("stop", tokens_in=3, stop_sequence="END")


def test_without_a_reason_of_the_model_the_count_tells() -> None:
    frames = [Frame(b"a"), Frame(b"b")]
    assert run(frames, max_tokens=2, tells=False)[-1] == Finish("length", tokens_in=3)
    assert run(frames, max_tokens=3, tells=False)[-1] == Finish("stop", tokens_in=3)
    assert run([], tells=False) == [Finish("stop", tokens_in=3)]


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize("reason", ["", "abort"])
def test_a_model_that_should_tell_a_reason_and_does_not_has_broken_off(reason: str) -> None:
    with pytest.raises(EngineError) as caught:
        run([Frame(b"a", 1, reason=reason)])
    assert caught.value.info.code == "WORKER_RESET"


@pytest.mark.req("OC-ADAPT-5010")
@given(
    st.text("abé🌊", max_size=40),
    st.lists(st.integers(0, 120), max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
)
def test_text_and_tokens_add_up_however_it_is_split(text: str, borders: list[int], stops: list[str]) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(min(border, len(data)) for border in borders)})
    frames = [Frame(data[a:b], 1) for a, b in pairwise(edges)]
    *chunks, finish = run([*frames, END], stops=tuple(stops))
    made = "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
    tokens = sum(chunk.tokens for chunk in chunks if isinstance(chunk, Chunk))
    assert isinstance(finish, Finish)
    if finish.stop_sequence is None:
        assert made == text
        assert tokens == len(frames)
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(made + finish.stop_sequence)
        assert 1 <= tokens <= len(frames)
