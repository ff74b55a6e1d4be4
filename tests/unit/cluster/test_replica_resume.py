"""A replica takes up a preempted task, or says that it would have made another text (ORCH-3086)."""

import zlib

import msgspec
import pytest
import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.engine import GenerateRequest
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter, until
from tests.unit.cluster.test_replica_service import Wire

TOKENS = ["t0 ", "t1 ", "t2 ", "t3 ", "t4 ", "t5 "]


def digest(texts: list[str]) -> int:
    return zlib.crc32("".join(texts).encode())


class Replica:
    """One replica service over a scripted engine, with what it told the scheduler."""

    def __init__(self) -> None:
        self.scheduler = Wire()
        self.adapter = ScriptedAdapter(SPEC)
        self.service = ReplicaService(SPEC, self.adapter, self.scheduler.send, TokenFlow())

    def start(self, max_tokens: int, resume_tokens: int = 0, resume_digest: int = 0, prompt: str = "plain") -> None:
        payload = wire.encode(GenerateRequest("a", max_tokens, 1, prompt=prompt))
        self.service.start(wire.StartAttempt("a", 2, payload, resume_tokens, resume_digest))

    def subscribe(self, first: int) -> Wire:
        ingress = Wire()
        self.service.subscribe(ingress, wire.Subscribe(7, "a", 2, first, 100))  # type: ignore[arg-type]
        return ingress

    def told(self, kind: type[msgspec.Struct]) -> list[msgspec.Struct]:
        return [message for message in self.scheduler.sent if isinstance(message, kind)]

    async def ended(self) -> ev.AttemptEnded:
        await until(lambda: self.told(ev.AttemptEnded))
        (ended,) = self.told(ev.AttemptEnded)
        assert isinstance(ended, ev.AttemptEnded)
        return ended


@pytest.mark.req("ORCH-3086")
async def test_a_resumed_attempt_sends_what_follows_the_border() -> None:
    replica = Replica()
    replica.start(6, 4, digest(TOKENS[:4]))
    ingress = replica.subscribe(first=4)
    ended = await replica.ended()
    await until(ingress.over)
    assert ingress.texts() == TOKENS[4:]
    assert (ended.result, ended.tokens_out, ended.digest) == ("finished", 6, digest(TOKENS))
    assert replica.told(wire.ResumeMismatch) == []


@pytest.mark.req("ORCH-3086", "ORCH-3045", "ORCH-3025")
@pytest.mark.parametrize(("made", "resumed_at"), [(6, 4), (3, 4)], ids=["other text", "an early end"])
async def test_another_text_fails_the_attempt_and_is_shown_to_nobody(made: int, resumed_at: int) -> None:
    replica = Replica()
    with structlog.testing.capture_logs() as logs:
        replica.start(made, resumed_at, digest(["t0 ", "t1 ", "t2 ", "another"]))
        early, late = replica.subscribe(first=0), replica.subscribe(first=4)
        ended = await replica.ended()
        await until(lambda: early.over() and late.over())
        await until(lambda: replica.told(ev.SlotReleased))
    assert (early.texts(), late.texts()) == ([], [])
    assert (ended.result, ended.slot_free) == ("failed", False)
    assert ended.error is not None
    assert (ended.error.code, ended.error.retriable, ended.error.pool_id) == ("WORKER_RESET", False, "pool")
    assert ended.error.message.startswith("determinism: ")
    assert replica.told(wire.ResumeMismatch) == [wire.ResumeMismatch("a", 2, "pool-0")]
    # What the earlier attempt made stays the task's transcript.
    assert replica.told(wire.AttemptTranscript) == []
    (line,) = [line for line in logs if line["event"] == "attempt.determinism_mismatch"]
    assert (line["log_level"], line["job_id"]) == ("error", "a")


@pytest.mark.req("ORCH-3086", "ORCH-3017")
async def test_a_resumed_attempt_that_is_stopped_on_the_way_back_leaves_the_transcript_alone() -> None:
    replica = Replica()
    replica.adapter.gate.clear()
    replica.start(6, 5, digest(TOKENS[:5]), prompt="gated")
    ingress = replica.subscribe(first=5)
    await until(lambda: replica.adapter.active)
    replica.service.stop(wire.StopAttempt("a", 2, "preempt"))
    ended = await replica.ended()
    assert (ended.result, ended.digest) == ("stopped", digest(TOKENS[: ended.tokens_out]))
    assert ended.tokens_out < 5
    assert replica.told(wire.AttemptTranscript) == []
    over = ingress.over()
    assert over is not None
    assert (ingress.texts(), over.result) == ([], "stopped")


@pytest.mark.req("ORCH-3086")
async def test_every_end_carries_the_digest_of_its_tokens() -> None:
    replica = Replica()
    replica.adapter.gate.clear()
    replica.start(6, prompt="gated")
    ingress = replica.subscribe(first=0)
    await until(lambda: len(ingress.texts()) == 3)
    replica.service.stop(wire.StopAttempt("a", 2, "preempt"))
    ended = await replica.ended()
    assert (ended.result, ended.tokens_out, ended.digest) == ("stopped", 3, digest(TOKENS[:3]))
