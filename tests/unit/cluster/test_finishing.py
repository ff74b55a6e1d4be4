"""A replica or an ingress that is asked to end lets what runs end first, and takes nothing new."""

import asyncio

import pytest

from contracts.messages import EndNoted
from contracts.pools import ReplicaFaulted
from contracts.scheduling import AttemptEnded, ReplicaLoading
from tests.unit.cluster.scripted import cluster, collect, submit, until
from tests.unit.cluster.scripted_scheduler import Replica, scheduled

pytestmark = pytest.mark.req("ORCH-3051", "ORCH-3009")
LONG_S = 60.0


def finish(replica: Replica) -> "asyncio.Task[None]":
    return asyncio.create_task(replica.host.finish(LONG_S))


async def test_a_replica_ends_when_what_runs_has_ended_and_the_scheduler_knows() -> None:
    async with scheduled() as (scheduler, (replica,)):
        replica.engine.gate.clear()
        scheduler.start_attempt("a")
        await until(lambda: "a/1" in replica.engine.active)
        finishing = finish(replica)
        fault = await scheduler.nth(ReplicaFaulted)
        assert (fault.replica_id, fault.kind) == ("pool-0", "actor")
        await asyncio.sleep(0.2)
        assert not finishing.done(), "an attempt runs"
        replica.engine.gate.set()
        assert (await scheduler.nth(AttemptEnded)).result == "finished"
        await asyncio.sleep(0.2)
        assert not finishing.done(), "the scheduler may have been gone, and does not know of the end"
        scheduler.to_replica(EndNoted("a", 1))
        await asyncio.wait_for(finishing, 10)


async def test_a_replica_that_finishes_is_not_offered_to_the_next_scheduler() -> None:
    async with scheduled() as (scheduler, (replica,)):
        replica.engine.gate.clear()
        scheduler.start_attempt("a")
        await until(lambda: "a/1" in replica.engine.active)
        finishing = finish(replica)
        await scheduler.nth(ReplicaFaulted)
        before = len(scheduler.all(ReplicaLoading))
        scheduler.cut("replica")
        await scheduler.nth(ReplicaLoading, before + 1)
        finishing.cancel()


async def test_a_replica_waits_for_a_bounded_time_only() -> None:
    async with scheduled() as (scheduler, (replica,)):
        replica.engine.gate.clear()
        scheduler.start_attempt("a")
        await until(lambda: "a/1" in replica.engine.active)
        await asyncio.wait_for(replica.host.finish(0.1), 10)
        assert "a/1" in replica.engine.active


async def test_an_ingress_ends_when_no_stream_is_open() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        await submit(gateway, "a", prompt="gated")
        reading = asyncio.create_task(collect(gateway, "a"))
        await until(lambda: gateway._streams)
        await gateway.finish(0.1)  # bounded
        finishing = asyncio.create_task(gateway.finish(LONG_S))
        await asyncio.sleep(0.2)
        assert not finishing.done()
        running.adapters[0].gate.set()
        texts, _ = await reading
        assert len(texts) == 5
        await asyncio.wait_for(finishing, 10)
