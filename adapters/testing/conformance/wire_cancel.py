"""Cancels and silence on the wire: the connection is closed, the iterator ends, the slot is proven free."""

import asyncio
import time
from typing import Final

from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.dialect import SLOTS, Piece
from adapters.testing.conformance.outcome import collect
from adapters.testing.conformance.peer import Hang, Pause
from adapters.testing.conformance.stage import END, PIECES, Running, WireStage, expect_whole, wire
from adapters.testing.peers.http import chunk, stream_head
from contracts.engine import EngineError

_CANCEL_MAX_S: Final = 4.0
_FLOOD_FRAMES: Final = 400
_FLOOD_TEXT: Final = "x" * 100_000
#: What may be on its way at once: the adapter's bound, the peer's and the kernel's buffers.
_UNREAD_BYTES_MAX: Final = 16 * 1024 * 1024


@wire.case()
async def cancel_before_the_answer(stage: WireStage) -> None:
    """An engine that has not begun to answer is not waited for."""
    stage.peer.scene = (Hang(),)
    running = Running(stage)
    await stage.reaches(lambda: bool(stage.peer.active), "the request reaches the engine")
    await _cancel(stage, running)
    expect(not running.outcome.chunks, f"text of nothing: {running.outcome.told()}")


@wire.case()
async def cancel_amid_the_head(stage: WireStage) -> None:
    """Nor one whose head does not end."""
    stage.peer.scene = (b"HTTP/1.1 200 OK\r\nX-Slow: ", Hang())
    running = Running(stage)
    await stage.reaches(lambda: stage.peer.sent_bytes > 0, "the engine begins its head")
    await _cancel(stage, running)


@wire.case()
async def cancel_amid_a_stall(stage: WireStage) -> None:
    """An engine that fell silent amid its stream."""
    stage.peer.scene = (_start(stage), Hang())
    running = Running(stage)
    await stage.reaches(lambda: bool(running.outcome.chunks), "the first text arrives")
    await _cancel(stage, running)


@wire.case()
async def cancel_while_text_comes(stage: WireStage) -> None:
    """No text follows a cancel, though the engine goes on (ORCH-3026)."""
    frames = [chunk(frame) for frame in stage.dialect.body([Piece("a")] * 500, None)]
    paced = [step for frame in frames for step in (frame, Pause(0.001))]
    stage.peer.scene = (stream_head(stage.dialect.content_type), *paced)
    running = Running(stage)
    await stage.reaches(lambda: bool(running.outcome.chunks), "the first text arrives")
    canceling = asyncio.ensure_future(stage.adapter.cancel(running.key))
    await asyncio.sleep(0)
    seen = len(running.outcome.chunks)
    await canceling
    outcome = await running.over()
    expect(len(outcome.chunks) == seen, f"{len(outcome.chunks) - seen} chunks came after the cancel")
    expect(outcome.finish is None, "a canceled generation had a Finish")


@wire.case()
async def cancel_again_and_too_late(stage: WireStage) -> None:
    """Canceling twice, after the end, or what never was, is fine."""
    stage.peer.scene = (_start(stage), Hang())
    running = Running(stage)
    await stage.reaches(lambda: bool(running.outcome.chunks), "the first text arrives")
    await asyncio.gather(stage.adapter.cancel(running.key), stage.adapter.cancel(running.key))
    await running.over()
    await stage.adapter.cancel(running.key)
    await stage.adapter.cancel("never begun")
    stage.peer.scene = (stage.wire(),)
    key = stage.key()
    expect_whole(await collect(stage.adapter, key, stage.request()))
    await stage.adapter.cancel(key)


@wire.case()
async def closing_the_iterator(stage: WireStage) -> None:
    """An iterator that is closed closes the engine's connection."""
    stage.peer.scene = (_start(stage), Hang())
    key = stage.key()
    stream = stage.adapter.generate(key, stage.request())
    await anext(aiter(stream))
    await stream.aclose()  # type: ignore[attr-defined]
    await stage.reaches(lambda: stage.peer.dropped == 1, "the connection is closed with the iterator")
    await stage.adapter.cancel(key)


@wire.case()
async def a_canceled_reader(stage: WireStage) -> None:
    """So does a reading task that is canceled, wherever it waits."""
    for scene in ((Hang(),), (_start(stage), Hang())):
        stage.peer.scene, stage.peer.dropped = scene, 0
        reading = asyncio.ensure_future(collect(stage.adapter, stage.key(), stage.request()))
        await stage.reaches(lambda: bool(stage.peer.active), "the request reaches the engine")
        await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        expect(reading.cancelled(), "the reader's own cancel was swallowed")
        await stage.reaches(lambda: stage.peer.dropped == 1, "the connection is closed with its reader")


@wire.case()
async def no_more_than_the_slots(stage: WireStage) -> None:
    """More in flight than the engine runs is refused, retriably; a freed slot can be used at once (ORCH-3019)."""
    stage.peer.scene = (_start(stage), Hang())
    slots = (await stage.adapter.properties()).slots if "described" not in stage.dialect.lacks else SLOTS
    running = [Running(stage) for _ in range(slots)]
    await stage.reaches(lambda: all(one.outcome.chunks for one in running), f"all {slots} slots are in use")
    over = await stage.play(stage.wire())
    over.failed(["REPLICA_EXHAUSTED"], retriable=True)
    expect(len(stage.peer.active) == slots, "a request beyond the slots reached the engine")
    await _cancel(stage, running[0], dropped=1)
    expect_whole(await stage.play(stage.wire()))
    await asyncio.gather(*(stage.adapter.cancel(one.key) for one in running))
    await asyncio.gather(*(one.over() for one in running))


@wire.case("release_proof")
async def a_slot_that_is_kept(stage: WireStage) -> None:
    """A cancel that the engine does not follow is a WORKER_RESET, in bounded time (ORCH-3017)."""
    stage.peer.scene, stage.peer.holds = (_start(stage), Hang()), True
    running = Running(stage)
    await stage.reaches(lambda: bool(running.outcome.chunks), "the first text arrives")
    started_s = time.monotonic()
    try:
        await stage.adapter.cancel(running.key)
    except EngineError as error:
        expect(error.info.code == "WORKER_RESET", f"expected WORKER_RESET, got {error.info.code}")
    else:
        expect(False, "the cancel returned though the engine still works on the task")
    waited_s = time.monotonic() - started_s
    expect(waited_s <= _CANCEL_MAX_S, f"the cancel took {waited_s:.1f} s")
    await running.over()
    stage.peer.active.clear()


@wire.case()
async def a_reader_that_is_slow(stage: WireStage) -> None:
    """What nobody reads yet is bounded, and nothing of it is lost."""
    pieces = [Piece(_FLOOD_TEXT)] * _FLOOD_FRAMES
    frames = [chunk(frame) for frame in stage.dialect.body(pieces, END)]
    stage.peer.scene = (stream_head(stage.dialect.content_type), *frames, b"0\r\n\r\n")
    stream = aiter(stage.adapter.generate(stage.key(), stage.request()))
    items = [await anext(stream)]
    await asyncio.sleep(0.3)
    sent = stage.peer.sent_bytes
    expect(sent <= _UNREAD_BYTES_MAX, f"{sent} bytes were taken in while nobody read")
    items += [item async for item in stream]
    got = sum(len(item.text) for item in items if hasattr(item, "text"))
    expect(got == _FLOOD_FRAMES * len(_FLOOD_TEXT), f"{got} characters arrived of what a slow reader is owed")


def _start(stage: WireStage) -> bytes:
    """The head and the first frames of a stream."""
    head = stream_head(stage.dialect.content_type)
    return head + b"".join(chunk(frame) for frame in stage.dialect.body(PIECES, None))


async def _cancel(stage: WireStage, running: Running, dropped: int = 1) -> None:
    started_s = time.monotonic()
    await stage.adapter.cancel(running.key)
    waited_s = time.monotonic() - started_s
    expect(waited_s <= _CANCEL_MAX_S, f"the cancel took {waited_s:.1f} s")
    outcome = await running.over()
    expect(outcome.finish is None, f"a canceled generation had a Finish: {outcome.told()}")
    await stage.reaches(lambda: stage.peer.dropped >= dropped, "the engine's connection is closed")
