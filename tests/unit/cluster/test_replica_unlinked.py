"""A replica whose scheduler is lost goes on, and tells the next one what it does and what has ended (ORCH-3009)."""

import asyncio
import zlib
from typing import Any

import pytest

from contracts import messages as wire
from contracts.engine import EngineExit
from contracts.pools import LeaseRenewed
from contracts.scheduling import (
    AttemptEnded,
    ReplicaLoading,
    ReplicaReady,
    ReplicaUnready,
    RunningAttempt,
    SlotReleased,
    TokensProgressed,
)
from orchestrator.cluster import outstanding, replica_host, replica_service
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.outstanding import Outstanding
from orchestrator.cluster.transcript import TokenFlow
from orchestrator.cluster.uplink import Uplink
from tests.unit.cluster.scripted import NODE, SECRET, ScriptedAdapter, until
from tests.unit.cluster.scripted_scheduler import Replica, ScriptedScheduler, scheduled

THREE = ["t0 ", "t1 ", "t2 "]
SIX = [f"t{n} " for n in range(6)]


def digest(texts: list[str]) -> int:
    return zlib.crc32("".join(texts).encode())


class Ingress:
    """One that subscribes to an attempt."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.over: wire.StreamOver | None = None
        self.order: list[str] = []
        self._link: Connection | None = None

    async def subscribe(self, replica: Replica, task_id: str, attempt: int = 1) -> "Ingress":
        self._link = await connect(
            replica.endpoint, NODE, SECRET, "ingress", "i", wire.ToIngress, self._received, lambda _closed: None
        )
        self._link.send(wire.Subscribe(1, task_id, attempt, 0, 100))
        return self

    def _received(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, wire.TokenBatch):
            for _, first, texts in message.items:
                assert first == len(self.texts)
                self.texts += texts
        else:
            self.over = message

    def close(self) -> None:
        assert self._link is not None
        self._link.close()


async def gated(scheduler: ScriptedScheduler, replica: Replica, *names: str) -> None:
    """Attempts that have made three tokens and wait."""
    replica.engine.gate.clear()
    for name in names:
        scheduler.start_attempt(name)
    await until(lambda: {f"{name}/1" for name in names} <= replica.engine.active)


@pytest.mark.req("ORCH-3009", "ORCH-2002", "ORCH-3026")
async def test_a_cut_link_ends_nothing_and_the_next_one_hears_what_runs() -> None:
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        ingress = await Ingress().subscribe(replica, "a")
        await until(lambda: ingress.texts == THREE)
        scheduler.cut("replica")
        ready = await scheduler.nth(ReplicaReady, 2)
        assert ready.running == (RunningAttempt("a", 1, 3, digest(THREE)),)
        assert (ready.ended, ready.incarnation) == ((), 1)
        assert len(scheduler.all(ReplicaLoading)) == 2  # both before the first launch
        replica.engine.gate.set()
        ended = await scheduler.nth(AttemptEnded)
        await until(lambda: ingress.over)
        assert (ended.result, ended.tokens_out, ingress.texts) == ("finished", 6, SIX)
        assert len(replica.engines) == 1
        ingress.close()


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012", "ORCH-3051")
async def test_an_end_while_no_scheduler_is_there_is_told_to_each_next_one_until_it_is_noted() -> None:
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a", "b")
        ingress = await Ingress().subscribe(replica, "a")
        await scheduler.stop()
        replica.engine.gate.set()
        await until(lambda: ingress.over)  # the stream does not wait for the scheduler
        assert ingress.texts == SIX
        assert ingress.over == wire.StreamOver(1, "finished", ingress.over.outcome if ingress.over else None)
        assert scheduler.all(AttemptEnded) == []
        for count in (2, 3):
            await scheduler.start()
            ready = await scheduler.nth(ReplicaReady, count)
            assert sorted((end.task_id, end.result, end.tokens_out) for end in ready.ended) == [
                ("a", "finished", 6),
                ("b", "finished", 6),
            ]
            assert ready.running == ()
            story = [type(message) for message in scheduler.told if not isinstance(message, LeaseRenewed)]
            assert story[-4:] == [wire.RegisterReplica, *[wire.AttemptTranscript] * 2, ReplicaReady]
            await scheduler.stop()
        await scheduler.start()
        await scheduler.nth(ReplicaReady, 4)
        scheduler.to_replica(wire.EndNoted("a", 1))
        scheduler.to_replica(wire.EndNoted("a", 1))
        await asyncio.sleep(0.02)
        scheduler.cut("replica")
        ready = await scheduler.nth(ReplicaReady, 5)
        assert [end.task_id for end in ready.ended] == ["b"]
        assert scheduler.all(AttemptEnded) == []
        ingress.close()


class HoldsSlots(ScriptedAdapter):
    """Lets go of slots when a test says so."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lets_go = asyncio.Event()

    async def cancel(self, attempt_key: str) -> None:
        if not attempt_key.startswith("self-test"):
            await self.lets_go.wait()
        await super().cancel(attempt_key)


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012")
async def test_a_slot_that_is_still_held_is_told_as_over_and_one_let_go_meanwhile_as_free() -> None:
    scheduler = ScriptedScheduler()
    await scheduler.start()
    replica = Replica(scheduler)
    replica.make = HoldsSlots
    try:
        await replica.serve()
        await gated(scheduler, replica, "a")
        scheduler.to_replica(wire.StopAttempt("a", 1, "cancel"))
        ended = await scheduler.nth(AttemptEnded)
        assert (ended.result, ended.slot_free) == ("stopped", False)
        scheduler.cut("replica")
        ready = await scheduler.nth(ReplicaReady, 2)
        assert ready.running == (RunningAttempt("a", 1, ended.tokens_out, ended.digest, over=True),)
        assert ready.ended == (ended,)
        await scheduler.stop()
        assert isinstance(replica.engine, HoldsSlots)
        replica.engine.lets_go.set()
        await until(lambda: "a/1" in replica.engine.canceled)
        await scheduler.start()
        ready = await scheduler.nth(ReplicaReady, 3)
        assert ready.running == ()
        assert [(end.task_id, end.slot_free) for end in ready.ended] == [("a", True)]
        assert scheduler.all(SlotReleased) == []
    finally:
        await replica.stop()
        await scheduler.stop()


@pytest.mark.req("ORCH-3009", "ORCH-3053", "OC-POOL-3010")
async def test_an_engine_that_dies_has_told_how_far_its_attempts_came_before_it_is_said_to_be_down() -> None:
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        ingress = await Ingress().subscribe(replica, "a")
        await until(lambda: ingress.texts == THREE)
        replica.engine.exit.set_result(EngineExit(-11, ("segfault",)))
        replica.engine.gate.set()  # its stream breaks in the same moment
        unready = await scheduler.nth(ReplicaUnready)
        assert unready.kind == "exit"
        story = [type(message) for message in scheduler.told if not isinstance(message, LeaseRenewed)]
        assert story[-2:] == [wire.AttemptTranscript, ReplicaUnready]
        assert scheduler.all(TokensProgressed)[-1] == TokensProgressed("a", 1, 3, digest(THREE))
        await until(lambda: ingress.over)
        assert ingress.over == wire.StreamOver(1, "failed")
        await asyncio.sleep(0.05)
        assert scheduler.all(AttemptEnded) == []
        ingress.close()


@pytest.mark.req("ORCH-3009", "OC-POOL-3010")
async def test_an_engine_whose_streams_break_first_is_not_taken_for_one_that_failed_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_host, "LAST_WORDS_S", 20.0)
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        dead = asyncio.Event()
        replica.engine.healthy = lambda: _answer(not dead.is_set())  # type: ignore[method-assign]
        replica.engine.exit.done = dead.is_set  # type: ignore[method-assign]  # seen by its streams only, for now
        dead.set()
        replica.engine.gate.set()
        await asyncio.sleep(0.05)
        assert scheduler.all(AttemptEnded) == scheduler.all(ReplicaUnready) == []
        replica.engine.exit.set_result(EngineExit(-9, (), "killed"))
        unready = await scheduler.nth(ReplicaUnready)
        assert (unready.kind, scheduler.all(AttemptEnded)) == ("killed", [])


async def _answer(value: bool) -> bool:
    return value


@pytest.mark.req("ORCH-3009")
async def test_ends_of_an_engine_that_died_meanwhile_are_told_as_the_replica_says_that_it_waits() -> None:
    async with scheduled() as (scheduler, (replica,)):
        scheduler.start_attempt("a", prompt="plain", max_tokens=2)
        ended = await scheduler.nth(AttemptEnded)
        await scheduler.stop()
        replica.engine.exit.set_result(EngineExit(1))
        await until(lambda: replica.host._service is None)
        await scheduler.start()
        await until(lambda: scheduler.all(ReplicaLoading)[-1].ended == (ended,))
        story = [type(message) for message in scheduler.told if not isinstance(message, LeaseRenewed)]
        assert story[-3:] == [wire.RegisterReplica, wire.AttemptTranscript, ReplicaLoading]
        assert scheduler.all(ReplicaUnready) == []


@pytest.mark.req("ORCH-3009")
async def test_a_replica_that_is_ended_tells_how_far_its_attempts_came() -> None:
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        await replica.stop()
        await until(lambda: scheduler.all(wire.AttemptTranscript))
        assert scheduler.all(TokensProgressed)[-1].tokens_out == 3
        assert scheduler.all(AttemptEnded) == []


@pytest.mark.req("ORCH-3009", "ORCH-3026")
async def test_two_attempts_of_a_task_are_told_apart() -> None:
    """One that was given up may still run where the next one starts."""
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        scheduler.start_attempt("a", number=2)
        await until(lambda: {"a/1", "a/2"} <= replica.engine.active)
        scheduler.to_replica(wire.StopAttempt("a", 1, "stale"))
        assert (await scheduler.nth(AttemptEnded)).attempt == 1
        replica.engine.gate.set()
        second = await scheduler.nth(AttemptEnded, 2)
        assert (second.attempt, second.result) == (2, "finished")


@pytest.mark.req("ORCH-3045", "ORCH-3009")
async def test_the_first_token_is_reported_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(kind: type, name: str) -> None:
        method = kind.flush  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "flush", lambda *given: (order.append(name), method(*given))[1])

    monkeypatch.setattr(replica_service, "PROGRESS_INTERVAL_S", 3600.0)
    noted(Uplink, "report")
    noted(TokenFlow, "tokens")
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        told = await scheduler.nth(TokensProgressed)
        assert (told.tokens_out, told.digest) == (1, digest(THREE[:1]))
        await until(lambda: "tokens" in order)
    assert order[:2] == ["report", "tokens"]
    assert order.count("report") == 1


@pytest.mark.req("ORCH-3009")
async def test_a_scheduler_that_cannot_be_found_is_looked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    async with scheduled() as (scheduler, (replica,)):
        sleep = asyncio.sleep

        async def noted(delay: float) -> None:
            if delay >= 0.05 and delay != 0.5:  # leases are renewed every 0.5 s
                waits.append(delay)
                await sleep(0)
            else:
                await sleep(delay)

        monkeypatch.setattr("orchestrator.cluster.uplink.asyncio.sleep", noted)
        await scheduler.stop()
        await until(lambda: len(waits) >= 8)
        monkeypatch.undo()
        assert waits[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
        assert replica.running is not None
        assert not replica.running.done()


# ------------------------------------------------------------------ ends not confirmed


def an_end(task_id: str, tokens: int, slot_free: bool = False) -> tuple[wire.AttemptTranscript, AttemptEnded]:
    made = wire.AttemptTranscript(task_id, 1, b"x" * tokens)
    return made, AttemptEnded(task_id, 1, "pool-0", "finished", slot_free)


@pytest.mark.req("ORCH-3051")
def test_ends_that_are_not_confirmed_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outstanding, "OUTSTANDING_BYTES_MAX", 100)
    monkeypatch.setattr(outstanding, "OUTSTANDING_MAX", 3)
    kept = Outstanding()
    for task_id, tokens in (("a", 60), ("b", 30), ("c", 30)):
        for message in an_end(task_id, tokens):
            kept.heard(message)
    assert [end.task_id for end in kept.ends()] == ["a", "b", "c"]
    assert [made.task_id for made in kept.transcripts()] == ["b", "c"]
    for message in an_end("d", 1000):
        kept.heard(message)
    assert [end.task_id for end in kept.ends()] == ["b", "c", "d"]
    assert [made.task_id for made in kept.transcripts()] == ["d"]
    kept.noted("d", 1)
    assert kept.transcripts() == []


@pytest.mark.req("ORCH-3051")
def test_a_transcript_belongs_to_the_end_right_behind_it_and_slots_are_free_once_released() -> None:
    kept = Outstanding()
    kept.heard(wire.AttemptTranscript("lost", 1, b"x"))  # its attempt was lost: no end follows
    made, end = an_end("a", 1)
    kept.heard(end)
    assert kept.transcripts() == []
    kept.heard(SlotReleased("a", 1, "pool-0"))
    assert [each.slot_free for each in kept.ends()] == [True]
    kept.heard(made)
    kept.heard(an_end("b", 1)[1])
    assert kept.transcripts() == []
    kept.engine_ended()
    assert all(each.slot_free for each in kept.ends())
