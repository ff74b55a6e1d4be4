"""Results of embeddings on a replica: bounded in size, counted by input, and sent a few at a time."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts.engine import Chunk, EngineMetrics, Finish, GenerateRequest
from contracts.scheduling import AttemptEnded
from orchestrator.cluster import ended, measuring, replica_service
from orchestrator.cluster import self_test as tests_of_engines
from orchestrator.cluster.ended import EndedAttempts
from orchestrator.cluster.measuring import count_prompt
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.self_test import self_test
from orchestrator.cluster.task_stream import CREDIT_RESULTS
from orchestrator.cluster.transcript import TokenFlow, Transcript
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter, cluster, task
from tests.unit.cluster.test_replica_service import Wire

TEXTS = ["one two", "three", "four five six"]


class Embedder(ScriptedAdapter):
    """Its embedding of a text is the text's length and number of words; `digits` is what it gives instead."""

    digits = ""

    async def count_tokens(self, request: GenerateRequest) -> int:
        self.counted = [*getattr(self, "counted", []), *(request.inputs or ())]
        return sum(len(text.split()) for text in request.inputs or ())

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        self.active.add(attempt_key)
        try:
            for text in request.inputs or ():
                await asyncio.sleep(0)
                yield Chunk(self.digits or f"[{len(text)}.5,{len(text.split())}]")
            yield Finish("stop", sum(len(text.split()) for text in request.inputs or ()))
        finally:
            self.active.discard(attempt_key)

    async def metrics(self) -> EngineMetrics:
        return EngineMetrics(requests_processing=len(self.active))


def embedding(texts: list[str]) -> GenerateRequest:
    return GenerateRequest("a", 1, 1, workload="embedding", inputs=texts)


async def ended_of(scheduler: Wire) -> AttemptEnded:
    async with asyncio.timeout(10):
        while not (found := [message for message in scheduler.sent if isinstance(message, AttemptEnded)]):
            await asyncio.sleep(0)
    return found[0]


async def test_results_beyond_the_bound_fail_the_attempt_and_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_service, "RESULT_BYTES_MAX", 14)
    scheduler = Wire()
    replica = ReplicaService(SPEC, Embedder(SPEC), scheduler.send, TokenFlow())
    replica.start(wire.StartAttempt("a", 1, wire.encode(embedding(TEXTS))))
    report = await ended_of(scheduler)
    assert (report.result, report.tokens_out) == ("failed", 2)
    assert report.error is not None
    assert (report.error.code, report.error.retriable) == ("INVALID_PARAMS", False)
    assert report.error.message.endswith("send fewer inputs in a task")


def test_ended_attempts_are_kept_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "ENDED_BYTES_MAX", 100)
    kept = EndedAttempts()
    first, second, huge = Transcript(), Transcript(), Transcript()
    kept.add(("a", 1), first, 60)
    kept.add(("b", 1), second, 40)
    assert kept.get(("a", 1)) is first
    kept.add(("c", 1), huge, 1000)
    assert (kept.get(("a", 1)), kept.get(("b", 1)), kept.get(("c", 1))) == (None, None, huge)
    assert (kept.is_gone(("a", 1)), kept.is_gone(("c", 1)), kept.is_gone(("d", 1))) == (True, False, False)
    kept.add(("d", 1), second, 10)
    assert (kept.get(("c", 1)), kept.get(("d", 1))) == (None, second)


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
async def test_only_inputs_that_may_be_too_long_are_counted() -> None:
    adapter = Embedder(SPEC)
    longest = "w " * 30
    texts = ["short", longest, "x" * 70]
    assert await count_prompt(adapter, embedding(texts), 50) == 30
    assert adapter.counted == [texts[2], longest]  # most bytes first
    assert await count_prompt(adapter, embedding(["short"]), 50) == 0
    ranked = replace(embedding(["short"]), workload="rerank", prompt="q" * 60)
    assert await count_prompt(adapter, ranked, 50) == 1
    assert await count_prompt(ScriptedAdapter(SPEC), GenerateRequest("a", 1, 1, prompt="one two"), 50) == 2


class SlowCounter(Embedder):
    """Counts words, one turn each, and notes how many counts were under way."""

    at_once = most = 0
    hangs = False

    async def count_tokens(self, request: GenerateRequest) -> int:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0))
            return await super().count_tokens(request)
        finally:
            self.at_once -= 1


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
async def test_inputs_are_counted_longest_first_a_few_at_a_time_until_one_is_too_long() -> None:
    adapter = SlowCounter(SPEC)
    texts = [" ".join("w" * n) for n in range(30, 60)]
    assert await count_prompt(adapter, embedding(texts), 59) == 59
    assert (adapter.most, adapter.counted[0], len(adapter.counted)) == (measuring.COUNTS_MAX, texts[-1], 30)
    adapter = SlowCounter(SPEC)
    assert await count_prompt(adapter, embedding(texts * 3), 40) > 40
    assert len(adapter.counted) <= 2 * measuring.COUNTS_MAX


@pytest.mark.req("ORCH-3015")
async def test_counting_ends_when_it_is_asked_for_again_or_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TIMEOUT_S", 0.05)
    adapter, scheduler = SlowCounter(SPEC), Wire()
    adapter.hangs = True
    replica = ReplicaService(SPEC, adapter, scheduler.send, TokenFlow())
    payload = wire.encode(embedding(["w " * 40] * 3))
    replica.measure(wire.Measure("a", 1, payload, 50))
    await asyncio.sleep(0.01)
    assert adapter.at_once == 3
    adapter.hangs = False
    replica.measure(wire.Measure("a", 2, payload, 50))
    async with asyncio.timeout(10):
        while not scheduler.sent or adapter.at_once:
            await asyncio.sleep(0.01)
    adapter.hangs = True
    replica.measure(wire.Measure("b", 3, payload, 50))
    await asyncio.sleep(0.01)
    assert adapter.at_once == 3
    async with asyncio.timeout(10):
        while adapter.at_once:
            await asyncio.sleep(0.01)
    assert [(message.task_id, message.measurement) for message in scheduler.sent] == [("a", 2)]  # type: ignore[attr-defined]


class Uncounted(Embedder):
    """Tells no token counts; on its own clock any request takes 20 ms and each word 0.1 ms more."""

    now_ns = 0

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, request):
            if isinstance(item, Finish):
                self.now_ns += 20_000_000 + 100_000 * item.tokens_in
                yield Finish("stop", 0)
            else:
                yield item


@pytest.mark.req("ORCH-3049", "ORCH-3081")
async def test_the_pace_of_inputs_is_what_a_token_more_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, workload="embedding")
    adapter = Uncounted(spec)
    monkeypatch.setattr(tests_of_engines, "time", SimpleNamespace(monotonic_ns=lambda: adapter.now_ns))
    # 12 words (about 16 tokens by their bytes) take 21.2 ms, 204 (254) take 40.4: a mean would be twice as much.
    shown = await self_test(adapter, spec)
    assert shown.token_ns == pytest.approx(80_000, rel=0.05)
    # Where so little fits that there is no slope, the mean has to do.
    assert (await self_test(adapter, replace(spec, ctx=32))).token_ns > 1_000_000


@pytest.mark.req("ORCH-3049", "OC-POOL-3001")
async def test_the_self_test_of_an_embedding_pool_wants_numbers_for_every_input() -> None:
    spec = replace(SPEC, workload="embedding")
    adapter = Embedder(spec)
    shown = await self_test(adapter, spec)
    assert shown.token_ns > 0
    assert shown.result_bytes == len("[31.5,6]")
    assert adapter.canceled == ["self-test-cancel"]
    for digits in ("[]", "{}", "[null]", "nonsense"):
        adapter.digits = digits
        with pytest.raises(Exception, match="the self-test gave a"):
            await self_test(adapter, spec)
    adapter.digits = '{"index":0,"score":1.5}'
    assert (await self_test(adapter, replace(SPEC, workload="rerank"))).result_bytes == 0
    assert set(tests_of_engines.TASKS) == {"completion", "embedding", "rerank"}


@pytest.mark.req("ORCH-2002", "ORCH-3045")
async def test_many_results_reach_a_stream_whole_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through scheduler, replica and gateway: results are the transcript's tokens, and credit bounds what is sent."""
    credits: list[int] = []
    subscribe = TokenFlow.subscribe

    def noted(flow: TokenFlow, transcript: Transcript, connection: object, sid: int, first: int, credit: int) -> None:
        credits.append(credit)
        subscribe(flow, transcript, connection, sid, first, credit)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenFlow, "subscribe", noted)
    count = 5 * CREDIT_RESULTS + 3
    async with cluster(adapter=Embedder, workload="embedding") as (_, gateway):
        info = task("a", 1, workload="embedding", items=count, longest_input_bytes=5, determinism="")
        await gateway.submit(info, embedding(["w"] * count))
        texts: list[str] = []
        async with asyncio.timeout(20):
            async for event in gateway.stream("a", "acme"):
                texts += getattr(event, "texts", [])
                last = event
        assert texts == ["[1.5,1]"] * count
        assert (last.tokens_out, last.decode_ms, last.tokens_in) == (0, 0, count)  # type: ignore[union-attr]
        status = await gateway.status("a", "acme")
        assert (status.tokens_out, status.tokens_in, status.state) == (0, count, "finished")
        page = (await gateway.metrics()).decode()
    assert set(credits) == {CREDIT_RESULTS}
    assert f'pool_id="pool",replica_id="pool-0"}} {float(count)}' in page
    made = [line for line in page.splitlines() if line.startswith(("tokens_out_total{", "latency_decode_ms_count{"))]
    assert [line for line in made if not line.endswith(" 0.0")] == []
