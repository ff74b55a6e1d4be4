"""A resumed attempt's tokens are compared with the preempted one's before anyone gets them (ORCH-3086)."""

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import messages as wire
from orchestrator.cluster.transcript import ResumeMismatchError, TokenFlow, Transcript
from tests.unit.cluster.test_replica_service import Wire


def made(*texts: str) -> Transcript:
    transcript = Transcript()
    for text in texts:
        transcript.append(text, 1)
    return transcript


@pytest.mark.req("ORCH-3086")
def test_the_same_tokens_let_a_resumed_attempt_go_on() -> None:
    before = made("a", "b", "c")
    after = Transcript(3, before.digest())
    for text in ("a", "b"):
        after.append(text, 1)
        assert after.held
        after.digest()  # progress reports ask for it meanwhile
    after.append("c", 1)
    assert not after.held
    after.append("d", 1)
    after.complete()
    assert after.texts == ["a", "b", "c", "d"]


@pytest.mark.req("ORCH-3086")
@pytest.mark.parametrize("texts", [("a", "b", "x"), ("a", "", "bc "), ("x", "b", "c")])
def test_other_tokens_are_found_at_the_border(texts: tuple[str, ...]) -> None:
    after = Transcript(3, made("a", "b", "c").digest())
    after.append(texts[0], 1)
    after.append(texts[1], 1)
    with pytest.raises(ResumeMismatchError):
        after.append(texts[2], 1)
    assert after.held


@pytest.mark.req("ORCH-3086")
def test_an_end_before_the_border_is_a_mismatch() -> None:
    after = Transcript(3, made("a", "b", "c").digest())
    after.append("a", 1)
    with pytest.raises(ResumeMismatchError):
        after.complete()


@pytest.mark.req("ORCH-3086")
def test_a_chunk_over_the_border_is_split_where_the_earlier_text_ended() -> None:
    after = Transcript(3, made("a", "b", "ç").digest())
    after.append("a", 1)
    after.append("bçde", 4)
    assert after.texts == ["a", "", "bç", "", "de"]
    assert not after.held
    assert after.digest() == zlib.crc32("abçde".encode())


@pytest.mark.req("ORCH-3086")
def test_a_chunk_over_the_border_with_other_text_is_a_mismatch() -> None:
    after = Transcript(3, made("a", "b", "c").digest())
    after.append("a", 1)
    with pytest.raises(ResumeMismatchError):
        after.append("bxde", 4)


@pytest.mark.req("ORCH-3086", "ORCH-3026")
def test_nothing_is_sent_while_the_tokens_are_not_compared() -> None:
    flow, ingress = TokenFlow(), Wire()
    after = Transcript(2, made("a", "b").digest())
    flow.subscribe(after, ingress, 7, 0, 100)  # type: ignore[arg-type]
    after.append("a", 1)
    flow.flush([after])
    assert ingress.sent == []
    after.append("b", 1)
    after.append("c", 1)
    flow.flush([after])
    assert ingress.sent == [wire.TokenBatch([(7, 0, ["a", "b", "c"])])]


@pytest.mark.req("ORCH-3086")
def test_a_subscription_may_start_where_the_earlier_attempt_stopped() -> None:
    flow, ingress = TokenFlow(), Wire()
    after = Transcript(2, made("a", "b").digest())
    flow.subscribe(after, ingress, 7, 2, 100)  # type: ignore[arg-type]
    for text in ("a", "b", "c"):
        after.append(text, 1)
        flow.flush([after])
    assert ingress.texts() == ["c"]


def chunked(text: str, cuts: list[int]) -> list[tuple[str, int]]:
    """`text` one token a character, in chunks that end at `cuts`."""
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)} - {0})
    starts = [0, *ends[:-1]]
    return [(text[start:end], end - start) for start, end in zip(starts, ends, strict=True) if end > start]


@pytest.mark.req("ORCH-3086", "ORCH-3045")
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), data=st.data())
def test_however_an_engine_cuts_its_chunks_the_text_goes_on_exactly(text: str, data: st.DataObject) -> None:
    cuts = st.lists(st.integers(0, 40), max_size=8)
    first = Transcript()
    for chunk, tokens in chunked(text, data.draw(cuts))[: data.draw(st.integers(1, 9))]:
        first.append(chunk, tokens)
    again = Transcript(len(first.texts), first.digest())
    for chunk, tokens in chunked(text, data.draw(cuts)):
        again.append(chunk, tokens)
    again.complete()
    assert "".join(again.texts) == text
    assert "".join(first.texts + again.texts[len(first.texts) :]) == text
    assert msgspec.msgpack.decode(again.encoded()) == again.texts
