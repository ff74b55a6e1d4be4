"""Scheduler, replica and gateways together, on real sockets, with a scripted engine."""

import asyncio

import pytest

from contracts.api import End, Metrics, Started
from contracts.engine import EngineExit, GenerateRequest
from contracts.errors import OrchError
from contracts.gateway import Tokens
from orchestrator.cluster import questions
from tests.unit.cluster.scripted import Cluster, cluster, collect, submit, task, until


def texts(first: int, last: int) -> list[str]:
    return [f"t{n} " for n in range(first, last)]


@pytest.mark.req("ORCH-2002", "OC-CTRL-2022")
async def test_a_stream_has_every_token_once_and_one_end() -> None:
    async with cluster() as (_, gateway):
        await submit(gateway, "a", 5)
        got, end = await collect(gateway, "a")
        assert got == texts(0, 5)
        assert isinstance(end, End)
        assert (end.tokens_out, end.finish_reason, end.tokens_in) == (5, "length", 3)


@pytest.mark.req("ORCH-2002", "ORCH-3024")
async def test_a_stream_goes_on_through_another_ingress_while_it_runs_and_after_its_end() -> None:
    async with cluster() as (running, one):
        other = running.gateway()
        await running.ready(other)
        await submit(one, "a", 8, prompt="gated")
        running.adapters[0].gate.clear()
        seen: list[str] = []
        stream = one.stream("a", "acme")
        async with asyncio.timeout(20):
            async for event in stream:
                if isinstance(event, Tokens):
                    seen += event.texts
                if len(seen) >= 3:
                    break
        await stream.aclose()
        resumed = asyncio.create_task(collect(other, "a", after=2))
        await asyncio.sleep(0.05)
        running.adapters[0].gate.set()
        assert (await resumed)[0] == texts(3, 8)
        assert (await collect(other, "a", after=6))[0] == texts(7, 8)
        assert (await collect(one, "a", after=7))[0] == []


@pytest.mark.req("ORCH-2002")
async def test_a_result_outlives_the_replica_that_made_it() -> None:
    async with cluster() as (running, gateway):
        await submit(gateway, "a", 5)
        await collect(gateway, "a")
        await running.stop_replica()
        got, end = await collect(gateway, "a", after=1)
        assert got == texts(2, 5)
        assert isinstance(end, End)


async def test_a_slow_reader_holds_up_nobody_and_is_sent_no_more_than_its_credit() -> None:
    async with cluster() as (_, gateway):
        await submit(gateway, "slow", 1500)
        slow = gateway.stream("slow", "acme")
        assert isinstance(await anext(slow), Started)  # and reads no further
        await submit(gateway, "quick", 1500)
        assert (await collect(gateway, "quick"))[0] == texts(0, 1500)
        (stream,) = gateway._streams["slow"]
        assert len(stream._following._texts) <= 1024
        got = [text async for event in slow if isinstance(event, Tokens) for text in event.texts]
        assert got == texts(0, 1500)


@pytest.mark.req("ORCH-3026", "ORCH-3017", "OC-CTRL-2012")
async def test_no_token_follows_an_answered_cancel_and_the_slot_is_given_back() -> None:
    async with cluster() as (running, gateway):
        adapter = running.adapters[0]
        adapter.gate.clear()
        await submit(gateway, "a", 100, prompt="gated")
        streaming = asyncio.create_task(collect(gateway, "a"))
        await until(lambda: "a/1" in adapter.active)
        await gateway.cancel("a", "acme")
        status = await gateway.status("a", "acme")
        adapter.gate.set()
        got, end = await streaming
        assert isinstance(end, End)
        assert (end.finish_reason, status.state) == ("canceled", "canceled")
        assert len(got) == end.tokens_out == status.tokens_out
        await until(lambda: "a/1" in adapter.canceled)
        await gateway.cancel("a", "acme")  # again: no error, no change
        for name in ("b", "c", "d"):
            await submit(gateway, name, 3)
            assert len((await collect(gateway, name))[0]) == 3


@pytest.mark.req("ORCH-3002", "ORCH-3010")
async def test_an_engine_that_generates_nothing_is_not_ready() -> None:
    running = Cluster()
    running.make_silent = True
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await until(lambda: len(running.adapters) >= 2)  # refused by its self-test, launched again
        readiness = await gateway.readiness()
        assert not readiness.ready
        with pytest.raises(OrchError) as refused:
            await submit(gateway, "a")
        assert refused.value.info.code in ("POOL_UNREADY", "POOL_UNAVAILABLE")
        assert refused.value.info.retry_after_ms
        running.make_silent = False
        await running.ready(gateway)
    finally:
        await running.close()


@pytest.mark.req("ORCH-3009", "ORCH-3023", "ORCH-3045", "ORCH-2002")
async def test_a_task_whose_engine_dies_in_mid_stream_goes_on_with_the_next_one() -> None:
    async with cluster() as (running, gateway):
        first = running.adapters[0]
        first.gate.clear()
        await submit(gateway, "a", 50, prompt="gated")
        streaming = asyncio.create_task(collect(gateway, "a"))
        await until(lambda: "a/1" in first.active)
        first.exit.set_result(EngineExit(-9, ("out of luck",)))
        first.gate.set()
        got, end = await streaming
        assert isinstance(end, End)
        assert got == texts(0, 50)
        assert len(running.adapters) == 2


@pytest.mark.req("ORCH-3009", "ORCH-3023", "ORCH-2002")
async def test_a_task_whose_replica_is_lost_waits_for_another_and_goes_on() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        await submit(gateway, "a", 50, prompt="gated")
        streaming = asyncio.create_task(collect(gateway, "a"))
        await until(lambda: "a/1" in running.adapters[0].active)
        await running.stop_replica()
        await asyncio.sleep(0.05)
        assert not streaming.done()
        running.start_replica()
        got, end = await streaming
        assert isinstance(end, End)
        assert got == texts(0, 50)


@pytest.mark.req("ORCH-3009", "ORCH-3025", "ORCH-2006")
async def test_without_its_scheduler_an_ingress_refuses_with_a_typed_error_and_streams_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(questions, "SCHEDULER_WAIT_S", 0.05)
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        await submit(gateway, "a", 50, prompt="gated")
        streaming = asyncio.create_task(collect(gateway, "a"))
        await until(lambda: "a/1" in running.adapters[0].active)
        await running.scheduler.close()
        with pytest.raises(OrchError) as refused:
            await gateway.status("a", "acme")
        assert (refused.value.info.code, refused.value.info.retriable) == ("POOL_UNAVAILABLE", True)
        running.adapters[0].gate.set()
        got, end = await streaming
        assert isinstance(end, End)
        assert got == texts(0, 50)


@pytest.mark.req("ORCH-3029", "OC-CTRL-2023", "OC-CTRL-2021")
async def test_a_waiting_client_hears_where_it_stands() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        for name in ("a", "b"):
            await submit(gateway, name, 50, prompt="gated")
        await submit(gateway, "waits", 2)
        stream = gateway.stream("waits", "acme")
        async with asyncio.timeout(20):
            event = await anext(stream)
        assert isinstance(event, Metrics)
        assert event.queue_position == 0
        assert event.predicted_start_ms is not None
        running.adapters[0].gate.set()
        rest = [event async for event in stream]
        assert isinstance(rest[-1], End)


@pytest.mark.req("ORCH-3015")
async def test_a_prompt_that_may_not_fit_is_counted_by_a_replica() -> None:
    async with cluster() as (_, gateway):
        long = task("fits", 1000, prompt_bytes=5000)
        admission = await gateway.submit(long, GenerateRequest("fits", 1000, 1, prompt="word " * 1000))
        assert admission.task_id == "fits"
        with pytest.raises(OrchError) as refused:
            await gateway.submit(
                task("over", 1000, prompt_bytes=9000), GenerateRequest("over", 1000, 1, prompt="word " * 1800)
            )
        assert refused.value.info.code == "INVALID_PARAMS"
        assert "1800" in refused.value.info.message


@pytest.mark.req("OC-CTRL-2040")
async def test_another_tenants_task_is_unknown() -> None:
    async with cluster() as (_, gateway):
        await submit(gateway, "a", 2)
        for call in (gateway.status("a", "other"), gateway.cancel("a", "other"), gateway.task_info("a", "other")):
            with pytest.raises(OrchError) as refused:
                await call
            assert refused.value.info.code == "NOT_FOUND"
        with pytest.raises(OrchError):
            await anext(gateway.stream("a", "other"))


@pytest.mark.req("OC-CTRL-2051")
async def test_the_metrics_count_what_happened() -> None:
    async with cluster() as (_, gateway):
        await submit(gateway, "a", 5)
        await collect(gateway, "a")
        gateway.count_rejected("unknown", "INVALID_PARAMS")
        page = (await gateway.metrics()).decode()
        placed = 'engine="llamacpp",engine_version="scripted fake 1",pool_id="pool"'
        assert f'tokens_out_total{{{placed},replica_id="pool-0"}} 5.0' in page
        assert f'tasks_started_total{{{placed},priority="interactive",replica_id="pool-0"}} 1.0' in page
        assert 'tasks_rejected_total{engine="unknown",reason="INVALID_PARAMS"} 1.0' in page
        assert f'queue_depth{{{placed},priority="batch"}} 0.0' in page
