"""What the scheduler's policies are for, seen in whole runs: each does what it promises, and others do not."""

from typing import Any

import pytest

from orchestrator.simulation.job import NEVER
from orchestrator.simulation.ledger import TaskRow
from orchestrator.simulation.report import Report
from tests.simulation.sim_kit import ran, report, scenario

S = 1_000_000_000
PATIENT = {"deadline_ms": 600_000}


def poisson(per_second: float) -> dict[str, Any]:
    return {"arrivals": {"kind": "poisson", "per_second": per_second}}


def rows_of(*workloads: dict[str, Any], **over: Any) -> list[TaskRow]:
    return list(ran(scenario(*workloads, **over)).clients.ledger.rows())


# ------------------------------------------------------------------------ fairness


def crowded(fairness: str) -> Report:
    """A heavy tenant sends twice as much as a light one of three times its weight, and a batch on top."""
    return report(
        scenario(
            {**PATIENT, **poisson(6), "tenants": "heavy"},
            {**PATIENT, **poisson(3), "name": "light", "tenants": "light"},
            {**PATIENT, **poisson(3), "name": "batch", "priority": "batch", "tenants": "heavy"},
            seconds=200,
            warmup_s=40,
            scheduler={
                "fairness": fairness,
                "ordering": "fifo",
                "on_time_percent_min": 0,
                "tenants": {"light": {"weight": 3}},
                "classes": {"interactive": {"weight": 4, "capacity": 5000}, "batch": {"weight": 1, "capacity": 5000}},
            },
        )
    )


@pytest.mark.req("ORCH-3075", "ORCH-3076")
def test_weighted_fair_queuing_gives_classes_and_tenants_their_weights() -> None:
    found = crowded("wfq")
    assert {flow.name: flow.share for flow in found.class_shares.flows} == {
        "interactive": pytest.approx(0.8, abs=0.02),
        "batch": pytest.approx(0.2, abs=0.02),
    }
    tenants = found.tenant_shares["interactive"]
    assert {flow.name: flow.share for flow in tenants.flows} == {
        "light": pytest.approx(0.75, abs=0.02),
        "heavy": pytest.approx(0.25, abs=0.02),
    }
    assert tenants.windows >= 14
    assert tenants.mean_error is not None
    assert tenants.mean_error < 0.04
    assert tenants.jain is not None
    assert tenants.jain > 0.999


@pytest.mark.req("ORCH-3075")
def test_the_other_policies_are_what_they_are_called() -> None:
    strict, fifo = crowded("strict"), crowded("fifo")
    assert {flow.name: flow.share for flow in strict.class_shares.flows} == {"interactive": 1.0, "batch": 0.0}
    # First come, first served goes by who sends how much: a third of the class's tasks are the light tenant's.
    light = {flow.name: flow.share for flow in fifo.tenant_shares["interactive"].flows}["light"]
    assert light == pytest.approx(1 / 3, abs=0.08)


# ----------------------------------------------------------------------- deadlines


@pytest.mark.req("ORCH-3079")
def test_nothing_starts_or_is_delivered_as_on_time_after_its_deadline() -> None:
    mixed = {**poisson(4), "deadline_ms": {"kind": "lognormal", "median": 6000, "sigma": 1.0}}
    rows = rows_of(mixed, seconds=200)
    started = [row for row in rows if row.started_ns != NEVER]
    assert len(started) > 300
    assert all(row.started_ns <= row.deadline_ns for row in started)
    refused = [row for row in rows if row.outcome == "refused DEADLINE_UNMET"]
    assert len(refused) > 30
    assert all(row.earliest_deadline_ms > (row.deadline_ns - row.arrived_ns) // 1_000_000 for row in refused)


@pytest.mark.req("ORCH-3079")
def test_earliest_deadline_first_meets_more_of_them_than_arrival_order() -> None:
    """Nearly all that four slots can do: there is time for all, if the urgent ones go first."""
    mixed = {**poisson(2), "deadline_ms": {"kind": "choice", "of": {4000: 1, 60_000: 3}}}
    met = {
        ordering: report(
            scenario(mixed, seconds=400, scheduler={"ordering": ordering, "on_time_percent_min": 0})
        ).total.on_time_of_submitted
        for ordering in ("edf", "fifo")
    }
    assert met["edf"] > 0.95
    assert met["edf"] > met["fifo"] + 0.03


@pytest.mark.req("ORCH-3079", "ORCH-3081")
def test_refusing_what_cannot_make_it_lets_more_tasks_make_it() -> None:
    """At twice the load that can be served, whoever admits all serves hardly anyone in time."""
    found = {
        percent: report(scenario(poisson(5), seconds=200, scheduler={"on_time_percent_min": percent})).total
        for percent in (0, 90)
    }
    assert found[0].on_time_of_submitted < 0.3
    assert found[90].on_time_of_submitted > 2 * found[0].on_time_of_submitted
    assert found[90].on_time_of_admitted > 0.85


# ---------------------------------------------------------------------- preemption


@pytest.mark.req("ORCH-3085", "ORCH-3005")
def test_a_flood_of_batch_work_gives_way_to_the_higher_class() -> None:
    found = report(
        scenario(
            poisson(1.2),
            {**poisson(4), "name": "batch", "priority": "batch", "deadline_ms": 60_000},
            seconds=200,
            scheduler={
                "on_time_percent_min": 0,
                "capacity": 10,
                "classes": {
                    "interactive": {"weight": 8, "capacity": 10, "full_policy": "shed-low-priority"},
                    "batch": {"capacity": 10, "full_policy": "reject"},
                },
            },
        )
    )
    assert found.outcomes["dropped ADMISSION_REJECT"] > 10
    assert found.classes["interactive"].on_time_of_submitted > 0.97


def with_preemption(mode: str) -> Report:
    """Long batch work on all slots; now and then something that cannot wait for any of them to end."""
    return report(
        scenario(
            {**poisson(1), "priority": "batch", "output_tokens": 400, **PATIENT},
            {**poisson(0.3), "name": "urgent", "output_tokens": 20, "max_tokens": 20, "deadline_ms": 1500},
            seconds=200,
            scheduler={"preemption": {"mode": mode, "max_per_min": 60}},
        )
    )


@pytest.mark.req("ORCH-3086", "ORCH-3087")
def test_hard_preemption_saves_deadlines_and_loses_no_tokens() -> None:
    """A task that finished with fewer tokens than it has would raise in the world, preempted or not."""
    off, hard = with_preemption("off"), with_preemption("hard")
    assert off.preemptions == 0
    assert hard.preemptions > 10
    assert hard.classes["interactive"].on_time_of_submitted > off.classes["interactive"].on_time_of_submitted + 0.2
    assert "failed WORKER_RESET" not in hard.outcomes


# ------------------------------------------------------------------ bounds and quotas


def most_at_once(rows: list[TaskRow], tenant: str) -> int:
    """The largest number of a tenant's tasks that ran at the same time."""
    mine = [row for row in rows if row.tenant == tenant and row.started_ns != NEVER]
    changes = sorted([(row.started_ns, 1) for row in mine] + [(row.ended_ns, -1) for row in mine])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.req("ORCH-3077", "ORCH-3036")
def test_a_tenant_stays_within_its_quotas() -> None:
    tenants = {"few": {"max_concurrent": 2}, "slow": {"rps": 1, "burst": 2}}
    rows = rows_of(
        {**poisson(1), "tenants": "few"},
        {**poisson(4), "name": "rated", "tenants": "slow", "output_tokens": 5},
        {**poisson(0.5), "name": "free", "tenants": "free"},
        seconds=120,
        pools={"gpu": {"replicas": 4, "slots": 2}},
        scheduler={"tenants": tenants},
    )
    assert most_at_once(rows, "few") == 2
    assert (
        most_at_once(rows_of({**poisson(1), "tenants": "few"}, pools={"gpu": {"replicas": 4, "slots": 2}}), "few") > 2
    )
    admitted = sorted(row.admitted_ns for row in rows if row.tenant == "slow" and row.admitted_ns != NEVER)
    assert len(admitted) > 60
    # A token bucket: at most burst + rate x time in any stretch.
    for first in range(len(admitted)):
        for last in range(first, min(first + 20, len(admitted))):
            assert last - first + 1 <= 2 + (admitted[last] - admitted[first]) / S + 1e-6
    assert not any(row.outcome.startswith("refused") for row in rows if row.tenant == "free")


@pytest.mark.req("ORCH-3004")
def test_queues_stay_within_their_bounds() -> None:
    world = ran(
        scenario(
            poisson(8),
            scheduler={"on_time_percent_min": 0, "classes": {"interactive": {"capacity": 6}}},
            seconds=100,
        )
    )
    assert max(world.timeline.waiting["interactive"]) == 6


@pytest.mark.req("ORCH-3009")
def test_sessions_go_where_their_context_is() -> None:
    agents = {
        "arrivals": {"kind": "agents", "count": 3, "turns": 5, "think_ms": 1000},
        "prompt_tokens": 1000,
        "output_tokens": 40,
    }
    median_ms = {}
    for keeps in (True, False):
        pool = {"replicas": 3, "slots": 2, "keeps_kv": keeps, "kv_tokens": 40_000}
        first_token = report(scenario(agents, seconds=120, pools={"gpu": pool})).total.first_token
        assert first_token is not None
        median_ms[keeps] = first_token.p50_ms
    assert median_ms[True] < 0.6 * median_ms[False]


@pytest.mark.req("ORCH-3099")
def test_a_session_that_has_used_up_its_budget_is_refused() -> None:
    agents = {
        "arrivals": {"kind": "agents", "count": 1, "turns": 6, "think_ms": 100},
        "prompt_tokens": 200,
        "output_tokens": 100,
        "max_tokens": 100,
    }
    rows = rows_of(agents, scheduler={"sessions": {"budget_tokens": 1000}})
    assert any(row.outcome.startswith("refused") for row in rows)
    used: dict[int, int] = {}
    session = 0
    for row in rows:
        session += row.prompt_tokens == 200
        if row.outcome == "finished":
            used[session] = used.get(session, 0) + row.prompt_tokens + row.output_tokens
    assert max(used.values()) <= 1000
