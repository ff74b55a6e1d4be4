"""Preemption, sessions and planning figures through the real core, real services and real sockets."""

import asyncio

import pytest

from contracts.api import End, Metrics, Started
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import StreamEvent, Tokens
from contracts.policies import BudgetPolicy, PreemptionPolicy, SessionPolicy
from orchestrator.cluster.gateway import ClusterGateway
from tests.unit.cluster.scripted import Cluster, cluster, collect, submit, task, until

HARD = {"preemption": PreemptionPolicy("hard"), "self_test_token_s": 0.005}
LONG = 900


async def follow(gateway: ClusterGateway, task_id: str) -> list[StreamEvent]:
    async with asyncio.timeout(20):
        return [event async for event in gateway.stream(task_id, "acme")]


async def settled(gateway: ClusterGateway, *names: str) -> None:
    """The scheduler knows their ends too; streams hear of them first."""
    async with asyncio.timeout(20):
        for name in names:
            while (await gateway.status(name, "acme")).state != "finished":
                await asyncio.sleep(0.01)


async def two_long_tasks(running: Cluster, gateway: ClusterGateway) -> list[asyncio.Task[list[StreamEvent]]]:
    """Both slots taken by batch tasks that have made three tokens and go no further."""
    running.adapters[0].gate.clear()
    streams = []
    for name in ("long-1", "long-2"):
        asked = task(name, LONG, priority="batch", deadline_ms=600_000)
        await gateway.submit(asked, GenerateRequest(name, LONG, 1, prompt="gated"))
        streams.append(asyncio.create_task(follow(gateway, name)))
    await until(lambda: {"long-1/1", "long-2/1"} <= running.adapters[0].active)
    return streams


async def urgent(gateway: ClusterGateway) -> None:
    asked = task("urgent", 5, deadline_ms=2_000)
    admission = await gateway.submit(asked, GenerateRequest("urgent", 5, 1, prompt="plain"))
    assert admission.on_time_probability is not None


def texts(events: list[StreamEvent]) -> str:
    return "".join(text for event in events if isinstance(event, Tokens) for text in event.texts)


@pytest.mark.req("ORCH-3086", "ORCH-3087", "ORCH-3081", "ORCH-2002")
async def test_an_urgent_task_takes_a_slot_and_the_stopped_one_goes_on_exactly() -> None:
    async with cluster(**HARD) as (running, gateway):
        streams = await two_long_tasks(running, gateway)
        await urgent(gateway)
        _, end = await collect(gateway, "urgent")
        assert isinstance(end, End)
        running.adapters[0].gate.set()
        told = [await stream for stream in streams]
        await settled(gateway, "urgent", "long-1", "long-2")
        page = (await gateway.metrics()).decode()
        statuses = [await gateway.status(name, "acme") for name in ("long-1", "long-2")]
    for events in told:
        assert texts(events) == "".join(f"t{n} " for n in range(LONG))
        assert isinstance(events[-1], End)
        assert events[-1].tokens_out == LONG
        assert sum(isinstance(event, Started) for event in events) == 1
    frames = [[event for event in events if isinstance(event, Metrics)] for events in told]
    (victim,) = [frame for frame in frames if any(event.resumable for event in frame)]
    assert [event.resumed for event in victim if event.resumed] == [True]
    assert sorted(status.preempted for status in statuses) == [False, True]
    for line in (
        'preemptions_total{engine="llamacpp",mode="hard"} 1.0',
        'resumptions_total{engine="llamacpp"} 1.0',
        'deadlines_met_ratio{priority="interactive"} 1.0',
        'deadlines_met_ratio{priority="batch"} 1.0',
    ):
        assert line in page.splitlines()


@pytest.mark.req("ORCH-3086", "ORCH-3045", "ORCH-3025")
async def test_an_engine_that_makes_another_text_ends_the_stream_with_an_alarm() -> None:
    async with cluster(**HARD) as (running, gateway):
        streams = await two_long_tasks(running, gateway)
        await urgent(gateway)
        await collect(gateway, "urgent")
        running.adapters[0].word = "other"
        running.adapters[0].gate.set()
        told = [await stream for stream in streams]
        page = (await gateway.metrics()).decode()
    # The one that was never stopped goes on with the words of now: the scripted engine is to blame, not the stream.
    (failed,) = [events for events in told if isinstance(events[-1], ErrorInfo)]
    assert texts(failed) == "t0 t1 t2 "
    error = failed[-1]
    assert isinstance(error, ErrorInfo)
    assert (error.code, error.retriable) == ("WORKER_RESET", False)
    assert error.message.startswith("determinism: ")
    assert 'determinism_mismatches_total{engine="llamacpp"} 1.0' in page


@pytest.mark.req("ORCH-3100", "ORCH-3081", "ORCH-3023")
async def test_waiting_and_running_clients_hear_how_they_stand() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        for name in ("a", "b"):
            await submit(gateway, name, 50, prompt="gated")
        await submit(gateway, "waits", 2)
        waiting, runs = gateway.stream("waits", "acme"), gateway.stream("a", "acme")
        async with asyncio.timeout(20):
            frame = await anext(waiting)
            later = [await anext(runs)]
            while sum(isinstance(event, Metrics) for event in later) < 2:
                later.append(await anext(runs))
        assert isinstance(frame, Metrics)
        assert frame.on_time_probability is not None
        assert (frame.queue_position, frame.queue_depth, frame.preempted) == (0, 1, None)
        # started, its frame, tokens; then one frame each interval.
        assert [type(event) for event in later[:2]] == [Started, Metrics]
        for event in (later[1], later[-1]):
            assert isinstance(event, Metrics)
            assert event.on_time_probability is not None
            assert (event.kv_migrated, event.queue_depth) == (False, 1)
        running.adapters[0].gate.set()
        assert isinstance([event async for event in waiting][-1], End)
        await runs.aclose()


@pytest.mark.req("ORCH-2004", "ORCH-2005", "ORCH-3099", "OC-CORE-1024")
async def test_a_sessions_budgets_are_told_and_closing_forgets_them() -> None:
    budget = SessionPolicy(budget=BudgetPolicy(tokens=1000, cost_micros=500_000))
    async with cluster(sessions=budget) as (_, gateway):
        with pytest.raises(OrchError, match="NOT_FOUND"):
            await gateway.session("s", "acme")
        admission = await gateway.submit(task("a", 5), GenerateRequest("a", 5, 1, prompt="plain"))
        assert admission.tokens_budget_remaining is not None
        assert 0 < admission.tokens_budget_remaining < 1000
        assert (admission.time_budget_remaining_ms, admission.cost_budget_remaining) == (None, 0.5)
        await collect(gateway, "a")
        await settled(gateway, "a")
        session = await gateway.session("s", "acme")
        # 3 tokens of prompt and 5 made, as the engine counts.
        assert (session.turns, session.kv_bytes, session.kv_warmth) == (1, 8 * 1000, True)
        assert session.tokens_budget_remaining == 1000 - 8
        assert 0 < session.ttl_ms_remaining <= 600_000
        await gateway.close_session("s", "acme")
        for call in (gateway.session("s", "acme"), gateway.close_session("s", "acme")):
            with pytest.raises(OrchError, match="NOT_FOUND"):
                await call


@pytest.mark.req("ORCH-3079", "ORCH-3029")
async def test_a_deadline_that_cannot_be_met_is_refused_with_one_that_can() -> None:
    async with cluster(self_test_token_s=0.005) as (_, gateway):
        with pytest.raises(OrchError) as refused:
            await gateway.submit(task("a", LONG, deadline_ms=10), GenerateRequest("a", LONG, 1, prompt="plain"))
        info = refused.value.info
        assert info.code == "DEADLINE_UNMET"
        assert info.earliest_deadline_ms is not None
        assert info.earliest_deadline_ms > 10
        asked = task("a", LONG, deadline_ms=info.earliest_deadline_ms)
        await gateway.submit(asked, GenerateRequest("a", LONG, 1, prompt="plain"))
        status = await gateway.status("a", "acme")
        assert status.why


@pytest.mark.req("ORCH-3022", "ORCH-3009", "ORCH-3086")
async def test_the_scheduler_learns_what_a_replicas_engine_says_of_itself() -> None:
    async with cluster() as (running, _):
        info = running.scheduler._core.state.replicas["pool-0"].info
        assert info is not None
        assert (info.zone, info.kv_tokens, info.kv_token_bytes) == ("hall-2", 0, 1000)
        assert (info.keeps_kv, info.interruptible_decode) == (True, True)
