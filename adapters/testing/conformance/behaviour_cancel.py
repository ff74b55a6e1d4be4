"""Cancels of real work, and how many tasks an engine takes."""

import asyncio
import time
from typing import Final

from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.outcome import collect
from adapters.testing.conformance.subject import Bench, Decode, behaviour

_CANCEL_MAX_S: Final = 3.5


@behaviour.case()
async def canceled_before_it_began(bench: Bench) -> None:
    """A cancel that comes at once leaves nothing behind."""
    decode = Decode(bench, bench.request(bench.subject.long_prompt, bench.subject.long_tokens))
    await asyncio.sleep(0)
    await _expect_canceled(bench, decode)


@behaviour.case()
async def canceled_amid_the_prompt(bench: Bench) -> None:
    """A cancel while the prompt is read."""
    decode = Decode(bench, bench.request(bench.subject.prefill_prompt, bench.subject.long_tokens, kv_hint="cold"))
    await asyncio.sleep(0.05)
    await _expect_canceled(bench, decode)


@behaviour.case()
async def canceled_amid_the_text(bench: Bench) -> None:
    """A cancel while text comes; none follows (ORCH-3017, ORCH-3026)."""
    decode = await bench.started()
    await _expect_canceled(bench, decode)


@behaviour.case()
async def canceled_twice_and_too_late(bench: Bench) -> None:
    """Canceling again, after the end, or what never was, is fine."""
    decode = await bench.started()
    await asyncio.gather(bench.adapter.cancel(decode.key), bench.adapter.cancel(decode.key))
    await decode.over()
    await bench.adapter.cancel(decode.key)
    await bench.adapter.cancel("never begun")


@behaviour.case()
async def slots(bench: Bench) -> None:
    """As many at once as the engine has slots, one more is refused, and a canceled one makes room at once."""
    count = (await bench.adapter.properties()).slots
    decodes = [await bench.started() for _ in range(count)]
    # All of them must still run, or nothing would be shown.
    expect(not any(decode.outcome.finish for decode in decodes), "a text ended early: `long_tokens` must be larger")
    over = await bench.generate()
    over.failed(["REPLICA_EXHAUSTED"], retriable=True)
    await bench.adapter.cancel(decodes[0].key)
    (await bench.generate(max_tokens=2)).finished()
    for decode in decodes:
        await bench.adapter.cancel(decode.key)
        await decode.over()


@behaviour.case()
async def a_key_in_use(bench: Bench) -> None:
    """The key of a running attempt cannot be used for another."""
    decode = await bench.started()
    outcome = await collect(bench.adapter, decode.key, bench.request(max_tokens=2))
    expect(outcome.error is not None, f"a second attempt under the same key gave {outcome.told()}")
    await bench.adapter.cancel(decode.key)
    await decode.over()


@behaviour.case()
async def closing_the_iterator(bench: Bench) -> None:
    """An iterator that is closed frees its slot."""
    key = bench.key()
    stream = bench.adapter.generate(key, bench.request(bench.subject.long_prompt, bench.subject.long_tokens))
    await anext(aiter(stream))
    await stream.aclose()  # type: ignore[attr-defined]
    # Returns when the engine has let go.
    await bench.adapter.cancel(key)
    count = (await bench.adapter.properties()).slots
    again = await asyncio.gather(*(bench.generate(max_tokens=2) for _ in range(count)))
    for outcome in again:
        outcome.finished()


async def _expect_canceled(bench: Bench, decode: Decode) -> None:
    started_s = time.monotonic()
    await bench.adapter.cancel(decode.key)
    waited_s = time.monotonic() - started_s
    seen = len(decode.outcome.chunks)
    outcome = await decode.over()
    expect(waited_s <= _CANCEL_MAX_S, f"the cancel took {waited_s:.1f} s")
    expect(outcome.finish is None, f"a canceled generation had a Finish: {outcome.told()}")
    expect(len(outcome.chunks) <= seen + 1, f"{len(outcome.chunks) - seen} chunks came after the cancel")
    count = (await bench.adapter.properties()).slots
    for outcome in await asyncio.gather(*(bench.generate(max_tokens=2) for _ in range(count))):
        outcome.finished()
