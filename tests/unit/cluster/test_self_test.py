"""An engine is Ready when it made tokens, let go of a slot, and told of its work; else it says what it did not do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from contracts.engine import Chunk, EngineError, EngineExit, EngineMetrics, Finish, GenerateRequest
from orchestrator.cluster import self_test as module
from orchestrator.cluster.self_test import self_test
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter


class Engine(ScriptedAdapter):
    """What it says in the self-test's two generations, and how it answers the rest, is what a test sets."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.items: list[Chunk | Finish] | None = None
        self.items_to_cancel: list[Chunk | Finish] | None = None
        self.hangs_in: set[str] = set()
        self.told = EngineMetrics(requests_processing=0)

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        await self._maybe_hang("generate")
        items = self.items_to_cancel if attempt_key.endswith("cancel") else self.items
        if items is None:
            async with contextlib.aclosing(super().generate(attempt_key, request)) as generated:  # type: ignore[type-var]
                async for item in generated:
                    yield item
            return
        for item in items:
            yield item

    async def cancel(self, attempt_key: str) -> None:
        await self._maybe_hang("cancel")
        await super().cancel(attempt_key)

    async def metrics(self) -> EngineMetrics:
        await self._maybe_hang("metrics")
        return self.told

    async def _maybe_hang(self, call: str) -> None:
        if call in self.hangs_in:
            await asyncio.Event().wait()


async def refused(engine: Engine) -> str:
    """What the self-test says against an engine."""
    with pytest.raises(EngineError) as failed:
        await self_test(engine, SPEC)
    info = failed.value.info
    assert (info.code, info.engine, info.pool_id, info.retriable) == ("POOL_UNREADY", "llamacpp", "pool", True)
    assert failed.value.kind == "launch"
    return info.message


@pytest.mark.req("ORCH-3049", "OC-POOL-3001")
async def test_an_engine_that_works_passes_with_its_pace_and_an_empty_slot() -> None:
    engine = Engine()
    engine.self_test_token_s = 0.002
    token_ns = (await self_test(engine, SPEC)).token_ns
    assert token_ns >= 1_000_000  # it takes twice as long at least
    assert engine.canceled == ["self-test-cancel"]
    assert engine.active == set()


@pytest.mark.req("ORCH-3049")
async def test_a_pace_is_never_zero() -> None:
    engine = Engine()
    engine.items = [Chunk("Paris"), Finish("stop", 5)]
    assert await self_test(engine, SPEC) == (1, 0)


@pytest.mark.req("ORCH-3049", "OC-POOL-3001")
@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([Finish("stop", 5)], "generated 0 pieces of text and an end"),
        ([Chunk("Par"), Chunk("is")], "generated 2 pieces of text and no end"),
        ([], "generated 0 pieces of text and no end"),
    ],
    ids=["no tokens", "no end", "nothing"],
)
async def test_an_engine_must_make_tokens_and_an_end(items: list[Chunk | Finish], said: str) -> None:
    engine = Engine()
    engine.items = items
    assert await refused(engine) == f"the self-test {said}"


@pytest.mark.req("ORCH-3049", "ORCH-3026")
async def test_an_engine_must_have_something_to_cancel() -> None:
    engine = Engine()
    engine.items_to_cancel = []
    assert await refused(engine) == "the self-test generated nothing to cancel"


@pytest.mark.req("ORCH-3049")
async def test_an_engine_must_tell_of_its_work() -> None:
    engine = Engine()
    engine.told = EngineMetrics(kv_cache_usage_ratio=0.5, tokens_in_total=3)
    assert "found no metrics" in await refused(engine)
    for told in (EngineMetrics(requests_processing=0), EngineMetrics(tokens_out_total=0)):
        engine.told = told
        await self_test(engine, SPEC)


@pytest.mark.req("ORCH-3049", "ORCH-3026")
@pytest.mark.parametrize("call", ["generate", "cancel", "metrics"])
async def test_an_engine_that_hangs_is_given_up(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    engine = Engine()
    engine.hangs_in.add(call)
    assert (await refused(engine)).startswith("the self-test did not end within")
    assert engine.active == set()


@pytest.mark.req("ORCH-3049")
async def test_what_an_engine_says_against_a_request_is_passed_on() -> None:
    engine = Engine()
    engine.exit.set_result(EngineExit(1))
    with pytest.raises(EngineError) as failed:
        await self_test(engine, SPEC)
    assert (failed.value.info.code, failed.value.info.message) == ("WORKER_RESET", "the scripted engine died")
