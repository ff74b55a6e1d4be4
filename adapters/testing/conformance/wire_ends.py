"""Streams that break off, and streams that cannot be read: an error, never an end and never made-up text."""

import random
from typing import Final

from adapters.testing.conformance.cases import NotConformingError, expect
from adapters.testing.conformance.dialect import Piece
from adapters.testing.conformance.outcome import Outcome
from adapters.testing.conformance.peer import Close, Reset, Step
from adapters.testing.conformance.stage import END, PIECES, WireStage, expect_whole, wire
from adapters.testing.peers.http import CHUNKS_END, Answer, answer_bytes, chunk, stream_head, streamed

_UNBOUNDED_STEP: Final = b"x" * 65536
_UNBOUNDED_STEPS: Final = 1024
#: More than this of a frame that does not end is read by nobody who keeps to a bound.
_UNBOUNDED_BYTES_MAX: Final = 16 * 1024 * 1024
_MUTATIONS: Final = 150
_SHORT: Final = (Piece("ü"), Piece(" 🙂 "), Piece("z"))


@wire.case()
async def broken_off_anywhere(stage: WireStage) -> None:
    """A connection that ends after any byte gives a retriable WORKER_RESET, unless all was said."""
    data = stage.wire(_SHORT)
    head_bytes = data.index(b"\r\n\r\n")
    for cut in (*range(0, head_bytes, 7), *range(head_bytes, len(data))):
        outcome = await stage.play(data[:cut], Close())
        _expect_broken_or_whole(outcome, f"ended after {cut} of {len(data)} bytes")


@wire.case()
async def reset_anywhere(stage: WireStage) -> None:
    """The same for a connection that is reset."""
    data = stage.wire(_SHORT)
    for cut in range(0, len(data), 11):
        outcome = await stage.play(data[:cut], Reset())
        _expect_broken_or_whole(outcome, f"reset after {cut} of {len(data)} bytes")


@wire.case("end_marker")
async def no_end_marker(stage: WireStage) -> None:
    """A body that ends in order without the engine's own last word is a WORKER_RESET (ORCH-3026)."""
    payloads = stage.dialect.payloads(_SHORT, END)
    for count in range(min(len(payloads), len(stage.dialect.payloads(_SHORT, None)) + 1)):
        frames = [stage.dialect.frame(payload) for payload in payloads[:count]]
        outcome = await stage.play(streamed(frames, stage.dialect.content_type))
        expect(outcome.finish is None, f"a Finish after {count} of {len(payloads)} frames: {outcome.told()}")
        outcome.failed(["WORKER_RESET"], retriable=True)


@wire.case()
async def no_answer(stage: WireStage) -> None:
    """A connection that ends before the answer begins."""
    for scene in ((Close(),), (Reset(),), (b"HTTP/1.1 200 OK\r\n", Close())):
        (await stage.play(*scene)).failed(["WORKER_RESET"], retriable=True)


@wire.case()
async def frames_after_the_end(stage: WireStage) -> None:
    """What an engine says after its end is not heard."""
    frames = [*stage.dialect.body(PIECES, END), *stage.dialect.body(PIECES, None)]
    outcome = await stage.play(streamed(frames, stage.dialect.content_type))
    if "end_marker" in stage.dialect.lacks:
        expect(outcome.finish or outcome.error, "neither a Finish nor an error")
    else:
        expect_whole(outcome)


@wire.case()
async def garbage_frames(stage: WireStage) -> None:
    """Frames that cannot be read are a WORKER_RESET, and what came before them is sound."""
    for payload in (
        b"{garbage}",
        b"\xff\xfe\x00",
        b'{"unended": "',
        b"[" * 100_000,
        b'{"llorch_deep":' + b"[" * 100_000,
        b"[]",
        b"17",
        b"null",
        b'"text"',
        b"{}x",
    ):
        head = b"".join(chunk(frame) for frame in stage.dialect.body(_SHORT, None))
        garbage = chunk(stage.dialect.frame(payload))
        data = stream_head(stage.dialect.content_type) + head + garbage + CHUNKS_END
        where = f"a frame {payload[:40]!r}"
        try:
            outcome = await stage.play(data)
        except NotConformingError as error:
            raise NotConformingError(f"{where}: {error}") from error
        text = "".join(piece.text for piece in _SHORT)
        expect(text.startswith(outcome.text) or outcome.text == text, f"{where} gave {outcome.told()}")
        expect(outcome.finish is None, f"{where} gave a Finish: {outcome.told()}")
        outcome.failed(["WORKER_RESET"], retriable=True)


@wire.case("json")
async def wrong_types(stage: WireStage) -> None:
    """Frames whose fields have other types than agreed are a typed error, whichever field it is."""
    for replaced, by in ((b'"', b"7"), (b"true", b'"x"'), (b"false", b"[]"), (b":{", b":[{"), (b":[", b":{[")):
        payloads = [payload.replace(replaced, by) for payload in stage.dialect.payloads(_SHORT, END)]
        frames = [stage.dialect.frame(payload) for payload in payloads]
        outcome = await stage.play(streamed(frames, stage.dialect.content_type))
        expect(outcome.finish or outcome.error, f"{replaced!r} as {by!r}: neither a Finish nor an error")


@wire.case()
async def mutated_streams(stage: WireStage) -> None:
    """Bytes that are changed, lost or doubled anywhere in the body end in a Finish or an EngineError, soon."""
    sound = b"".join(stage.dialect.body(PIECES, END))
    for seed in range(_MUTATIONS):
        chance = random.Random(seed)
        body = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            length = chance.choice((1, 1, 2, 8))
            body[at : at + length] = chance.choice((b"", chance.randbytes(length), body[at : at + length] * 2))
        outcome = await stage.play(streamed([bytes(body)], stage.dialect.content_type))
        expect(outcome.finish or outcome.error, f"seed {seed}: neither a Finish nor an error")
        if outcome.error is not None:
            expect(outcome.error.info.retriable is not None, f"seed {seed}: {outcome.told()}")


@wire.case()
async def no_http(stage: WireStage) -> None:
    """An answer that is no HTTP, or breaks its rules amid the body."""
    scenes: tuple[tuple[Step, ...], ...] = (
        (b"\x00\x01\x02 nothing of HTTP \r\n\r\n",),
        (stream_head(stage.dialect.content_type) + b"zz\r\nx\r\n",),
        (stream_head(stage.dialect.content_type) + chunk(stage.dialect.body(_SHORT, None)[0]) + b"-1\r\n",),
    )
    for scene in scenes:
        (await stage.play(*scene)).failed(["WORKER_RESET"], retriable=True)


@wire.case()
async def an_unbounded_frame(stage: WireStage) -> None:
    """A frame that never ends is given up, long before it fills the memory."""
    stage.peer.sent_bytes = 0
    start = stage.dialect.frame(stage.dialect.payloads(_SHORT, None)[0]).rstrip(b"\n}")
    body = [chunk(_UNBOUNDED_STEP)] * _UNBOUNDED_STEPS
    outcome = await stage.play(stream_head(stage.dialect.content_type), chunk(start), *body)
    outcome.failed(["WORKER_RESET"], retriable=True)
    sent = stage.peer.sent_bytes
    expect(sent <= _UNBOUNDED_BYTES_MAX, f"{sent} bytes of one frame were read before it was given up")


@wire.case()
async def other_content(stage: WireStage) -> None:
    """A 200 whose body is no stream: a proxy's page, a JSON object, nothing at all."""
    page = b"<html><body>It works!</body></html>"
    for answer in (
        Answer(200, page, "text/html"),
        Answer(200, b'{"object":"list"}', "application/json"),
        Answer(200, b'{"object":"list"}\n\n', "application/json"),
    ):
        outcome = await stage.play(answer_bytes(answer))
        expect(outcome.finish is None, f"a Finish made of {answer.body!r}: {outcome.told()}")
        outcome.failed(["WORKER_RESET", "INTERNAL"], retriable=None)


@wire.case("running_count")
async def counts_that_run_backwards(stage: WireStage) -> None:
    """An engine that contradicts its own count of tokens is not believed."""
    payloads = stage.dialect.backwards()
    assert payloads is not None, "a dialect with `running_count` says how its counts contradict each other"
    frames = [stage.dialect.frame(payload) for payload in payloads]
    (await stage.play(streamed(frames, stage.dialect.content_type))).failed(["WORKER_RESET"], retriable=True)


def _expect_broken_or_whole(outcome: Outcome, where: str) -> None:
    text = "".join(piece.text for piece in _SHORT)
    expect(text.startswith(outcome.text), f"made-up text, {where}: {outcome.told()}")
    if outcome.error is None:
        expect_whole(outcome, _SHORT, where=where)
        return
    try:
        outcome.failed(["WORKER_RESET"], retriable=True)
    except NotConformingError as error:
        raise NotConformingError(f"{where}: {error}") from error
