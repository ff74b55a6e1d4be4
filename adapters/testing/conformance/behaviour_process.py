"""The engine as a process: what it says of itself, how it dies, and who can reach it."""

import asyncio
import re
import stat
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.exchange import Address, open_stream
from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.listeners import listeners
from adapters.testing.conformance.subject import Bench, behaviour
from contracts.engine import EngineError

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_EXIT_MAX_S: Final = 30.0
_METRICS_MAX_S: Final = 5.0
_ANSWER_MAX_S: Final = 5.0
_OPEN_PATHS: Final = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/completion", "/generate")


@behaviour.case()
async def properties(bench: Bench) -> None:
    """Version, digest and limits, the same whenever asked (ORCH-3032)."""
    one, two = await bench.adapter.properties(), await bench.adapter.properties()
    expect(one == two, f"two answers to the same question: {one} and {two}")
    expect(one.engine_version.strip(), "no version")
    expect(_DIGEST.fullmatch(one.model_digest), f"{one.model_digest!r} is no digest")
    expect(1 <= one.slots <= bench.subject.spec.slots, f"{one.slots} slots of {bench.subject.spec.slots}")
    expect(one.ctx >= bench.subject.spec.ctx, f"a context of {one.ctx}, though {bench.subject.spec.ctx} was asked for")


@behaviour.case()
async def metrics(bench: Bench) -> None:
    """A scrape tells how many run, while they run and after."""
    decode = await bench.started()
    busy = (await bench.adapter.metrics()).requests_processing
    await bench.adapter.cancel(decode.key)
    await decode.over()
    idle = (await bench.adapter.metrics()).requests_processing
    expect(busy is None or busy >= 1, f"{busy} requests while one ran")
    expect(not idle, f"{idle} requests while none ran")


@behaviour.case("counted")
async def tokens_are_counted(bench: Bench) -> None:
    """The engine's own count of tokens grows by those that arrived."""
    before = (await bench.adapter.metrics()).tokens_out_total
    # Where characters take several tokens, frames are not tokens.
    outcome = await bench.generate(bench.subject.multibyte_prompt, max_tokens=32)
    outcome.finished()
    expect(before is not None, "no count of tokens: the subject lacks `counted`")
    assert before is not None
    after: int | None = before
    try:
        # Some engines bring their counters up to date now and then.
        async with asyncio.timeout(_METRICS_MAX_S):
            while after is not None and after < before + outcome.tokens:
                after = (await bench.adapter.metrics()).tokens_out_total
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    expect(after == before + outcome.tokens, f"{before} tokens, then {outcome.tokens} more, make {after}")


@behaviour.case("process")
async def killed_amid_the_text(bench: Bench) -> None:
    """A killed engine ends its streams in WORKER_RESET, is noticed, and can be launched again."""
    decode = await bench.started()
    bench.subject.kill(bench.adapter)
    try:
        await decode.over()
    except EngineError as error:
        decode.outcome.error = error
    decode.outcome.failed(["WORKER_RESET"], retriable=True)
    async with asyncio.timeout(_EXIT_MAX_S):
        ended = await bench.adapter.wait_exit()
    expect(ended.status != 0, "a killed engine has the exit status of success")
    expect(not await bench.adapter.healthy(), "healthy, though it was killed")
    await bench.adapter.launch()
    expect(await bench.adapter.healthy(), "not healthy after another launch")
    (await bench.generate(max_tokens=2)).finished()


@behaviour.case()
async def closed_twice(bench: Bench) -> None:
    """Closing ends it, again does no harm, and it can be launched anew."""
    decode = await bench.started()
    await bench.adapter.close()
    await asyncio.gather(decode.over(), return_exceptions=True)
    # An engine may end what it has begun before it goes; then that is whole.
    finish, limit = decode.outcome.finish, bench.subject.long_tokens
    is_whole = finish is None or finish.finish_reason == "stop" or decode.outcome.tokens == limit
    expect(is_whole, f"a Finish after {decode.outcome.tokens} of {limit} tokens of an engine that was closed")
    await bench.adapter.close()
    expect(not await bench.adapter.healthy(), "healthy, though it is closed")
    await bench.adapter.launch()
    (await bench.generate(max_tokens=2)).finished()


@behaviour.case("model_file")
async def a_missing_model(bench: Bench) -> None:
    """A model that is not there is told of before and at launch, retriable, as a fault of the model (ORCH-3003)."""
    spec = replace(bench.subject.spec, model_path="conformance-no-such-model.gguf")
    adapter = bench.subject.create(spec)
    for step in (adapter.memory_need, adapter.launch):
        try:
            await step()
        except EngineError as error:
            expect(error.info.code == "POOL_UNREADY", f"expected POOL_UNREADY, got {error.info.code}")
            expect(error.kind == "model", f"expected the kind `model`, got {error.kind}")
            expect(spec.model_path in error.info.message, "the error does not name the file")
        else:
            expect(False, f"{step.__name__} found no fault with a missing model")
    await adapter.close()


@behaviour.case("private")
async def nobody_else_can_reach_it(bench: Bench) -> None:
    """It listens on the loopback or in a private folder only (OC-ADAPT-5002, ORCH-3044)."""
    pid = getattr(bench.adapter, "pid", None)
    expect(pid is not None, "no process to look at")
    found = listeners(pid)  # type: ignore[arg-type]
    expect(found, "the engine listens nowhere that the kernel tells of")
    for one in found:
        expect(one.is_loopback, f"port {one.port} is open to other hosts")
        if one.path and not one.path.startswith("@"):
            mode = stat.S_IMODE(Path(one.path).parent.stat().st_mode)
            expect(mode == 0o700, f"the folder of {one.path} has mode {mode:o}")


@behaviour.case("private", "keys")
async def nobody_gets_in_without_the_key(bench: Bench) -> None:
    """Its own endpoints, the OpenAI-compatible ones among them, answer nobody who has no key."""
    pid = getattr(bench.adapter, "pid", None)
    answered = 0
    for one in listeners(pid):  # type: ignore[arg-type]
        address = Address(socket_path=one.path) if one.path else Address(port=one.port)
        for path in _OPEN_PATHS:
            try:
                async with asyncio.timeout(_ANSWER_MAX_S):
                    stream = await open_stream(address, path, b'{"prompt":"x","max_tokens":1}', {})
            except OSError:
                break  # a timeout is one too: what listens there speaks no HTTP
            stream.close()
            answered += 1
            expect(stream.status in (401, 403, 404), f"{path} answered {stream.status} without a key")
    expect(answered, "nothing that listens speaks HTTP")
