"""The transcript of a task that several attempts made, in the tokens that clients have."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.joining import joined

pytestmark = pytest.mark.req("ORCH-3086", "ORCH-3009")


def join(before: list[str], after: list[str], resumed_at: int) -> list[str]:
    encode = msgspec.msgpack.encode
    return msgspec.msgpack.decode(joined(encode(before), encode(after), resumed_at), type=list[str])


def test_tokens_that_were_delivered_stay_as_they_were() -> None:
    assert join(["t0", "t1"], ["", "t0t1", "t2"], 2) == ["t0", "t1", "t2"]


def test_what_an_attempt_made_before_it_was_lost_comes_from_the_one_after_it() -> None:
    # One token was kept, then five were heard of when the replica was lost.
    assert join(["a"], ["a", "b", "c", "d", "e", "f"], 5) == ["a", "b", "c", "d", "e", "f"]
    assert join(["a"], ["abc", "d", "", "", "e", "f"], 5) == ["a", "bc", "d", "", "e", "f"]
    assert join([], ["a", "b"], 1) == ["a", "b"]


@given(st.data())
def test_no_character_is_lost_or_repeated_and_counts_stay(data: st.DataObject) -> None:
    text = data.draw(st.text("abc", max_size=30))
    resumed_at = data.draw(st.integers(0, 8))
    known = data.draw(st.integers(0, len(text)))

    def cut(part: str, pieces: int) -> list[str]:
        places = sorted(data.draw(st.lists(st.integers(0, len(part)), min_size=pieces - 1, max_size=pieces - 1)))
        return [part[a:b] for a, b in zip([0, *places], [*places, len(part)], strict=True)]

    prefix = data.draw(st.integers(known, len(text)))
    head = cut(text[:prefix], resumed_at) if resumed_at else []
    if not resumed_at:
        prefix = known = 0
    tail = cut(text[prefix:], data.draw(st.integers(1, 4)))
    # What was known makes at most as many tokens; exactly as many only if it reaches up to where it was resumed.
    count = resumed_at if known == prefix else max(0, resumed_at - 1)
    before = cut(text[:known], count) if count else []
    known = known if before else 0
    whole = join(before, head + tail, resumed_at)
    assert "".join(whole) == text
    assert whole[: len(before)] == before
    assert whole[resumed_at:] == tail
    assert len(whole) == resumed_at + len(tail)
