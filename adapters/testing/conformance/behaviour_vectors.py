"""Pools that embed and rerank: one result for each input, in order, as the engine told it."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.outcome import Outcome, collect
from adapters.testing.conformance.subject import Bench, behaviour
from contracts.engine import EngineAdapter, EngineSpec, GenerateRequest

_INPUTS: Final = ("the sea", "Straße 🙂", "the sea", "a much longer input than the others are " * 4)
_QUERY: Final = "where does the river run?"


@behaviour.case("embedding")
async def embeddings(bench: Bench) -> None:
    """One array of numbers for each input, in order, of one length, the same for the same input."""
    async with _running(bench, bench.subject.embedding) as adapter:
        rows = await _results(bench, adapter, "embedding", _INPUTS)
        for row in rows:
            expect(isinstance(row, list) and row, f"{str(row)[:80]} is no embedding")
            expect(
                all(isinstance(x, int | float) and math.isfinite(x) for x in row), "an embedding of other than numbers"
            )
        lengths = {len(row) for row in rows}
        expect(len(lengths) == 1, f"embeddings of lengths {sorted(lengths)}")
        expect(rows[0] != rows[1], "unlike inputs have one embedding")
        turned = await _results(bench, adapter, "embedding", tuple(reversed(_INPUTS)))
        near = all(
            math.isclose(one, two, rel_tol=1e-2, abs_tol=1e-3)
            for row, other in zip(rows, reversed(turned), strict=True)
            for one, two in zip(row, other, strict=True)
        )
        expect(near, "the embeddings are not in the order of their inputs")


@behaviour.case("rerank")
async def ranks(bench: Bench) -> None:
    """One index and score for each document, in the documents' order."""
    async with _running(bench, bench.subject.rerank) as adapter:
        rows = await _results(bench, adapter, "rerank", _INPUTS, prompt=_QUERY)
        expect([row.get("index") for row in rows] == list(range(len(_INPUTS))), f"out of order: {rows}")
        expect(all(math.isfinite(row["score"]) for row in rows), f"scores that are no numbers: {rows}")


@behaviour.case("embedding")
async def text_of_an_embedding_pool(bench: Bench) -> None:
    """A pool for embeddings refuses to make text."""
    async with _running(bench, bench.subject.embedding) as adapter:
        outcome = await collect(adapter, bench.key(), bench.request())
        outcome.failed(["INVALID_PARAMS"], retriable=False)
        await _results(bench, adapter, "embedding", _INPUTS[:1])


@behaviour.case("embedding", "input_limit")
async def too_long_an_input(bench: Bench) -> None:
    """An input over the context is refused, and others are embedded as before."""
    spec = bench.subject.embedding
    async with _running(bench, spec) as adapter:
        long = "word " * ((spec.ctx if spec else 0) + 64)
        request = GenerateRequest(task_id="t", max_tokens=1, seed=1, workload="embedding", inputs=["a", long])
        outcome = await collect(adapter, bench.key(), request)
        outcome.failed(["INVALID_PARAMS"], retriable=False)
        await _results(bench, adapter, "embedding", _INPUTS[:1])


@asynccontextmanager
async def _running(bench: Bench, spec: EngineSpec | None) -> AsyncIterator[EngineAdapter]:
    """An engine of its own, beside nothing: the subject's usual one is closed meanwhile."""
    expect(spec is not None, "a subject that serves such pools gives the spec of one")
    assert spec is not None
    await bench.adapter.close()
    adapter = bench.subject.create(spec)
    try:
        await adapter.launch()
        yield adapter
    finally:
        await adapter.close()


async def _results(
    bench: Bench, adapter: EngineAdapter, workload: str, inputs: tuple[str, ...], prompt: str | None = None
) -> list[Any]:
    request = GenerateRequest(task_id="t", max_tokens=1, seed=1, workload=workload, inputs=list(inputs), prompt=prompt)
    outcome: Outcome = await collect(adapter, bench.key(), request)
    finish = outcome.finished()
    expect(finish.finish_reason == "stop", f"the end of an {workload} is {finish.finish_reason!r}")
    expect(finish.tokens_in > 0, "inputs of no tokens")
    if "tokenizer" not in bench.subject.lacks:
        counted = await adapter.count_tokens(request)
        expect(counted == finish.tokens_in, f"counted {counted} tokens, evaluated {finish.tokens_in}")
    expect(len(outcome.chunks) == len(inputs), f"{len(outcome.chunks)} chunks for {len(inputs)} inputs")
    expect(all(chunk.tokens == 1 for chunk in outcome.chunks), "a result counts as one token")
    return [msgspec.json.decode(chunk.text) for chunk in outcome.chunks]
