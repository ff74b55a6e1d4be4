import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.sse import SseOverflowError, SseSplitter

RECORDED = (
    'data: {"index":0,"content":" Paris","tokens":[7042],"stop":false,"id_slot":-1,"tokens_predicted":1}\n\n'
    ": ping\n\n"
    'data: {"index":0,"content":"ör 🙂","tokens":[30],"stop":false,"id_slot":-1,"tokens_predicted":3}\n\n'
    "event: x\nid: 7\ndata: one\ndata:two\n\n"
    'data: {"index":0,"content":"","tokens":[],"id_slot":1,"stop":true}\n\n'
).encode()
PAYLOADS = SseSplitter().feed(RECORDED)


def split_at(data: bytes, borders: list[int]) -> list[bytes]:
    edges = [0, *sorted(borders), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.req("OC-ADAPT-5001")
def test_payloads_of_a_recorded_stream() -> None:
    assert len(PAYLOADS) == 4
    assert PAYLOADS[1].decode().endswith('"tokens_predicted":3}')
    assert PAYLOADS[2] == b"one\ntwo"


@pytest.mark.req("OC-ADAPT-5001")
@given(st.lists(st.integers(0, len(RECORDED)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@example([243, 243], b"\r\n")  # an empty chunk between CR and LF
def test_chunk_borders_and_line_ends_never_matter(borders: list[int], line_end: bytes) -> None:
    splitter = SseSplitter()
    data = RECORDED.replace(b"\n", line_end)
    got = [payload for chunk in split_at(data, borders) for payload in splitter.feed(chunk)]
    assert got == PAYLOADS
    assert not splitter.pending


def test_a_single_byte_at_a_time() -> None:
    splitter = SseSplitter()
    assert [p for n in range(len(RECORDED)) for p in splitter.feed(RECORDED[n : n + 1])] == PAYLOADS


def test_an_unfinished_event_is_pending() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b'data: {"cont') == []
    assert splitter.pending


def test_an_endless_event_is_an_error() -> None:
    splitter = SseSplitter(event_bytes_max=100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(SseOverflowError):
        splitter.feed(b"x" * 20)
