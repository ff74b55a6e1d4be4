"""The small calls: health, readiness, keys, descriptions and metrics, from engines well and unwell."""

import asyncio
import functools
import os
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.outcome import MESSAGE_CHARS_MAX
from adapters.testing.conformance.stage import WireStage, expect_whole, wire
from adapters.testing.peers.http import Answer
from contracts.engine import EngineError

_KEY_VARIABLE: Final = "LLORCH_CONFORMANCE_KEY"
_HEALTH_MAX_S: Final = 5.0
_EXIT_MAX_S: Final = 15.0
_GARBAGE: Final = (
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{}",
    b'{"x":[1',
    b"\xff\xfe",
    b"[" * 100_000,
    b'[{"id":"x"}]',
    b"7",
)
#: What is done to sound answers: numbers that are none, or too large; names and types that were not agreed.
_MUTATIONS: Final = (
    *((rb"\b\d+\b", number) for number in (b"NaN", b"-1", b"1e999", b"x", b'"7"', b"9" * 400, b"null", b"0.5")),
    (rb'"(\w+)":', rb'"\1_":'),
    (rb"[{\[]", b""),
    (rb".\Z", b""),
)


@wire.case()
async def health(stage: WireStage) -> None:
    """Healthy while the engine answers so; not when it says otherwise, and never an exception."""
    expect(await stage.adapter.healthy(), "a well engine is not healthy")
    stage.peer.override_all = Answer(503, b'{"error":"not ready"}')
    expect(not await stage.adapter.healthy(), "healthy, though the engine answers 503")
    stage.peer.override_all = None
    expect(await stage.adapter.healthy(), "not healthy again, though the engine is")


@wire.case()
async def health_that_hangs(stage: WireStage) -> None:
    """An engine that takes the connection and says nothing is not healthy, within a bound."""
    stage.peer.hangs = True
    started_s = time.monotonic()
    expect(not await stage.adapter.healthy(), "healthy, though the engine says nothing")
    waited_s = time.monotonic() - started_s
    expect(waited_s <= _HEALTH_MAX_S, f"the health check took {waited_s:.1f} s")


@wire.case()
async def an_engine_that_goes_away(stage: WireStage) -> None:
    """An attached engine that is gone is noticed: not healthy, WORKER_RESET or POOL_UNREADY, and an exit."""
    exited = asyncio.ensure_future(stage.adapter.wait_exit())
    await stage.peer.close()
    expect(not await stage.adapter.healthy(), "healthy, though nobody listens")
    (await stage.play()).failed(["WORKER_RESET", "POOL_UNREADY"], retriable=True)
    try:
        await asyncio.wait_for(exited, _EXIT_MAX_S)
    except TimeoutError:
        expect(False, f"wait_exit did not notice within {_EXIT_MAX_S} s")


@wire.case()
async def nobody_to_attach_to(stage: WireStage) -> None:
    """A launch that finds no engine, or one that never gets ready, is a retriable POOL_UNREADY."""
    adapter = stage.dialect.create(replace(stage.dialect.spec("http://127.0.0.1:9"), ready_timeout_ms=300))
    await _expect_error(adapter.launch, ("POOL_UNREADY",), "a launch where nobody listens")
    expect(not await adapter.healthy(), "healthy, though it was never launched")
    stage.peer.override_all = Answer(503, b'{"error":"loading"}')
    adapter = stage.dialect.create(replace(stage.dialect.spec(stage.peer.endpoint), ready_timeout_ms=300))
    await _expect_error(adapter.launch, ("POOL_UNREADY",), "a launch on an engine that never gets ready")
    await adapter.close()
    await adapter.close()


@wire.case()
async def wrong_endpoints(stage: WireStage) -> None:
    """An endpoint that is none is named, and cannot be retried."""
    for endpoint in ("127.0.0.1:80", "ftp://x:1", "http://x", "http://x:notaport", "unix:"):
        adapter = stage.dialect.create(stage.dialect.spec(endpoint))
        error = await _expect_error(adapter.launch, ("INVALID_PARAMS", "POOL_UNREADY"), f"the endpoint {endpoint!r}")
        expect(endpoint in error.info.message, f"the error does not name the endpoint {endpoint!r}")


@wire.case()
async def a_unix_socket(stage: WireStage) -> None:
    """An engine on a Unix socket is attached to just so."""
    with tempfile.TemporaryDirectory() as folder:
        other = type(stage)(stage.dialect)
        await other.peer.listen(Path(folder, "engine.sock"))
        other.adapter = stage.dialect.create(stage.dialect.spec(other.peer.endpoint))
        try:
            await other.adapter.launch()
            expect_whole(await other.play(other.wire()))
        finally:
            await other.close()


@wire.case("keys")
async def a_key(stage: WireStage) -> None:
    """The key of an attached engine comes from the environment, goes with every generation, and is never told."""
    spec = replace(stage.dialect.spec(stage.peer.endpoint), api_key_env=_KEY_VARIABLE)
    os.environ.pop(_KEY_VARIABLE, None)
    await _expect_error(stage.dialect.create(spec).launch, ("POOL_UNREADY",), "a launch without the key")
    os.environ[_KEY_VARIABLE] = key = "conformance-key-0123456789"
    other = type(stage)(stage.dialect)
    other.peer = stage.peer
    other.adapter = stage.dialect.create(spec)
    try:
        await other.adapter.launch()
        expect_whole(await other.play(stage.wire()))
        refusal = stage.dialect.refusal("unauthorized")
        if refusal is not None:
            stage.peer.override_all = refusal
            error = await _error_of(other.adapter.properties)
            expect(error is None or key not in error.info.message, "an error tells the key")
    finally:
        del os.environ[_KEY_VARIABLE]
        await other.adapter.close()
    generations = [call for call in stage.peer.calls if stage.dialect.is_generation(call)]
    expect(generations, "no generation reached the engine")
    expect(generations[-1].headers.get("authorization") == f"Bearer {key}", "the generation came without the key")


@wire.case("described")
async def properties(stage: WireStage) -> None:
    """A description has version, slots and context, and is the same when asked again."""
    one, two = await stage.adapter.properties(), await stage.adapter.properties()
    expect(one == two, f"two answers to the same question: {one} and {two}")
    expect(one.engine_version and one.slots >= 1 and one.ctx >= 1, f"{one} is no description")


@wire.case("metrics")
async def metrics(stage: WireStage) -> None:
    """Metrics are mapped: how many run is told."""
    found = await stage.adapter.metrics()
    expect(any(value is not None for value in (getattr(found, name) for name in found.__struct_fields__)), "no metrics")


@wire.case()
async def garbage_in_small_calls(stage: WireStage) -> None:
    """Answers of any kind to any call give values or an EngineError, and nothing else."""
    request = stage.request()
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        stage.adapter.properties,
        stage.adapter.metrics,
        stage.adapter.healthy,
        lambda: stage.adapter.count_tokens(request),
    )
    for body in _GARBAGE:
        for status in (200, 404, 500):
            stage.peer.override_all = Answer(status, body, "application/json")
            for call in calls:
                await _error_of(call)
    stage.peer.override_all = None
    for old, new in _MUTATIONS:
        stage.peer.mutation = functools.partial(_mutated, old, new)
        for call in calls:
            await _error_of(call)
    stage.peer.mutation = None
    expect_whole(await stage.play(stage.wire()))


@wire.case()
async def before_the_launch_and_after_the_end(stage: WireStage) -> None:
    """An adapter without an engine says so (POOL_UNREADY), and can be closed any number of times."""
    adapter = stage.dialect.create(stage.dialect.spec(stage.peer.endpoint))
    for _ in range(2):
        await _expect_error(adapter.metrics, ("POOL_UNREADY",), "metrics without an engine")
        await _expect_error(adapter.properties, ("POOL_UNREADY",), "properties without an engine")
        expect(not await adapter.healthy(), "healthy without an engine")
        await adapter.cancel("x")
        await adapter.close()
        await adapter.launch()
        await adapter.close()
        await adapter.close()


def _mutated(old: bytes, new: bytes, body: bytes) -> bytes:
    return re.sub(old, new, body)


async def _error_of(call: Callable[[], Awaitable[object]]) -> EngineError | None:
    try:
        await call()
    except EngineError as error:
        length = len(error.info.message)
        expect(length <= MESSAGE_CHARS_MAX, f"an error with a message of {length} characters")
        return error
    except Exception as error:
        name = getattr(call, "__name__", "a call")
        expect(False, f"{name}: {type(error).__name__} came out instead of an EngineError: {error}"[:500])
    return None


async def _expect_error(call: Callable[[], Awaitable[object]], codes: tuple[str, ...], what: str) -> EngineError:
    error = await _error_of(call)
    expect(error is not None, f"{what} raised nothing")
    assert error is not None
    expect(error.info.code in codes, f"{what}: expected {' or '.join(codes)}, got {error.info.code}")
    return error
