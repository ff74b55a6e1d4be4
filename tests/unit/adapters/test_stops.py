"""Stop strings are cut out wherever the pieces of text break them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.stops import StopCutter


def cut(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    cutter = StopCutter(stops)
    sent = "".join(cutter.feed(piece) for piece in pieces)
    return sent + ("" if cutter.matched else cutter.flush()), cutter.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The stop that is complete first as the text grows by characters; of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.req("ORCH-3058")
@given(
    stops=st.lists(st.text("ab\N{SNOWMAN}", min_size=1, max_size=4), max_size=4),
    pieces=st.lists(st.text("ab\N{SNOWMAN}", max_size=5), max_size=8),
)
def test_pieces_do_not_matter(stops: list[str], pieces: list[str]) -> None:
    assert cut(stops, pieces) == expected(stops, "".join(pieces))


@given(pieces=st.lists(st.text("ab", max_size=5), max_size=8))
def test_what_is_held_back_is_shorter_than_the_longest_stop(pieces: list[str]) -> None:
    cutter, sent = StopCutter(["abab", "bb"]), ""
    for n, piece in enumerate(pieces):
        sent += cutter.feed(piece)
        if cutter.matched:
            return
        assert len("".join(pieces[: n + 1])) - len(sent) < 4


def test_nothing_comes_after_a_stop() -> None:
    cutter = StopCutter(["END"])
    assert (cutter.feed("one EN"), cutter.feed("D two"), cutter.matched) == ("one ", "", "END")
    assert cutter.feed("three") == ""
