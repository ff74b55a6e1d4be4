"""Flows and tiers: sums, quotas, what is forgotten, and the shares that are observed."""

from random import Random

import pytest

from contracts.policies import FairnessKind, QueuePolicy
from orchestrator.core.fairness import make
from orchestrator.core.flows import IDLE_SLACK, Tier
from orchestrator.core.ready import OUTDATED_SLACK, Ready
from orchestrator.core.shares import HALF_LIFE_TOKENS
from tests.unit.core.flows_kit import Bench, Job

KINDS: list[FairnessKind] = ["wfq", "strict", "fifo"]


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(ValueError, match="class 'batch': a weight must be at least 1"):
        Bench("wfq", batch=0)
    with pytest.raises(ValueError, match="weight -1 of tenant 'acme'"):
        Bench("wfq", batch=1).flow("batch", "acme", -1)


@pytest.mark.req("ORCH-3075")
@pytest.mark.parametrize("kind", KINDS)
def test_sums_follow_the_tasks(kind: FairnessKind) -> None:
    bench = Bench(kind, interactive=2, batch=1)
    flow, tier = bench.flow("batch"), bench.tiers["batch"]
    jobs = [bench.push(flow, cost) for cost in (5, 7, 11)]
    flow.reserve()
    assert (tier.waiting, tier.cost_tokens, tier.reserved, flow.reserved) == (3, 23, 1, 1)
    flow.discard(jobs[1])
    flow.release()
    assert (tier.waiting, tier.cost_tokens, tier.reserved, flow.reserved) == (2, 16, 0, 0)
    bench.run(2)
    assert (tier.waiting, tier.cost_tokens, tier.active_flows, flow.active) == (0, 0, 0, False)
    assert bench.start() is None
    with pytest.raises(IndexError):
        flow.pop()
    with pytest.raises(KeyError):
        flow.discard(jobs[1])
    assert (tier.waiting, tier.cost_tokens) == (0, 0)


@pytest.mark.req("ORCH-3075")
@pytest.mark.parametrize("kind", KINDS)
def test_a_blocked_tenant_waits_while_others_go_on(kind: FairnessKind) -> None:
    bench = Bench(kind, batch=1)
    acme, other = bench.flow("batch", "acme"), bench.flow("batch", "other")
    first = bench.push(acme)
    acme.block(True)
    second, third = bench.push(acme), bench.push(other)
    assert bench.start() is third
    assert bench.start() is None
    acme.block(False)
    acme.block(False)
    assert bench.run(2) == [first, second]
    acme.block(True)
    assert (acme.active, other.active) == (False, False)


@pytest.mark.parametrize("kind", KINDS)
def test_tenants_that_come_and_go_leave_nothing_behind(kind: FairnessKind) -> None:
    bench = Bench(kind, interactive=1, batch=1)
    keeper = bench.push(bench.flow("batch", "keeper"), 10**9)
    promised = bench.flow("batch", "promised")
    promised.reserve()
    running = bench.flow("batch", "running")
    bench.fairness.charge(running, 1)
    for n in range(5_000):
        flow = bench.flow("batch", f"tenant-{n}")
        job = bench.push(flow, 10)
        flow.discard(job)
    tier = bench.tiers["batch"]
    assert len(tier.flows) <= 2 * IDLE_SLACK
    assert tier.flows["promised"] is promised
    assert tier.flows["running"] is running
    assert tier.flows["keeper"] is keeper.flow


@pytest.mark.req("ORCH-3075")
def test_a_tenant_with_a_debt_is_remembered_until_time_has_caught_up() -> None:
    """It could otherwise come back at once and be served as if it had had nothing."""
    bench = Bench("wfq", batch=1)
    debtor, other = bench.flow("batch", "debtor"), bench.flow("batch", "other")
    for _ in range(300):
        bench.push(other, 10)
    bench.push(debtor, 1_000)
    bench.run(20)
    for n in range(200):
        bench.flow("batch", f"tenant-{n}")
    assert bench.flow("batch", "debtor") is debtor
    assert bench.push(debtor, 10) not in bench.run(70)
    debtor.discard(debtor.line.items()[0])
    bench.run(120)
    for n in range(200):
        bench.flow("batch", f"guest-{n}")
    assert bench.flow("batch", "debtor") is not debtor


def test_tasks_that_start_without_waiting_leave_no_flows_either() -> None:
    """On an idle set nobody's virtual time moves; the end of a busy time evens everything out."""
    bench = Bench("wfq", batch=1)
    for n in range(5_000):
        flow = bench.flow("batch", f"tenant-{n}")
        bench.fairness.charge(flow, 100)
        bench.fairness.correct(flow, -3)
    assert len(bench.tiers["batch"].flows) <= 2 * IDLE_SLACK


def test_a_correction_for_a_flow_that_is_gone_is_harmless() -> None:
    bench = Bench("wfq", batch=1)
    gone = bench.flow("batch", "gone")
    for n in range(200):
        bench.flow("batch", f"tenant-{n}")
    assert "gone" not in bench.tiers["batch"].flows
    bench.fairness.correct(gone, 50)
    job = bench.push(bench.flow("batch", "gone"))
    assert bench.start() is job


@pytest.mark.parametrize("seed", range(5))
def test_outdated_entries_are_swept_and_the_order_stays(seed: int) -> None:
    random = Random(seed)
    tier: Tier[Job] = Tier(QueuePolicy("batch", 10, "reject"), make("wfq"))
    ready: Ready[Job] = Ready()
    flows = [tier.flow(f"tenant-{n}", 1) for n in range(50)]
    ranks = dict.fromkeys(flows, 0)
    for n, flow in enumerate(flows):
        flow.sequence = n
        ready.put(flow, 0)
    swept = 0
    for _ in range(2_000):
        # Never the first one, so that nothing is cleaned at the head.
        flow = random.choice(flows[1:])
        ranks[flow] = random.randrange(1, 10**9)
        before = len(ready)
        ready.put(flow, ranks[flow])
        assert len(ready) <= 2 * len(flows) + OUTDATED_SLACK
        swept += len(ready) < before
        if swept == 10:
            break
    for flow in sorted(flows, key=lambda flow: ranks[flow]):
        assert ready.first() is flow
        flow.version += 1
    assert ready.first() is None


@pytest.mark.req("ORCH-3076")
def test_shares_forget_what_was_served_long_ago() -> None:
    bench = Bench("wfq", batch=1)
    old, new = bench.flow("batch", "old"), bench.flow("batch", "new")
    assert bench.fairness.share(old) == 0.0
    bench.fairness.charge(old, 1_000)
    assert bench.fairness.share(old) == 1.0
    for _ in range(HALF_LIFE_TOKENS // 1_000):
        bench.fairness.charge(old, 1_000)
    for _ in range(HALF_LIFE_TOKENS // 1_000):
        bench.fairness.charge(new, 1_000)
    # Both served one half-life; the older of the two counts half.
    assert bench.fairness.share(new) == pytest.approx(2 / 3, abs=0.01)
    for _ in range(400):
        bench.fairness.charge(new, HALF_LIFE_TOKENS)
    assert bench.fairness.share(new) == pytest.approx(1.0)
    assert 0.0 <= bench.fairness.share(old) < 1e-9
    bench.fairness.charge(old, 10**12)
    assert bench.fairness.share(old) == pytest.approx(1.0)


@pytest.mark.req("ORCH-3076")
def test_shares_are_of_what_was_used_and_never_out_of_range() -> None:
    bench = Bench("wfq", batch=1)
    acme, other = bench.flow("batch", "acme"), bench.flow("batch", "other")
    bench.fairness.charge(acme, 100)
    bench.fairness.charge(other, 100)
    bench.fairness.correct(other, -100)
    assert bench.fairness.share(acme) == pytest.approx(1.0, abs=0.01)
    bench.fairness.correct(acme, -200)
    assert all(0.0 <= bench.fairness.share(flow) <= 1.0 for flow in (acme, other))
