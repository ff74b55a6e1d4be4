"""HTTP/2 by hand: what a peer says is read whatever way it is cut, what it must not say is refused."""

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from adapters.triton.http2 import frames
from adapters.triton.http2.exchange import HEADER_BYTES_MAX, WINDOW_BYTES, Exchange
from adapters.triton.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD,
    HEADERS,
    NUMBER,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Error,
    frame,
)

REQUEST = {":method": "POST", ":path": "/x"}
HELLO = frame(SETTINGS, 0, 0)
OK = [(":status", "200"), ("content-type", "application/grpc")]
DONE = [("grpc-status", "0")]


def block(fields: list[tuple[str, str]]) -> bytes:
    encoded: bytes = Encoder().encode(fields)
    return encoded


def fields_frame(fields: list[tuple[str, str]], flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, 1, block(fields))


HEAD_FRAME = fields_frame(OK)
END_FRAME = fields_frame(DONE, END_HEADERS | END_STREAM)


def data(content: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, 1, content)


def sent_frames(sent: bytes) -> list[tuple[int, int, int, bytes]]:
    """Type, flags, stream and payload of each frame."""
    found, at = [], 0
    while at < len(sent):
        size_and_kind, flags, stream = HEAD.unpack_from(sent, at)
        after = at + 9 + (size_and_kind >> 8)
        assert after <= len(sent)
        found.append((size_and_kind & 255, flags, stream, sent[at + 9 : after]))
        at = after
    return found


def begun() -> Exchange:
    exchange = Exchange(REQUEST, b"request")
    exchange.feed(HELLO + HEAD_FRAME)
    exchange.to_send()
    return exchange


def test_a_request_opens_the_connection_says_what_is_allowed_and_ends() -> None:
    sent = Exchange(REQUEST, b"request").to_send()
    assert sent.startswith(frames.PREFACE)
    kinds = [(kind, flags, stream) for kind, flags, stream, _ in sent_frames(sent[len(frames.PREFACE) :])]
    assert kinds == [
        (SETTINGS, 0, 0),
        (WINDOW_UPDATE, 0, 0),
        (HEADERS, END_HEADERS, 1),
        (DATA, END_STREAM, 1),
    ]


def test_a_long_header_block_is_continued() -> None:
    exchange = Exchange({**REQUEST, "authorization": "k" * 40_000}, b"")
    sent = sent_frames(exchange.to_send()[len(frames.PREFACE) :])
    kinds = [(kind, flags) for kind, flags, _, _ in sent if kind in (HEADERS, CONTINUATION)]
    assert kinds == [(HEADERS, 0), (CONTINUATION, 0), (CONTINUATION, END_HEADERS)]


@given(st.data())
def test_a_response_is_the_same_wherever_its_bytes_are_cut(draw: st.DataObject) -> None:
    contents = draw.draw(st.lists(st.binary(max_size=60), max_size=6))
    fillers = [
        frame(PING, ACK, 0, bytes(8)),
        frame(PRIORITY, 0, 3, bytes(5)),
        frame(0x42, 0xFF, 9, b"?"),
        frame(WINDOW_UPDATE, 0, 1, NUMBER.pack(9)),
        frame(GOAWAY, 0, 0, NUMBER.pack(1) + bytes(4)),
    ]
    stream = HELLO + HEAD_FRAME
    for content in contents:
        padding = draw.draw(st.integers(0, 9))
        stream += draw.draw(st.sampled_from([b"", *fillers]))
        stream += data(content) if not padding else data(bytes([padding]) + content + bytes(padding), PADDED)
    stream += END_FRAME
    exchange = Exchange(REQUEST, b"request")
    read = b""
    at = 0
    while at < len(stream):
        step = draw.draw(st.integers(1, 40))
        exchange.feed(stream[at : at + step])
        at += step
        read += exchange.take() if draw.draw(st.booleans()) else b""
    assert read + exchange.take() == b"".join(contents)
    assert exchange.ended
    assert exchange.head == {name.encode(): value.encode() for name, value in OK}
    assert exchange.trailers == {b"grpc-status": b"0"}


@given(st.data())
def test_whatever_comes_is_read_or_refused(draw: st.DataObject) -> None:
    kind = st.integers(0, 11)
    some_frame = st.builds(
        frame, kind, st.integers(0, 255), st.sampled_from([0, 1, 1, 2, 2**32 - 1]), st.binary(max_size=40)
    )
    good = st.sampled_from([HELLO, HEAD_FRAME, END_FRAME, data(b"x"), frame(PING, 0, 0, bytes(8))])
    stream = b"".join(draw.draw(st.lists(st.one_of(good, good, some_frame, st.binary(max_size=12)), max_size=12)))
    stream = (HELLO if draw.draw(st.booleans()) else b"") + stream
    whole, cut = Exchange(REQUEST, b"request"), Exchange(REQUEST, b"request")
    told = []
    for exchange, step in ((whole, len(stream) or 1), (cut, draw.draw(st.integers(1, 20)))):
        try:
            for at in range(0, len(stream), step):
                exchange.feed(stream[at : at + step])
        except Http2Error as error:
            told.append(str(error))
        else:
            told.append("")
    assert told[0] == told[1]
    assert (whole.ended, whole.take()) == (cut.ended, cut.take())


def test_a_header_block_may_be_padded_have_a_priority_and_be_continued() -> None:
    encoded = block(OK)
    exchange = Exchange(REQUEST, b"")
    first = bytes([2]) + bytes(5) + encoded[:3] + bytes(2)
    exchange.feed(HELLO + frame(HEADERS, PADDED | HAS_PRIORITY, 1, first) + frame(CONTINUATION, 0, 1, encoded[3:7]))
    assert exchange.head is None
    exchange.feed(frame(CONTINUATION, END_HEADERS, 1, encoded[7:]))
    assert exchange.head is not None
    assert exchange.head[b":status"] == b"200"


def test_an_interim_response_is_passed_over_and_a_bodiless_one_is_whole() -> None:
    exchange = Exchange(REQUEST, b"")
    exchange.feed(HELLO + fields_frame([(":status", "103")]))
    assert exchange.head is None
    exchange.feed(fields_frame([*OK, ("grpc-status", "5")], END_HEADERS | END_STREAM))
    assert exchange.ended
    assert exchange.head == exchange.trailers
    exchange.feed(b"anything")


def test_the_body_may_end_the_response() -> None:
    exchange = begun()
    exchange.feed(data(b"last", END_STREAM))
    assert (exchange.ended, exchange.take(), exchange.trailers) == (True, b"last", None)


def test_pings_and_settings_are_acknowledged() -> None:
    exchange = begun()
    exchange.feed(frame(PING, 0, 0, b"12345678") + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
    assert sent_frames(exchange.to_send()) == [(PING, ACK, 0, b"12345678"), (SETTINGS, ACK, 0, b"")]
    assert exchange.to_send() == b""


def test_room_is_given_back_as_data_are_taken() -> None:
    exchange = begun()
    part = bytes(16_384)
    sent_bytes = 0
    for _ in range(200):
        exchange.feed(data(part))
        assert exchange.take() == part
        updates = sent_frames(exchange.to_send())
        assert [stream for _, _, stream, _ in updates] in ([], [0, 1])
        sent_bytes += len(part) - (NUMBER.unpack(updates[0][3])[0] if updates else 0)
        assert 0 <= sent_bytes < WINDOW_BYTES
    assert sent_bytes < WINDOW_BYTES // 2 + len(part)


def test_more_than_there_is_room_for_is_refused() -> None:
    exchange = begun()
    for _ in range(WINDOW_BYTES // 16_384):
        exchange.feed(data(bytes(16_384)))
    with pytest.raises(Http2Error, match="more than it was allowed"):
        exchange.feed(data(b"x"))


def test_padding_alone_does_not_use_up_the_room() -> None:
    exchange = begun()
    for _ in range(3 * WINDOW_BYTES // 200):
        exchange.feed(data(bytes([199]) + bytes(199), PADDED))
        exchange.to_send()
    exchange.feed(data(b"x"))
    assert exchange.take() == b"x"


def setting(name: int, value: int) -> bytes:
    return frames.settings({name: value})


def body_of(sent: bytes) -> tuple[bytes, bool]:
    parts = [part for part in sent_frames(sent) if part[0] == DATA]
    return b"".join(content for *_, content in parts), bool(parts and parts[-1][1] & END_STREAM)


def test_a_long_request_waits_for_room() -> None:
    body = bytes(range(256)) * 1000
    exchange = Exchange(REQUEST, body)
    first, ended = body_of(exchange.to_send()[len(frames.PREFACE) :])
    assert (len(first), ended) == (65_535, False)
    exchange.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000, frames.MAX_FRAME_SIZE: 50_000}))
    assert body_of(exchange.to_send()) == (b"", False)
    exchange.feed(frames.window_update(0, 2**20))
    second, ended = body_of(exchange.to_send())
    assert (len(first + second), ended) == (100_000, False)
    exchange.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 50_000}) + frames.window_update(1, 40_000))
    assert body_of(exchange.to_send()) == (b"", False)
    exchange.feed(frames.window_update(1, 2**20))
    third, ended = body_of(exchange.to_send())
    assert (first + second + third, ended) == (body, True)


FORBIDDEN = {
    "http/1.1": (b"HTTP/1.1 400 Bad Request\r\n", "does not speak"),
    "no settings first": (HEAD_FRAME, "does not begin"),
    "acknowledgement first": (frame(SETTINGS, ACK, 0), "not one"),
    "data before the head": (HELLO + data(b"x"), "outside"),
    "two heads": (HELLO + HEAD_FRAME + HEAD_FRAME, "amid the body"),
    "status among trailers": (HELLO + HEAD_FRAME + fields_frame(OK, END_HEADERS | END_STREAM), "amid the body"),
    "interim end": (HELLO + fields_frame([(":status", "100")], END_HEADERS | END_STREAM), "before it began"),
    "no status": (HELLO + fields_frame(DONE), "status"),
    "status of letters": (HELLO + fields_frame([(":status", "2xx")]), "status"),
    "other stream": (HELLO + frame(DATA, 0, 3, b"x"), "stream 3"),
    "room for another stream": (HELLO + frames.window_update(3, 1), "stream 3"),
    "settings of a stream": (HELLO + frame(SETTINGS, 0, 1), "stream 1"),
    "push": (HELLO + frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), "promises"),
    "block not continued": (HELLO + frame(HEADERS, 0, 1, block(OK)) + HELLO, "not continued"),
    "nothing to continue": (HELLO + frame(CONTINUATION, END_HEADERS, 1, b""), "no header fields"),
    "bad block": (HELLO + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), "cannot be read"),
    "large frame": (HELLO + frame(0x42, 0, 0, bytes(16_385)), "larger than agreed"),
    "padding beyond the frame": (HELLO + HEAD_FRAME + data(b"\x05abc", PADDED), "padding"),
    "no room for padding": (HELLO + HEAD_FRAME + data(b"", PADDED), "padding"),
    "short priority": (HELLO + frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, bytes(4)), "priority"),
    "short ping": (HELLO + frame(PING, 0, 0, b"x"), "ping"),
    "short farewell": (HELLO + frame(GOAWAY, 0, 0, bytes(7)), "farewell"),
    "farewell": (HELLO + frame(GOAWAY, 0, 0, bytes(4) + NUMBER.pack(11)), "ENHANCE_YOUR_CALM"),
    "reset": (HELLO + frames.reset(1, 7), "REFUSED_STREAM"),
    "unknown reset": (HELLO + frames.reset(1, 99), "error 99"),
    "short reset": (HELLO + frame(RST_STREAM, 0, 1, b"x"), "a reset has"),
    "short settings": (frame(SETTINGS, 0, 0, bytes(5)), "cut short"),
    "full acknowledgement": (HELLO + frame(SETTINGS, ACK, 0, bytes(6)), "not one"),
    "window too large": (setting(frames.INITIAL_WINDOW_SIZE, 2**31), "window"),
    "frames too small": (setting(frames.MAX_FRAME_SIZE, 1), "frames may have"),
    "frames too large": (setting(frames.MAX_FRAME_SIZE, 2**24), "frames may have"),
    "no more room": (HELLO + frames.window_update(0, 0), "adds 0"),
    "too much room": (HELLO + frames.window_update(1, 2**31 - 1), "adds"),
}


@pytest.mark.parametrize(("stream", "told"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_what_the_protocol_does_not_allow_is_refused(stream: bytes, told: str) -> None:
    with pytest.raises(Http2Error, match=told):
        Exchange(REQUEST, b"").feed(stream)


def test_header_fields_without_end_are_refused() -> None:
    exchange = Exchange(REQUEST, b"")
    exchange.feed(HELLO + frame(HEADERS, 0, 1, bytes(16_384)))
    rest = frame(CONTINUATION, 0, 1, bytes(16_384)) * (HEADER_BYTES_MAX // 16_384)
    with pytest.raises(Http2Error, match="take more than"):
        exchange.feed(rest)


def test_a_small_block_of_many_fields_is_refused() -> None:
    encoder = Encoder()
    bomb = encoder.encode([(":status", "200"), ("x", "y" * 3000)]) + encoder.encode([("x", "y" * 3000)]) * 1000
    with pytest.raises(Http2Error, match="cannot be read"):
        Exchange(REQUEST, b"").feed(HELLO + frame(HEADERS, END_HEADERS, 1, bomb))
