"""A later attempt goes on exactly where a stream's client is, however engines cut their text (ORCH-3045)."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.cluster.delivered import Delivered, Diverged

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=12)


def chunked(text: str, cuts: list[int]) -> list[str]:
    """`text` in tokens that end at `cuts`, some of them empty."""
    ends = [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    starts = [0, *ends[:-1]]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def in_frames(tokens: list[str], sizes: list[int]) -> list[list[str]]:
    """Tokens as they arrive: a few at a time."""
    frames: list[list[str]] = []
    rest = tokens
    for size in [*sizes, len(tokens)]:
        frames.append(rest[:size])
        rest = rest[size:]
    return frames


class Client:
    """What a client of the stream has got."""

    def __init__(self) -> None:
        self.delivered = Delivered()
        self.tokens: list[str] = []

    def feed(self, frames: list[list[str]]) -> None:
        for frame in frames:
            self.tokens += self.delivered.feed(frame)

    def complete(self) -> None:
        self.tokens += self.delivered.complete()


@pytest.mark.req("ORCH-3045", "ORCH-3086")
@given(text=TEXT, first=CUTS, second=CUTS, third=CUTS, lost_after=st.integers(0, 14), again=st.integers(0, 14))
@settings(max_examples=300)
@example(text="abcdef", first=[1, 2, 3], second=[], third=[0, 2, 4, 5], lost_after=3, again=0)
@example(text="ab", first=[], second=[1], third=[1], lost_after=1, again=1)
@example(text="abc", first=[1, 1], second=[1, 2], third=[0, 1], lost_after=2, again=2)
def test_however_attempts_cut_the_text_a_client_gets_it_once_and_whole(
    text: str, first: list[int], second: list[int], third: list[int], lost_after: int, again: int
) -> None:
    client = Client()
    client.feed(in_frames(chunked(text, first)[:lost_after], [2, 1]))
    had = list(client.tokens)
    client.delivered.begin()
    client.feed(in_frames(chunked(text, second)[:again], [1, 3]))
    assert client.tokens[: len(had)] == had
    client.delivered.begin()
    last = chunked(text, third)
    client.feed(in_frames(last, [3, 2]))
    client.complete()
    assert "".join(client.tokens) == text
    assert client.delivered.count == len(client.tokens)
    assert not client.delivered.is_catching_up or len(client.tokens) > len(last)


@pytest.mark.req("ORCH-3045")
@given(text=TEXT, first=CUTS, second=CUTS, made=st.integers(1, 14), at=st.integers(0, 39))
def test_any_other_character_in_what_was_delivered_is_found(
    text: str, first: list[int], second: list[int], made: int, at: int
) -> None:
    client = Client()
    client.feed([chunked(text, first)[:made]])
    had = "".join(client.tokens)
    if not had:
        return
    index = at % len(had)
    other = had[:index] + ("x" if had[index] != "x" else "y") + text[index + 1 :]
    client.delivered.begin()
    with pytest.raises(Diverged):
        client.feed([[each] for each in chunked(other, second)])
    # Nothing of the other text was let through, not even what precedes the difference.
    assert "".join(client.tokens) == had


@pytest.mark.req("ORCH-3045")
@given(text=TEXT, second=CUTS, short=st.integers(1, 40))
def test_an_attempt_that_ends_before_what_was_delivered_is_another_text(
    text: str, second: list[int], short: int
) -> None:
    client = Client()
    client.feed([[text]])
    client.delivered.begin()
    client.feed([chunked(text[:-short], second)])
    with pytest.raises(Diverged):
        client.complete()


@pytest.mark.req("OC-CTRL-2022")
@pytest.mark.parametrize(
    ("had", "again", "then"),
    [
        (["a", "b"], ["a", "b", "c", "d"], ["c", "d"]),
        (["a"], ["", "ab", "c"], ["b", "c"]),
        (["", "ab"], ["a", "b", "c"], ["c"]),
        (["a", ""], ["a", "b", "c"], ["bc"]),
        (["ab"], ["a", "b", "c"], ["", "c"]),
        (["a", "", ""], ["ab"], ["b"]),
        ([""], ["a"], ["a"]),
        ([], ["a"], ["a"]),
    ],
    ids=str,
)
def test_what_follows_has_the_index_that_the_attempt_gives_it_where_it_can(
    had: list[str], again: list[str], then: list[str]
) -> None:
    client = Client()
    client.feed([had])
    client.delivered.begin()
    client.feed([again])
    client.complete()
    assert client.tokens == had + then


def test_a_client_that_has_got_nothing_is_given_all_at_once() -> None:
    client = Client()
    client.delivered.begin()
    assert not client.delivered.is_catching_up
    client.feed([["a", "b"], ["c"]])
    assert client.tokens == ["a", "b", "c"]
