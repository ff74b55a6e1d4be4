"""A line against a sorted list, and what earliest-deadline-first order promises."""

from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import orchestrator.core.sorted_blocks as sorted_blocks
from orchestrator.core.ordering import Line, key_of_edf
from tests.unit.core.flows_kit import Job

RUNS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: Small parts, so that short histories split and join blocks and groups.
SMALL_PARTS = {
    "BLOCK_MAX": 8,
    "BLOCK_MIN": 2,
    "BLOCK_JOINED_MAX": 6,
    "GROUP_MAX": 4,
    "GROUP_MIN": 2,
    "GROUP_JOINED_MAX": 3,
}


class LineMachine(RuleBasedStateMachine):
    """`model` is the line as a plain list, sorted by key and arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[Job] = Line()
        self.model: list[Job] = []
        self.left: list[Job] = []
        self.orders = 0
        self.standard = {name: getattr(sorted_blocks, name) for name in SMALL_PARTS}
        self.small = False

    @initialize(small=st.booleans())
    def size(self, small: bool) -> None:
        # A compiled module has its constants built in.
        self.small = small and str(sorted_blocks.__file__).endswith(".py")
        if self.small:
            for name, value in SMALL_PARTS.items():
                setattr(sorted_blocks, name, value)

    def teardown(self) -> None:
        for name, value in self.standard.items():
            setattr(sorted_blocks, name, value)

    def add(self, job: Job) -> None:
        self.line.push(job)
        self.model.append(job)
        self.model.sort(key=rank)

    @rule(keys=st.lists(st.integers(0, 60), min_size=1, max_size=40), cost=st.integers(1, 9))
    def arrive(self, keys: list[int], cost: int) -> None:
        for key in keys:
            self.orders += 1
            self.add(Job(self.orders, key, cost + key % 5))

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        job = self.left.pop(data.draw(st.integers(0, len(self.left) - 1)))
        job.fresh = False
        self.add(job)

    @rule(count=st.integers(1, 30))
    def pop(self, count: int) -> None:
        for expected in self.model[:count]:
            assert self.line.pop() is expected
        self.left += self.model[:count]
        del self.model[:count]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(1, 30))
    def discard(self, data: st.DataObject, count: int) -> None:
        """Some neighbours leave, so that parts run empty in the middle."""
        at = data.draw(st.integers(0, len(self.model) - 1))
        for job in self.model[at : at + count]:
            self.line.discard(job)
        del self.model[at : at + count]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def look_at_a_task(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.model) - 1))
        job = self.model[at]
        assert self.line.position(job) == at
        self.agree(self.line.ahead(job.key, job.order), at)

    @rule(key=st.integers(-1, 61), order=st.integers(0, 2000), most=st.integers(0, 9))
    def look_at_a_place(self, key: int, order: int, most: int) -> None:
        ahead = [job for job in self.model if rank(job) < (key, order)]
        behind = [job for job in self.model if rank(job) > (key, order)]
        self.agree(self.line.ahead(key, order), len(ahead))
        points = self.line.checkpoints(key, order, most)
        assert len(points) == min(most, len(behind))
        for job, tokens in points:
            count = self.model.index(job) + 1
            self.agree((count, tokens), count)
        places = [behind.index(job) for job, _ in points]
        steps = [after - before for before, after in zip([-1, *places], places, strict=False)]
        if points:
            assert places[-1] == len(behind) - 1
            assert min(steps) >= 1
            assert max(steps) - min(steps) <= 1

    def agree(self, found: tuple[int, int], count: int) -> None:
        """Tasks exactly; tokens exactly in short parts, else but for what lies in one part."""
        assert found[0] == count
        exact = cost(self.model[:count])
        if self.small or len(self.model) <= 2 * sorted_blocks.SUM_MAX:
            assert found[1] == exact
        else:
            near = self.model[max(0, count - sorted_blocks.BLOCK_MAX) : count + sorted_blocks.BLOCK_MAX]
            assert abs(found[1] - exact) <= cost(near)

    @rule()
    def look_at_arrivals(self) -> None:
        fresh = sorted((job for job in self.model if job.fresh), key=lambda job: job.order)
        assert self.line.oldest_fresh() is (fresh[0] if fresh else None)
        assert self.line.newest_fresh() is (fresh[-1] if fresh else None)

    @invariant()
    def agrees(self) -> None:
        assert (len(self.line), self.line.cost_tokens) == (len(self.model), cost(self.model))
        assert self.line.items() == self.model
        assert self.line.head(5) == self.model[:5]
        assert self.line.first() is (self.model[0] if self.model else None)
        assert self.line.last() is (self.model[-1] if self.model else None)


def rank(job: Job) -> tuple[int, int]:
    return job.key, job.order


def cost(jobs: list[Job]) -> int:
    return sum(job.cost_tokens for job in jobs)


@pytest.mark.req("OC-CORE-1003", "ORCH-3079")
class TestLine(LineMachine.TestCase):
    """A line does what a sorted list does."""

    settings = settings(RUNS, max_examples=60, stateful_step_count=30)


@RUNS
@given(
    jobs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60)), min_size=1, max_size=6),
)
@pytest.mark.req("ORCH-3079")
def test_when_any_order_meets_all_deadlines_the_lines_order_does(jobs: list[tuple[int, int]]) -> None:
    """`jobs` are (duration, deadline), all waiting for one slot; the orders are tried out one by one."""
    feasible = any(meets_all(list(order)) for order in permutations(jobs))
    line: Line[Job] = Line()
    for n, (duration, deadline) in enumerate(jobs):
        line.push(Job(n, key_of_edf(deadline, n), duration))
    in_line = [(job.cost_tokens, job.key) for job in line.items()]
    assert meets_all(in_line) == feasible


@RUNS
@given(durations=st.lists(st.integers(1, 1000), min_size=1, max_size=60), slack=st.data())
@pytest.mark.req("ORCH-3079")
def test_long_feasible_sets_meet_all_deadlines_in_line(durations: list[int], slack: st.DataObject) -> None:
    """Some order is chosen first and deadlines are given so that it just meets them: then the line does too."""
    ends, end = [], 0
    for duration in durations:
        end += duration
        ends.append(end + slack.draw(st.integers(0, 500)))
    line: Line[Job] = Line()
    for n in slack.draw(st.permutations(range(len(durations)))):
        line.push(Job(n, key_of_edf(ends[n], n), durations[n]))
    assert meets_all([(job.cost_tokens, job.key) for job in line.items()])


def meets_all(jobs: list[tuple[int, int]]) -> bool:
    end = 0
    for duration, deadline in jobs:
        end += duration
        if end > deadline:
            return False
    return True


@RUNS
@given(jobs=st.lists(st.integers(0, 3), max_size=300), started=st.sets(st.integers(0, 299)))
@pytest.mark.req("ORCH-3079", "OC-CORE-1003")
def test_equal_deadlines_go_in_order_of_arrival_even_when_tasks_come_back(jobs: list[int], started: set[int]) -> None:
    line: Line[Job] = Line()
    for n, deadline in enumerate(jobs):
        line.push(Job(n, key_of_edf(deadline, n)))
    waiting = line.items()
    back = [waiting[n] for n in sorted(started) if n < len(waiting)]
    for job in back:
        line.discard(job)
    for job in reversed(back):
        job.fresh = False
        line.push(job)
    taken = [line.pop() for _ in range(len(jobs))]
    assert taken == sorted(taken, key=rank)
