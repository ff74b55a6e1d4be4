"""Sound streams, however the network cuts and the engine words them: the same text, tokens and end."""

import random
from collections.abc import Sequence
from typing import Final

from adapters.testing.conformance.dialect import End, Piece
from adapters.testing.conformance.stage import END, PIECES, WireStage, expect_whole, wire
from adapters.testing.peers.http import CHUNKS_END, chunk, stream_head, streamed
from contracts.api import Sampling

_RANDOM_SPLITS: Final = 40
_HUGE_CHARS: Final = 300_000
_MANY_FRAMES: Final = 3000


@wire.case()
async def whole(stage: WireStage) -> None:
    """A stream in one piece gives its text, its tokens and one Finish."""
    expect_whole(await stage.play(stage.wire()))


@wire.case()
async def every_split(stage: WireStage) -> None:
    """The same with a border between any two bytes of the answer."""
    data = stage.wire()
    for border in range(1, len(data)):
        expect_whole(await stage.play(data[:border], data[border:]), where=f"border {border} of {len(data)}")


@wire.case()
async def one_byte_at_a_time(stage: WireStage) -> None:
    """The same when every read brings one byte."""
    data = stage.wire()
    expect_whole(await stage.play(*(data[n : n + 1] for n in range(len(data)))))


@wire.case()
async def random_splits(stage: WireStage) -> None:
    """The same with many borders at once; they follow from a seed."""
    data = stage.wire()
    for seed in range(_RANDOM_SPLITS):
        chance = random.Random(seed)
        borders = sorted(chance.sample(range(1, len(data)), chance.randint(2, 30)))
        parts = [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]
        expect_whole(await stage.play(*parts), where=f"seed {seed}")


@wire.case()
async def chunks_unlike_frames(stage: WireStage) -> None:
    """Chunks of the body may end anywhere, amid a character too, and hold many frames."""
    body = b"".join(stage.dialect.body(PIECES, END))
    for size in (1, 2, 3, 7, 64, len(body)):
        parts = [body[n : n + size] for n in range(0, len(body), size)]
        expect_whole(await stage.play(streamed(parts, stage.dialect.content_type)), where=f"chunks of {size} bytes")


@wire.case()
async def a_body_of_known_length(stage: WireStage) -> None:
    """A body with a Content-Length is a stream as well."""
    body = b"".join(stage.dialect.body(PIECES, END))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {stage.dialect.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    expect_whole(await stage.play(head.encode(), body))


@wire.case()
async def an_end_at_once(stage: WireStage) -> None:
    """A generation of a single token."""
    pieces = [Piece("x")]
    expect_whole(await stage.play(stage.wire(pieces)), pieces)


@wire.case()
async def empty_texts(stage: WireStage) -> None:
    """Tokens without text are counted."""
    pieces = [Piece(""), Piece("a"), Piece(""), Piece(""), Piece("b"), Piece("")]
    expect_whole(await stage.play(stage.wire(pieces)), pieces)


@wire.case()
async def a_huge_token(stage: WireStage) -> None:
    """A frame of hundreds of kilobytes arrives whole."""
    pieces = [Piece("a"), Piece("ü🙂b" * (_HUGE_CHARS // 3)), Piece("c")]
    expect_whole(await stage.play(stage.wire(pieces)), pieces)


@wire.case("frame_tokens")
async def many_tokens_a_frame(stage: WireStage) -> None:
    """A frame is not a token: the tokens are the engine's count."""
    pieces = [Piece("a", 3), Piece("🙂", 4), Piece("b", 1), Piece("cdef", 17)]
    expect_whole(await stage.play(stage.wire(pieces)), pieces)


@wire.case()
async def many_frames_a_read(stage: WireStage) -> None:
    """Thousands of frames in one write, in order and all of them."""
    pieces = [Piece(f"{n} ") for n in range(_MANY_FRAMES)]
    expect_whole(await stage.play(stage.wire(pieces)), pieces)


@wire.case()
async def fillers(stage: WireStage) -> None:
    """Keep-alives, comments and empty lines between frames mean nothing."""
    frames = stage.dialect.body(PIECES, END)
    for filler in (*stage.dialect.fillers, b"".join(stage.dialect.fillers)):
        expect_whole(await stage.play(_with(stage, frames, filler)), where=f"{filler!r}")


@wire.case("sse")
async def line_ends(stage: WireStage) -> None:
    """Lines of server-sent events may end in LF, CRLF or CR, wherever reads break."""
    frames = stage.dialect.body(PIECES, END)
    for line_end in (b"\r\n", b"\r"):
        parts = [_relined(frame, line_end) for frame in frames]
        data = _with(stage, parts, b"")
        expect_whole(await stage.play(data), where=f"{line_end!r}")
        expect_whole(await stage.play(*(data[n : n + 3] for n in range(0, len(data), 3))), where=f"{line_end!r}, cut")


@wire.case("sse")
async def fields_of_events(stage: WireStage) -> None:
    """`data:` may lack its space, an event may have other fields, and its data several lines."""
    payloads = stage.dialect.payloads(PIECES, END)
    for framed in (
        [b"data:" + payload + b"\n\n" for payload in payloads],
        [b"id: 7\nevent: token\ndata: " + payload + b"\nretry: 5\n\n" for payload in payloads],
        # JSON may be broken after its first brace.
        [b"data: " + payload.replace(b"{", b"{\ndata: ", 1) + b"\n\n" for payload in payloads],
    ):
        expect_whole(await stage.play(_with(stage, framed, b"")), where=f"{framed[0][:30]!r}")


@wire.case("json")
async def unknown_fields(stage: WireStage) -> None:
    """Fields that a newer engine adds to its frames are ignored."""
    new = b'{"llorch_unknown":{"a":[1,null,"\\u00fc"]},'
    payloads = [payload.replace(b"{", new, 1) for payload in stage.dialect.payloads(PIECES, END)]
    expect_whole(await stage.play(_with(stage, [stage.dialect.frame(payload) for payload in payloads], b"")))


@wire.case("stop_strings")
async def a_stop_string(stage: WireStage) -> None:
    """The stop string is named in the Finish and no part of the text."""
    end = End("stop", stop="<END>")
    request = stage.request(sampling=Sampling(stop=["<END>", "never"]))
    data = stage.wire(PIECES, end)
    expect_whole(await stage.play(data, request=request), end=end)
    expect_whole(await stage.play(*(data[n : n + 5] for n in range(0, len(data), 5)), request=request), end=end)


@wire.case()
async def an_end_by_itself(stage: WireStage) -> None:
    """A text that the model ends has the reason `stop` and no stop string."""
    end = End("stop")
    expect_whole(await stage.play(stage.wire(PIECES, end)), end=end)


def _with(stage: WireStage, frames: Sequence[bytes], filler: bytes) -> bytes:
    parts = [part for frame in frames for part in (chunk(filler), chunk(frame))]
    return stream_head(stage.dialect.content_type) + b"".join(parts) + chunk(filler) + CHUNKS_END


def _relined(frame: bytes, line_end: bytes) -> bytes:
    return frame.replace(b"\n", line_end)
