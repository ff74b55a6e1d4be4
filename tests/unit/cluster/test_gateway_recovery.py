"""An ingress whose scheduler or replicas are lost: questions wait, streams go on, nothing is lost or doubled."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from contracts import messages as wire
from contracts.api import End, Metrics, Started
from contracts.control import DrainRequest
from contracts.engine import Chunk, GenerateRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import StreamEvent, Tokens
from contracts.scheduling import TokensDiverged
from contracts.tasks import Outcome
from orchestrator.cluster import following, questions, relink, watching
from orchestrator.cluster.gateway import ClusterGateway
from tests.unit.cluster.scripted import NODE, SECRET, ScriptedAdapter, task, until
from tests.unit.cluster.scripted_scheduler import NOT_FOUND, Replica, ScriptedScheduler, scheduled

SIX = [f"t{n} " for n in range(6)]


class Client:
    """Reads a stream to its end."""

    def __init__(self, gateway: ClusterGateway, task_id: str, after: int = -1) -> None:
        self.events: list[StreamEvent] = []
        self._after = after
        self.reading = asyncio.create_task(self._read(gateway, task_id))

    async def _read(self, gateway: ClusterGateway, task_id: str) -> None:
        async for event in gateway.stream(task_id, "acme", self._after):
            if isinstance(event, Tokens):
                assert event.first == self._after + 1 + len(self.texts)
            self.events.append(event)

    @property
    def texts(self) -> list[str]:
        return [text for event in self.events if isinstance(event, Tokens) for text in event.texts]

    def of(self, kind: type) -> list[StreamEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    async def end(self) -> StreamEvent:
        async with asyncio.timeout(20):
            await self.reading
        return self.events[-1]


@contextlib.asynccontextmanager
async def ingress(scheduler: ScriptedScheduler) -> AsyncIterator[ClusterGateway]:
    gateway = ClusterGateway(SECRET, scheduler.locate, NODE, "ingress-0", 3_600_000)
    gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[tuple[ScriptedScheduler, ClusterGateway]]:
    """A scheduler, not started yet, and an ingress."""
    scheduler = ScriptedScheduler()
    async with ingress(scheduler) as gateway:
        try:
            yield scheduler, gateway
        finally:
            await scheduler.stop()


async def following_a(scheduler: ScriptedScheduler, gateway: ClusterGateway, replica: Replica) -> Client:
    """A client that has got three tokens of a task that makes six."""
    replica.engine.gate.clear()
    scheduler.start_attempt("a")
    scheduler.starts("a", 1, replica)
    client = Client(gateway, "a")
    await until(lambda: client.texts == SIX[:3])
    return client


# -------------------------------------------------------------------------- questions


@pytest.mark.req("ORCH-3024", "ORCH-3009", "ORCH-3051")
async def test_questions_that_were_not_answered_are_asked_again_of_the_next_scheduler() -> None:
    async with alone() as (scheduler, gateway):
        scheduler.silent = True
        await scheduler.start()
        submitting = asyncio.create_task(gateway.submit(task("a"), GenerateRequest("a", 5, 1, prompt="plain")))
        canceling = asyncio.create_task(gateway.cancel("a", "acme"))
        await until(lambda: len(scheduler.told) == 2)
        await scheduler.stop()
        asked_meanwhile = asyncio.create_task(gateway.close_session("s", "acme"))
        leaves = asyncio.create_task(gateway.status("b", "acme"))
        await asyncio.sleep(0.01)
        leaves.cancel()
        scheduler.silent = False
        await scheduler.start()
        async with asyncio.timeout(20):
            assert (await submitting).task_id == "a"
            await asyncio.gather(canceling, asked_meanwhile)
        kinds = [type(message) for message in scheduler.told]
        assert kinds == [wire.Submit, wire.Cancel, wire.Submit, wire.Cancel, wire.CloseSession]
        assert scheduler.told[0] == scheduler.told[2]


@pytest.mark.req("ORCH-3025", "ORCH-2006")
async def test_a_question_that_finds_no_scheduler_is_answered_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SCHEDULER_WAIT_S", 0.05)
    async with alone() as (_, gateway):
        with pytest.raises(OrchError) as refused:
            await gateway.status("a", "acme")
        error = refused.value.info
        assert (error.code, error.retriable, error.retry_after_ms) == ("POOL_UNAVAILABLE", True, 1000)


@pytest.mark.req("ORCH-3025", "ORCH-2006")
async def test_a_scheduler_that_hangs_holds_questions_up_no_longer_than_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(questions, "REQUEST_TIMEOUT_S", 0.1)
    async with alone() as (scheduler, gateway):
        scheduler.silent = True
        await scheduler.start()
        await until(lambda: scheduler.links["ingress"])
        with pytest.raises(OrchError) as refused:
            await gateway.status("a", "acme")
        assert refused.value.info.code == "POOL_UNAVAILABLE"
        assert len(scheduler.all(wire.GetStatus)) == 1


@pytest.mark.req("ORCH-3025")
async def test_a_scheduler_that_nobody_can_find_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relink, "LOCATE_TIMEOUT_S", 0.01)
    scheduler = ScriptedScheduler()
    await scheduler.start()
    tries = 0

    async def locate() -> wire.Endpoint:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.Event().wait()  # an actor that is stopped
        return await scheduler.locate()

    gateway = ClusterGateway(SECRET, locate, NODE, "ingress-0", 3_600_000)
    gateway.start()
    try:
        async with asyncio.timeout(20):
            await gateway.cancel("a", "acme")
    finally:
        await gateway.close()
        await scheduler.stop()


async def test_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PENDING_MAX", 2)
    async with alone() as (scheduler, gateway):
        waiting = [asyncio.create_task(gateway.cancel("a", "acme")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OrchError) as refused:
            await gateway.cancel("b", "acme")
        assert (refused.value.info.code, refused.value.info.retriable) == ("ADMISSION_REJECT", True)
        await scheduler.start()
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting)


@pytest.mark.req("OC-POOL-3001")
async def test_an_order_about_a_pool_is_not_given_twice() -> None:
    async with alone() as (scheduler, gateway):
        scheduler.silent = True
        waits = asyncio.create_task(gateway.drain_pool("pool", DrainRequest(1000)))
        await asyncio.sleep(0.01)
        await scheduler.start()  # not sent yet: it waits for the scheduler
        await until(lambda: len(scheduler.told) == 1)
        await scheduler.stop()
        with pytest.raises(OrchError, match="whether this was taken on"):
            await waits
        await scheduler.start()
        await asyncio.sleep(0.05)
        assert len(scheduler.told) == 1


# ---------------------------------------------------------------------------- streams


@pytest.mark.req("ORCH-3009", "ORCH-2002", "OC-CTRL-2020")
async def test_streams_go_on_while_no_scheduler_is_there_and_end_by_their_replica() -> None:
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, replica)
        await scheduler.stop()
        replica.engine.gate.set()
        assert isinstance(await client.end(), End)
        assert client.texts == SIX
        assert len(client.of(Metrics)) == 1


@pytest.mark.req("ORCH-3009", "ORCH-2002", "OC-CTRL-2022", "ORCH-3026")
async def test_a_cut_link_to_the_scheduler_loses_and_doubles_nothing() -> None:
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, replica)
        for role in ("ingress", "replica"):
            scheduler.cut(role)
        await scheduler.nth(wire.Watch, 2)  # the stream's own, and the one after the loss
        replica.engine.gate.set()
        assert isinstance(await client.end(), End)
        assert client.texts == SIX
        # The same attempt told again is no news.
        assert [type(event) for event in client.events[:2]] == [Started, Metrics]
        assert (len(client.of(Started)), len(client.of(Metrics))) == (1, 1)


@pytest.mark.req("ORCH-3009", "OC-CTRL-2012")
async def test_what_a_scheduler_decided_while_the_link_was_cut_is_heard_on_the_next() -> None:
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, replica)
        error = ErrorInfo("DEADLINE_UNMET", "too late", retriable=True)
        scheduler.outcomes["a"] = Outcome("failed", tokens_out=3, error=error)
        scheduler.cut("ingress")
        assert await client.end() == error
        assert client.texts == SIX[:3]


@pytest.mark.req("ORCH-3025", "OC-CTRL-2020")
async def test_a_task_that_the_next_scheduler_does_not_know_ends_its_stream_with_that_error() -> None:
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, replica)
        scheduler.tasks.clear()
        scheduler.cut("ingress")
        assert await client.end() == NOT_FOUND


@pytest.mark.req("ORCH-3009")
async def test_a_stream_whose_question_is_pending_is_not_ended_by_a_scheduler_that_lacks_the_task() -> None:
    """The task is submitted again by itself, and only then known."""
    async with alone() as (scheduler, gateway):
        scheduler.silent = True
        await scheduler.start()
        request = GenerateRequest("a", 5, 1, prompt="plain")
        opening = asyncio.create_task(gateway.open(task("a"), request))
        await scheduler.nth(wire.Submit)
        scheduler.silent = False
        scheduler.cut("ingress")
        async with asyncio.timeout(20):
            _, events = await opening
        assert scheduler.all(wire.Watch) == []
        scheduler.to_ingress(wire.TaskEnded("a", Outcome("finished", finish_reason="stop")))
        async with asyncio.timeout(20):
            assert [type(event) async for event in events] == [End]
        await events.aclose()


@pytest.mark.req("ORCH-3009")
async def test_watches_that_were_not_answered_are_asked_again_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(watching, "AGAIN_S", 0.01)
    monkeypatch.setattr(watching, "BATCH_TASKS", 2)
    names = [f"task-{n}" for n in range(5)]
    async with alone() as (scheduler, gateway):
        scheduler.tasks = {name: task(name) for name in names}
        await scheduler.start()
        await until(lambda: scheduler.links["ingress"])
        clients = [Client(gateway, name) for name in names]
        await until(lambda: len(scheduler.all(wire.Watch)) == 5)
        scheduler.silent = True
        scheduler.cut("ingress")
        await until(lambda: len(scheduler.all(wire.Watch)) == 7)  # and no more until these are answered
        await asyncio.sleep(0.05)
        assert len(scheduler.all(wire.Watch)) == 7
        scheduler.silent = False
        for name in names:
            scheduler.outcomes[name] = Outcome("finished", finish_reason="stop")
        for client in clients:
            assert isinstance(await client.end(), End)


@pytest.mark.req("ORCH-3009", "ORCH-2002")
async def test_a_cut_connection_between_ingress_and_replica_heals_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AGAIN_MIN_S", 0.02)
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, replica)
        for connection in list(replica.host._server._connections):
            connection.close()
        await asyncio.sleep(0.01)
        replica.engine.gate.set()
        assert isinstance(await client.end(), End)
        assert client.texts == SIX
        assert len(client.of(Metrics)) == 1


class Merged(ScriptedAdapter):
    """Makes the same text in other chunks: the first four tokens in one."""

    async def generate(self, attempt_key: str, request: GenerateRequest):  # type: ignore[no-untyped-def,override]
        held: list[str] = []
        async for item in super().generate(attempt_key, request):
            if attempt_key == "self-test" or not isinstance(item, Chunk) or len(held) >= 4:
                yield item
                continue
            held.append(item.text)
            if len(held) == 4:
                yield Chunk("".join(held), 4)


@pytest.mark.req("ORCH-3009", "ORCH-3045", "ORCH-3023", "OC-CTRL-2022")
async def test_a_lost_replica_is_made_good_by_another_that_cuts_its_chunks_elsewhere() -> None:
    async with scheduled(2) as (scheduler, (first, second)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, first)
        await first.stop()
        second.engine.__class__ = Merged
        scheduler.start_attempt("a", 2, prompt="plain", on="pool-1")
        scheduler.starts("a", 2, second)
        assert isinstance(await client.end(), End)
        assert "".join(client.texts) == "".join(SIX)
        assert client.texts[:3] == SIX[:3]
        assert len(client.texts) == 6
        assert client.of(Metrics) == [Metrics(queue_depth=0), Metrics(resumed=True, failover=True)]
        assert len(client.of(Started)) == 1
        assert scheduler.all(TokensDiverged) == []


@pytest.mark.req("ORCH-3045", "ORCH-3025")
async def test_a_replica_that_makes_another_text_is_told_of_also_if_the_scheduler_is_away_just_then() -> None:
    async with scheduled(2) as (scheduler, (first, second)), ingress(scheduler) as gateway:
        client = await following_a(scheduler, gateway, first)
        await first.stop()
        second.engine.word = "other"
        second.engine.gate.clear()
        scheduler.start_attempt("a", 2, on="pool-1")
        scheduler.starts("a", 2, second)
        await until(lambda: len(client.of(Metrics)) == 2)
        await scheduler.stop()
        second.engine.gate.set()
        error = await client.end()
        assert isinstance(error, ErrorInfo)
        assert (error.code, error.retriable) == ("WORKER_RESET", False)
        assert client.texts == SIX[:3]
        await scheduler.start()
        assert await scheduler.nth(TokensDiverged) == TokensDiverged("a", 2)


@pytest.mark.req("ORCH-3009")
async def test_a_replica_that_cannot_be_reached_holds_up_no_other_stream() -> None:
    # A machine that takes the connection and says nothing.
    silent = socket.create_server(("127.0.0.1", 0))
    async with scheduled() as (scheduler, (replica,)), ingress(scheduler) as gateway:
        host, port = silent.getsockname()
        replica.engine.gate.clear()
        scheduler.starts("b", 1, replica)
        nowhere = wire.Endpoint("another-node", "", host, port)
        scheduler.started["b"] = wire.TaskStarted("b", 1, replica.info, nowhere, 0, 0, 0, False, Metrics(queue_depth=0))
        stuck = Client(gateway, "b")
        await until(lambda: stuck.of(Metrics))
        client = await following_a(scheduler, gateway, replica)
        replica.engine.gate.set()
        assert isinstance(await client.end(), End)
        error = ErrorInfo("DEADLINE_UNMET", "too late", retriable=True)
        scheduler.to_ingress(wire.TaskEnded("b", Outcome("failed", error=error)))
        assert await stuck.end() == error
    silent.close()
