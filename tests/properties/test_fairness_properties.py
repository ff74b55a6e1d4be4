"""What fairness promises whatever comes: bounded lag, no starvation, no idle slot, no lost task."""

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.policies import FairnessKind
from orchestrator.core.fairness import VIRTUAL
from orchestrator.core.flows import Flow, Tier
from tests.unit.core.flows_kit import Bench, Job

RUNS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS: list[FairnessKind] = ["wfq", "strict", "fifo"]

Part = Flow[Job] | Tier[Job]


class Span:
    """How far apart two parts drift, in cost per weight, while both are active."""

    def __init__(self, one: Part, other: Part) -> None:
        self.one, self.other = one, other
        self.lead = self.least = self.most = Fraction(0)
        self.widest = Fraction(0)

    def served(self, part: Part, tokens: int) -> None:
        """Tokens charged to a part, or corrected (which may be negative), while both are active."""
        if part is self.one:
            self.lead += Fraction(tokens, part.weight)
        elif part is self.other:
            self.lead -= Fraction(tokens, part.weight)
        self.least, self.most = min(self.least, self.lead), max(self.most, self.lead)
        # Over every interval within the span: the difference of its ends.
        self.widest = max(self.widest, self.most - self.least)

    def restart(self) -> None:
        """One of the two is not active."""
        self.lead = self.least = self.most = Fraction(0)


class Watched(Bench):
    """Keeps the books of every pair of flows of a class, and of every pair of classes."""

    def __init__(self, weights: list[int], tenants: list[int]) -> None:
        names = {f"class-{n}": weight for n, weight in enumerate(weights)}
        super().__init__("wfq", **names)
        self.lanes = [self.flow(name, f"tenant-{n}", weight) for name in names for n, weight in enumerate(tenants)]
        tiers = list(self.tiers.values())
        parts: list[list[Part]] = [list(tier.flows.values()) for tier in tiers]
        self.spans = [
            Span(one, other)
            for level in [*parts, list[Part](tiers)]
            for n, one in enumerate(level)
            for other in level[n + 1 :]
        ]
        self.largest = dict.fromkeys([*self.lanes, *tiers], 0)
        self.running: list[tuple[Job, int]] = []
        self.outstanding = Fraction(0)
        self.starts = 0

    def account(self, flow: Flow[Job], tokens: int) -> None:
        for span in self.spans:
            if is_active(span.one) and is_active(span.other):
                span.served(flow, tokens)
                span.served(flow.tier, tokens)

    def close_spans(self) -> None:
        for span in self.spans:
            if not (is_active(span.one) and is_active(span.other)):
                span.restart()

    def serve(self, error: int) -> bool:
        """Start the next task, which will cost `error` more than expected, but at least 1 token."""
        flow = self.fairness.select()
        assert (flow is None) == (not any(lane.active for lane in self.lanes))
        if flow is None:
            return False
        first = flow.line.first()
        assert first is not None
        self.account(flow, first.cost_tokens)
        job = self.start()
        assert job is first
        self.starts += 1
        for part in (flow, flow.tier):
            self.largest[part] = max(self.largest[part], job.cost_tokens)
        self.running.append((job, max(1 - job.cost_tokens, error)))
        self.outstanding = max(self.outstanding, Fraction(sum(abs(error) for _, error in self.running)))
        self.close_spans()
        return True

    def finish(self, n: int) -> None:
        job, error = self.running.pop(n % len(self.running))
        assert job.flow is not None
        self.account(job.flow, error)
        self.fairness.correct(job.flow, error)

    def check(self) -> None:
        """SFQ theorem 1, and for each span twice the corrections that were ever outstanding at once."""
        rounding = Fraction(2 * self.starts + 2, VIRTUAL)
        for span in self.spans:
            bound = sum(Fraction(self.largest[part], part.weight) for part in (span.one, span.other))
            assert span.widest <= bound + 2 * self.outstanding + rounding


def is_active(part: Part) -> bool:
    return part.active if isinstance(part, Flow) else part.active_flows > 0


WEIGHTS = st.lists(st.integers(1, 12), min_size=1, max_size=3)
#: (lane, cost, starts after it)
STEPS = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 300), st.integers(0, 2)), max_size=150)


@RUNS
@given(weights=WEIGHTS, tenants=WEIGHTS, steps=STEPS, backlog=st.integers(0, 20))
@pytest.mark.req("ORCH-3075", "ORCH-3076")
def test_the_lag_between_active_flows_and_classes_is_bounded(
    weights: list[int], tenants: list[int], steps: list[tuple[int, int, int]], backlog: int
) -> None:
    bench = Watched(weights, tenants)
    for n in range(backlog):
        for lane in bench.lanes:
            bench.push(lane, 1 + n * 53 % 200)
    for at, cost, starts in steps:
        bench.push(bench.lanes[at % len(bench.lanes)], cost)
        for _ in range(starts):
            if bench.serve(0):
                bench.finish(0)
    while bench.serve(0):
        bench.finish(0)
    assert bench.outstanding == 0
    bench.check()


@RUNS
@given(
    weights=WEIGHTS,
    tenants=WEIGHTS,
    steps=STEPS,
    slots=st.integers(1, 6),
    errors=st.lists(st.integers(-200, 200), min_size=1, max_size=40),
)
@pytest.mark.req("ORCH-3075", "ORCH-3076")
def test_late_corrections_widen_the_lag_by_no_more_than_what_was_outstanding(
    weights: list[int], tenants: list[int], steps: list[tuple[int, int, int]], slots: int, errors: list[int]
) -> None:
    """Several slots; a task's real cost shows when it ends, in any order."""
    bench = Watched(weights, tenants)
    for n, (at, cost, ends) in enumerate(steps):
        bench.push(bench.lanes[at % len(bench.lanes)], cost)
        for _ in range(min(ends, len(bench.running))):
            bench.finish(at)
        while len(bench.running) < slots and bench.serve(errors[n % len(errors)]):
            pass
    while bench.running:
        bench.finish(0)
        bench.serve(errors[0])
    bench.check()


@RUNS
@given(
    weights=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    costs=st.lists(st.integers(1, 400), min_size=20, max_size=200),
    stay=st.integers(0, 8),
)
@pytest.mark.req("ORCH-3075")
def test_nobody_starves(weights: list[int], costs: list[int], stay: int) -> None:
    """Before a flow's first task starts, each other flow gets its weight's part of the flow's last cost, and one task.

    The others always have work; the flow of weight 1 has one or few tasks, and comes and goes.
    """
    bench = Bench("wfq", batch=1)
    light = bench.flow("batch", "light", 1)
    heavy = [bench.flow("batch", f"heavy-{n}", weight) for n, weight in enumerate(weights)]
    passed, largest = dict.fromkeys(heavy, 0), max(costs)
    for n, cost in enumerate(costs):
        for flow in heavy:
            while len(flow.line) < 2:
                bench.push(flow, cost)
        if len(light.line) == 0 and n % (stay + 1) == 0:
            passed = dict.fromkeys(heavy, 0)
            bench.push(light, cost)
        job = bench.start()
        assert job is not None
        assert job.flow is not None
        if job.flow is light:
            passed = dict.fromkeys(heavy, 0)
        elif light.active:
            passed[job.flow] += job.cost_tokens
            assert passed[job.flow] <= largest * job.flow.weight + largest


@RUNS
@given(
    kind=st.sampled_from(KINDS),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "push", "start", "start", "discard", "block", "unblock"]),
            st.integers(0, 5),
            st.integers(1, 50),
        ),
        max_size=200,
    ),
)
@pytest.mark.req("ORCH-3075", "ORCH-3091", "OC-CORE-1004")
def test_every_policy_serves_the_same_tasks_once_and_never_idles(
    kind: FairnessKind, steps: list[tuple[str, int, int]]
) -> None:
    """Only the choice differs between policies: whoever may start does, and nothing is lost or served twice."""
    bench = Bench(kind, interactive=5, batch=2)
    lanes = [bench.flow(name, tenant) for name in ("interactive", "batch") for tenant in ("a", "b", "c")]
    waiting: list[Job] = []
    for do, at, number in steps:
        lane = lanes[at]
        if do == "push":
            waiting.append(bench.push(lane, number, key=number % 7))
        elif do == "discard" and waiting:
            job = waiting.pop(number % len(waiting))
            assert job.flow is not None
            job.flow.discard(job)
        elif do in ("block", "unblock"):
            lane.block(do == "block")
        elif do == "start":
            serve_one(bench, kind, waiting)
        check_books(bench, waiting)
    for lane in lanes:
        lane.block(False)
    while waiting:
        serve_one(bench, kind, waiting)
    assert bench.start() is None


def serve_one(bench: Bench, kind: FairnessKind, waiting: list[Job]) -> None:
    """Start a task and hold the choice against the policy's own rule."""
    startable = [job for job in waiting if job.flow is not None and not job.flow.blocked]
    job = bench.start()
    assert (job is None) == (not startable)
    if job is None:
        return
    assert job in startable
    flow = job.flow
    assert flow is not None
    mine = [other for other in startable if other.flow is flow]
    assert job is min(mine, key=place)
    if kind == "strict":
        assert job is min(startable, key=lambda other: (class_of(other), *place(other)))
    elif kind == "fifo":
        firsts = [min((o for o in startable if o.flow is f), key=place) for f in flows_of(startable)]
        assert job is min(firsts, key=lambda other: other.order)
    waiting.remove(job)
    bench.fairness.correct(flow, -1)


def check_books(bench: Bench, waiting: list[Job]) -> None:
    for tier in bench.tiers.values():
        mine = [job for job in waiting if job.flow is not None and job.flow.tier is tier]
        assert (tier.waiting, tier.cost_tokens) == (len(mine), sum(job.cost_tokens for job in mine))
        assert tier.active_flows == sum(flow.active for flow in tier.flows.values())
        for flow in tier.flows.values():
            assert flow.active == (len(flow.line) > 0 and not flow.blocked)
            assert bench.fairness.distance(flow, flow.line.cost_tokens) >= flow.line.cost_tokens


def place(job: Job) -> tuple[int, int]:
    return job.key, job.order


def class_of(job: Job) -> int:
    assert job.flow is not None
    return job.flow.tier.index


def flows_of(jobs: list[Job]) -> list[Flow[Job]]:
    return list(dict.fromkeys(job.flow for job in jobs if job.flow is not None))


@RUNS
@given(
    high=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    low=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    ratio=st.integers(1, 20),
    tenants=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
@pytest.mark.req("ORCH-3075", "ORCH-3076")
def test_observed_shares_follow_the_weights(high: list[int], low: list[int], ratio: int, tenants: list[int]) -> None:
    """Classes weigh `ratio` to 1, tenants as they are given; all have work all the time, of any cost."""
    bench = Bench("wfq", high=ratio, low=1)
    costs = {"high": high, "low": low}
    lanes = {name: [bench.flow(name, f"t-{n}", w) for n, w in enumerate(tenants)] for name in costs}
    served = dict.fromkeys([*lanes["high"], *lanes["low"]], 0)
    for n in range(500):
        for name, flows in lanes.items():
            for flow in flows:
                if len(flow.line) < 2:
                    bench.push(flow, costs[name][n % len(costs[name])])
        job = bench.start()
        assert job is not None
        assert job.flow is not None
        served[job.flow] += job.cost_tokens
    by_class = {name: sum(served[flow] for flow in flows) for name, flows in lanes.items()}
    # Two parts served together differ by at most one largest task each (theorem 1).
    assert abs(Fraction(by_class["high"], ratio) - by_class["low"]) <= Fraction(max(high), ratio) + max(low) + 1
    for name, flows in lanes.items():
        for one in flows:
            for other in flows:
                lag = abs(Fraction(served[one], one.weight) - Fraction(served[other], other.weight))
                assert lag <= Fraction(max(costs[name]), one.weight) + Fraction(max(costs[name]), other.weight) + 1
