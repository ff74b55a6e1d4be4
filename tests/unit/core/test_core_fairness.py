"""Fairness policies on small queues: who goes next, what is charged, and what is told of waits."""

import pytest

from contracts.policies import FairnessKind
from orchestrator.core.fairness import VIRTUAL
from orchestrator.core.flows import Flow
from tests.unit.core.flows_kit import Bench, Job, tokens_of

KINDS: list[FairnessKind] = ["wfq", "strict", "fifo"]


def orders(jobs: list[Job]) -> list[int]:
    return [job.order for job in jobs]


# ------------------------------------------------------------------------- weighted


@pytest.mark.req("ORCH-3075", "ORCH-3076")
def test_tenants_share_a_class_by_weight() -> None:
    bench = Bench("wfq", batch=1)
    acme, other = bench.flow("batch", "acme", 3), bench.flow("batch", "other", 1)
    for _ in range(400):
        bench.push(acme, 10)
        bench.push(other, 10)
    served = bench.run(200)
    assert tokens_of(served, acme) == pytest.approx(1500, abs=10)
    assert bench.fairness.share(acme) == pytest.approx(0.75, abs=0.01)


@pytest.mark.req("ORCH-3075", "ORCH-3076", "OC-CORE-1004")
def test_classes_share_by_weight_whatever_their_tenants_do() -> None:
    bench = Bench("wfq", interactive=8, batch=1)
    fast = [bench.flow("interactive", name, weight) for name, weight in (("acme", 3), ("other", 1))]
    slow = [bench.flow("batch", f"tenant-{n}", n + 1) for n in range(4)]
    for n in range(2_000):
        for flow in (*fast, *slow):
            bench.push(flow, 1 + (n * 7 + flow.weight) % 20)
    served = bench.run(3_000)
    total = sum(job.cost_tokens for job in served)
    assert sum(tokens_of(served, flow) for flow in fast) / total == pytest.approx(8 / 9, abs=0.01)
    assert tokens_of(served, fast[0]) / tokens_of(served, fast[1]) == pytest.approx(3, rel=0.02)
    for flow in slow:
        assert tokens_of(served, flow) / total == pytest.approx(flow.weight / 90, rel=0.1)
    assert bench.fairness.share(bench.tiers["interactive"]) == pytest.approx(8 / 9, abs=0.01)


@pytest.mark.req("ORCH-3075")
def test_large_tasks_do_not_buy_a_larger_share() -> None:
    bench = Bench("wfq", batch=1)
    large, small = bench.flow("batch", "large"), bench.flow("batch", "small")
    for _ in range(1_000):
        bench.push(large, 500)
        bench.push(small, 5)
    served = bench.run(500)
    assert abs(tokens_of(served, large) - tokens_of(served, small)) <= 505


SIDE_BY_SIDE = pytest.mark.parametrize("classes", [("one", "one"), ("one", "two")], ids=["tenants", "classes"])


def pair(bench: Bench, classes: tuple[str, str]) -> tuple[Flow[Job], Flow[Job]]:
    """Two tenants of one class, or of two."""
    return bench.flow(classes[0], "acme"), bench.flow(classes[1], "other")


@pytest.mark.req("ORCH-3075")
@SIDE_BY_SIDE
def test_who_was_away_neither_owns_nor_owes_the_time(classes: tuple[str, str]) -> None:
    bench = Bench("wfq", one=1, two=1)
    busy, away = pair(bench, classes)
    for _ in range(200):
        bench.push(busy, 10)
    bench.run(100)
    for _ in range(100):
        bench.push(away, 10)
    served = bench.run(50)
    assert abs(tokens_of(served, busy) - tokens_of(served, away)) <= 20


@pytest.mark.req("ORCH-3075")
@SIDE_BY_SIDE
def test_a_start_without_a_wait_is_owed_from_now_on(classes: tuple[str, str]) -> None:
    """The one who had nothing to do for long starts at once; then both wait."""
    bench = Bench("wfq", one=1, two=1)
    busy, away = pair(bench, classes)
    for _ in range(200):
        bench.push(busy, 10)
    bench.run(100)
    bench.fairness.charge(away, 500)
    bench.push(away, 10)
    assert [job.flow for job in bench.run(49)] == [busy] * 49
    assert away in [job.flow for job in bench.run(3)]


@pytest.mark.req("ORCH-3075")
@SIDE_BY_SIDE
@pytest.mark.parametrize(("real", "share"), [(200, 1 / 3), (50, 2 / 3)])
def test_everybody_pays_for_what_tasks_really_cost(classes: tuple[str, str], real: int, share: float) -> None:
    """All tasks are expected to cost 100: the share of starts evens out the share of tokens."""
    bench = Bench("wfq", one=1, two=1)
    liar, honest = pair(bench, classes)
    starts = 0
    for _ in range(600):
        bench.push(liar, 100)
        bench.push(honest, 100)
    for _ in range(300):
        job = bench.start()
        assert job is not None
        assert job.flow is not None
        bench.fairness.correct(job.flow, real - 100 if job.flow is liar else 0)
        starts += job.flow is liar
    assert starts / 300 == pytest.approx(share, abs=0.02)
    assert bench.fairness.share(liar) == pytest.approx(0.5, abs=0.01)


@pytest.mark.req("ORCH-3075")
@SIDE_BY_SIDE
def test_who_joins_beside_refunded_tasks_does_not_wait_for_the_refund_to_be_used_up(classes: tuple[str, str]) -> None:
    """Many slots started tasks that cost far less than was charged: the others' tags are low again."""
    bench = Bench("wfq", one=1, two=1)
    busy, late = pair(bench, classes)
    for _ in range(300):
        bench.push(busy, 1_000)
    for _ in range(100):
        bench.start()
    for _ in range(100):
        bench.fairness.correct(busy, -999)
    first = bench.push(late, 1_000)
    assert first in [bench.start(), bench.start()]


@pytest.mark.req("ORCH-3075")
def test_a_start_out_of_turn_is_charged_and_does_not_move_the_time_for_others() -> None:
    """A slot that was handed over to a tenant whose turn was far away: newcomers still begin beside the others."""
    bench = Bench("wfq", batch=1)
    behind, ahead, late = (bench.flow("batch", name) for name in ("behind", "ahead", "late"))
    for _ in range(3):
        bench.push(behind, 10)
    bench.fairness.charge(ahead, 100_000)
    taken = bench.push(ahead, 100_000)
    ahead.discard(taken)
    bench.fairness.charge(ahead, 100_000)
    bench.push(late, 10)
    assert late.tag <= behind.tag
    assert ahead.tag == 200_000 * VIRTUAL


@pytest.mark.req("ORCH-3075")
def test_equal_tags_go_in_order_of_activation() -> None:
    bench = Bench("wfq", interactive=1, batch=1)
    names = ["d", "a", "c", "b"]
    for name in names:
        bench.push(bench.flow("batch", name), 10)
    assert [job.flow.tenant for job in bench.run(4) if job.flow is not None] == names


@pytest.mark.req("ORCH-3075")
def test_equal_classes_go_in_order_of_activation() -> None:
    bench = Bench("wfq", interactive=1, batch=1)
    first, second = bench.push(bench.flow("batch"), 10), bench.push(bench.flow("interactive"), 10)
    assert bench.run(2) == [first, second]


# ------------------------------------------------------------------------ baselines


@pytest.mark.req("OC-CORE-1004")
def test_strict_serves_the_higher_class_first_and_does_not_see_tenants() -> None:
    bench = Bench("strict", interactive=1, batch=100)
    low = bench.push(bench.flow("batch"), key=1)
    late = bench.push(bench.flow("interactive", "acme"), key=300)
    early = bench.push(bench.flow("interactive", "other"), key=200)
    earliest = bench.push(bench.flow("interactive", "acme"), key=100)
    assert bench.run(4) == [earliest, early, late, low]


@pytest.mark.req("OC-CORE-1004")
def test_arrival_serves_whoever_came_first() -> None:
    bench = Bench("fifo", interactive=1, batch=1)
    jobs = [bench.push(bench.flow(("interactive", "batch")[n % 2], f"tenant-{n % 3}")) for n in range(12)]
    assert bench.run(12) == jobs


@pytest.mark.parametrize("kind", KINDS)
def test_discarding_a_first_task_leaves_the_turn_to_the_next(kind: FairnessKind) -> None:
    bench = Bench(kind, batch=1)
    acme, other = bench.flow("batch", "acme"), bench.flow("batch", "other")
    first, second, third = bench.push(acme), bench.push(other), bench.push(acme)
    acme.discard(first)
    assert bench.tiers["batch"].waiting == 2
    left = bench.run(3)
    assert sorted(orders(left)) == orders([second, third])
    if kind != "wfq":
        assert left == [second, third]


# ------------------------------------------------------------------------ distances


@pytest.mark.parametrize("kind", KINDS)
def test_alone_a_task_waits_for_what_is_ahead_in_its_own_flow(kind: FairnessKind) -> None:
    bench = Bench(kind, interactive=4, batch=1)
    flow = bench.flow("batch")
    assert bench.fairness.distance(flow, 0) == 0
    for cost in range(1, 60):
        assert bench.fairness.distance(flow, flow.line.cost_tokens) == flow.line.cost_tokens
        bench.push(flow, cost)
        if cost % 3 == 0:
            bench.run(1)


@pytest.mark.req("ORCH-3075")
def test_baselines_count_what_they_serve_first() -> None:
    strict, fifo = Bench("strict", high=1, middle=1, low=1), Bench("fifo", high=1, middle=1, low=1)
    for bench in (strict, fifo):
        for n, (name, tenant) in enumerate((("high", "a"), ("middle", "a"), ("middle", "b"), ("low", "a"))):
            bench.push(bench.flow(name, tenant), 10**n)
    assert strict.fairness.distance(strict.flow("middle", "b"), 40) == 1 + 10 + 40
    assert strict.fairness.distance(strict.flow("high", "b"), 0) == 1
    assert fifo.fairness.distance(fifo.flow("middle", "b"), 40) == 1 + 10 + 1000 + 40


@pytest.mark.req("ORCH-3075")
def test_before_anything_is_learned_a_distance_follows_from_the_weights() -> None:
    bench = Bench("wfq", interactive=3, batch=1)
    acme, other, fast = bench.flow("batch", "acme", 1), bench.flow("batch", "other", 2), bench.flow("interactive")
    for _ in range(100):
        bench.push(acme, 10)
        bench.push(other, 10)
        bench.push(fast, 10)
    # 100 tokens of its own: 200 of its neighbour's, and three times both together of the higher class.
    assert bench.fairness.distance(acme, 100) == pytest.approx(100 + 200 + 900, rel=0.02)
    # One who begins takes part as well.
    assert bench.fairness.distance(bench.flow("batch", "third", 1), 50) == pytest.approx(200 + 600, rel=0.02)
    # Nobody is told to wait for more than there is.
    assert bench.fairness.distance(acme, 1_000) == 1_000 + 1_000 + 1_000


@pytest.mark.req("ORCH-3075")
def test_tenants_that_came_at_the_same_virtual_time_go_first() -> None:
    bench = Bench("wfq", batch=1)
    for n in range(50):
        flow = bench.flow("batch", f"tenant-{n}")
        assert bench.fairness.distance(flow, 0) == 10 * n
        bench.push(flow, 10)


@pytest.mark.req("ORCH-3075")
def test_a_class_that_was_just_served_waits_for_what_the_others_are_owed() -> None:
    bench = Bench("wfq", interactive=8, batch=1)
    fast, slow = bench.flow("interactive"), bench.flow("batch")
    for _ in range(100):
        bench.push(fast, 10)
    bench.push(slow, 100)
    bench.push(slow, 100)
    served = bench.run(3)
    assert slow in [job.flow for job in served]
    # Its 100 tokens are to be matched by 800, of which some were served before it.
    owed = 800 - tokens_of(served, fast)
    assert bench.fairness.distance(slow, 0) == pytest.approx(owed, abs=10)


@pytest.mark.req("ORCH-3075")
def test_many_tenants_in_step_teach_no_false_pace() -> None:
    """Equal costs: the virtual time stands still for a whole round and then moves for everybody at once."""
    bench = Bench("wfq", batch=1)
    flows = [bench.flow("batch", f"tenant-{n}") for n in range(200)]
    for _ in range(20):
        for flow in flows:
            bench.push(flow, 10)
    bench.run(200 * 12 + 150)
    waits = bench.fairness.distance(flows[0], flows[0].line.cost_tokens)
    # All that waits, and at most a round more.
    assert 0 <= waits - bench.tiers["batch"].cost_tokens <= 200 * 10


@pytest.mark.req("ORCH-3075")
def test_a_start_out_of_turn_teaches_no_false_pace() -> None:
    bench = Bench("wfq", batch=1)
    acme, other = bench.flow("batch", "acme"), bench.flow("batch", "other")
    for _ in range(200):
        bench.push(acme, 10)
        bench.push(other, 10)
    bench.run(20)
    for _ in range(5):
        bench.fairness.charge(bench.flow("batch", "urgent"), 500)
        bench.run(30)
    # Of 800 tokens, 500 were started out of turn.
    assert bench.fairness.distance(acme, 100) == pytest.approx(200 * 800 / 300, rel=0.15)


@pytest.mark.req("ORCH-3075")
def test_distances_learn_what_others_are_served_meanwhile() -> None:
    """What was told is held against the tokens that were started until then, once the queue is steady."""
    bench = Bench("wfq", interactive=8, batch=1)
    told: dict[Job, tuple[int, int]] = {}
    served = estimates = waits = 0
    for n in range(8_000):
        flow = bench.flow("batch" if n % 4 == 0 else "interactive", f"tenant-{n * 13 % 7}")
        distance = bench.fairness.distance(flow, flow.line.cost_tokens)
        told[bench.push(flow, 50 + n * 37 % 900)] = (distance, served)
        job = bench.start() if n > 300 else None
        if job is not None and job.flow is not None:
            distance, before = told.pop(job)
            if job.order > 3_000:
                estimates += distance
                waits += served - before
            served += job.cost_tokens
            bench.fairness.correct(job.flow, 0)
    assert waits > 0
    assert estimates / waits == pytest.approx(1.0, abs=0.1)
