"""Tokens are sent once the scheduler can know that there are any: else a later attempt might be put behind them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from contracts import messages as wire
from contracts.engine import GenerateRequest
from contracts.scheduling import ReplicaReady, RunningAttempt, TokensProgressed
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter, until
from tests.unit.cluster.scripted_scheduler import scheduled
from tests.unit.cluster.test_replica_service import Wire
from tests.unit.cluster.test_replica_unlinked import THREE, Ingress, digest, gated

pytestmark = pytest.mark.req("ORCH-3045", "ORCH-3009")


class Unlinked:
    """A replica's service whose reports cannot leave at present."""

    def __init__(self) -> None:
        self.scheduler, self.ingress, self.flow = Wire(), Wire(), TokenFlow()
        self.adapter = ScriptedAdapter(SPEC)
        self.linked = False
        self.service = ReplicaService(SPEC, self.adapter, self.scheduler.send, self.flow, lambda: self.linked)

    async def run(self, prompt: str) -> None:
        request = GenerateRequest("a", 6, 1, prompt=prompt)
        self.service.start(wire.StartAttempt("a", 1, wire.encode(request)))
        self.service.subscribe(self.ingress, wire.Subscribe(1, "a", 1, 0, 100))  # type: ignore[arg-type]


async def test_tokens_wait_until_the_scheduler_has_heard_that_there_are_any() -> None:
    replica = Unlinked()
    replica.adapter.gate.clear()
    await replica.run("gated")
    await until(lambda: any(len(each.transcript.texts) == 3 for each in replica.service._running.values()))
    await asyncio.sleep(0)
    assert replica.ingress.sent == []
    replica.flow.heard()
    assert replica.ingress.texts() == THREE
    replica.adapter.gate.set()  # from then on there is nothing to wait for
    await until(lambda: isinstance(replica.ingress.sent[-1], wire.StreamOver))
    assert len(replica.ingress.texts()) == 6
    await replica.service.close()


async def test_an_attempt_that_has_ended_meanwhile_is_sent_with_its_end() -> None:
    replica = Unlinked()
    await replica.run("plain")
    await until(lambda: not replica.service._running)
    assert replica.ingress.sent == []
    replica.flow.heard()
    assert len(replica.ingress.texts()) == 6
    assert isinstance(replica.ingress.sent[-1], wire.StreamOver)
    assert replica.ingress.sent[-1].result == "finished"


async def test_nothing_is_sent_of_an_attempt_that_is_lost_before_anybody_heard_of_it() -> None:
    replica = Unlinked()
    replica.adapter.gate.clear()
    await replica.run("gated")
    await until(lambda: any(len(each.transcript.texts) == 3 for each in replica.service._running.values()))
    await replica.service.close()
    replica.flow.heard()
    assert replica.ingress.sent == [wire.StreamOver(1, "failed")]


async def test_the_greeting_of_a_new_link_is_what_tokens_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, first = ScriptedAdapter.generate, asyncio.Event()

    async def late(self: ScriptedAdapter, key: str, request: GenerateRequest) -> AsyncIterator[Any]:
        if key == "a/1":
            self.active.add(key)
            await first.wait()
        async for item in made(self, key, request):
            yield item

    monkeypatch.setattr(ScriptedAdapter, "generate", late)
    async with scheduled() as (scheduler, (replica,)):
        await gated(scheduler, replica, "a")
        ingress = await Ingress().subscribe(replica, "a")
        await scheduler.stop()
        await until(lambda: replica.host._uplink._link is None)
        first.set()
        await asyncio.sleep(0.05)
        assert ingress.texts == []
        await scheduler.start()
        ready = await scheduler.nth(ReplicaReady, 2)
        assert ready.running == (RunningAttempt("a", 1, 3, digest(THREE)),)
        await until(lambda: ingress.texts == THREE)
        assert not scheduler.all(TokensProgressed)
        replica.engine.gate.set()
        ingress.close()
