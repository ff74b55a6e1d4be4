"""Lines of waiting tasks: order, places, sums, and bounded traces of what has left."""

import pytest

from orchestrator.core.ordering import Line, key_of_edf, key_of_fifo, ordering
from orchestrator.core.sorted_blocks import BLOCK_MAX, BLOCK_MIN, GROUP_MAX, SortedBlocks
from tests.unit.core.flows_kit import Job


def filled(*jobs: Job) -> Line[Job]:
    line: Line[Job] = Line()
    for job in jobs:
        line.push(job)
    return line


def orders(jobs: list[Job]) -> list[int]:
    return [job.order for job in jobs]


@pytest.mark.req("ORCH-3079")
def test_a_policy_of_order_is_a_key_of_deadline_and_arrival() -> None:
    assert (ordering("edf"), ordering("fifo")) == (key_of_edf, key_of_fifo)
    assert (key_of_edf(500, 7), key_of_fifo(500, 7)) == (500, 7)


@pytest.mark.req("ORCH-3079")
def test_the_earliest_deadline_goes_first_and_equal_ones_by_arrival() -> None:
    line = filled(Job(1, 300), Job(2, 100), Job(3, 300), Job(4, 200))
    assert orders([line.pop() for _ in range(4)]) == [2, 4, 1, 3]


@pytest.mark.req("OC-CORE-1003")
def test_a_task_that_waits_again_has_its_place_back() -> None:
    line = filled(Job(2, 2), Job(3, 3))
    line.push(Job(1, 1, fresh=False))
    assert orders(line.items()) == [1, 2, 3]


def test_an_empty_line_has_nothing_to_give() -> None:
    line: Line[Job] = Line()
    assert (len(line), line.cost_tokens) == (0, 0)
    assert (line.first(), line.last(), line.oldest_fresh(), line.newest_fresh()) == (None, None, None, None)
    assert (line.head(3), line.checkpoints(0, 0), line.ahead(5, 5)) == ([], [], (0, 0))
    with pytest.raises(IndexError, match="empty"):
        line.pop()


def test_a_task_waits_once_and_leaves_once() -> None:
    job = Job(1, 100, 5)
    line = filled(job)
    with pytest.raises(ValueError, match="is taken"):
        line.push(job)
    line.discard(job)
    with pytest.raises(KeyError, match="only what was put in"):
        line.discard(job)
    assert (len(line), line.cost_tokens) == (0, 0)


def test_what_is_ahead_of_a_place_is_counted_in_tasks_and_tokens() -> None:
    waiting = [Job(n, 100 * n, 10 + n) for n in range(1, 6)]
    line = filled(*waiting)
    assert line.cost_tokens == 65
    assert [line.position(job) for job in waiting] == [0, 1, 2, 3, 4]
    assert line.ahead(300, 3) == (2, 23)
    assert line.ahead(300, 4) == (3, 36), "an equal deadline that came earlier goes first"
    assert line.ahead(0, 9) == (0, 0)
    assert line.ahead(900, 9) == (5, 65)


def test_checkpoints_are_spread_evenly_behind_a_place_up_to_the_last() -> None:
    waiting = [Job(n, n, 10) for n in range(1, 11)]
    line = filled(*waiting)
    assert line.checkpoints(4, 4, most=3) == [(waiting[5], 60), (waiting[7], 80), (waiting[9], 100)]
    assert line.checkpoints(8, 8) == [(waiting[8], 90), (waiting[9], 100)]
    assert line.checkpoints(10, 10) == []
    assert line.checkpoints(4, 4, most=0) == []


def test_the_head_of_a_line_may_be_looked_at() -> None:
    line = filled(*[Job(n, n) for n in range(600)])
    assert orders(line.head(300)) == list(range(300))
    assert line.head(0) == []
    assert len(line.head(10**6)) == 600


@pytest.mark.req("OC-CORE-1003")
def test_the_oldest_and_the_newest_are_those_of_arrival_that_never_started() -> None:
    line = filled(Job(3, 10), Job(1, 30), Job(2, 20))
    line.push(Job(0, 5, fresh=False))
    line.push(Job(9, 50, fresh=False))
    oldest, newest = line.oldest_fresh(), line.newest_fresh()
    assert oldest is not None
    assert newest is not None
    assert (oldest.order, newest.order) == (1, 3)
    line.push(Job(4, 1))
    line.discard(oldest)
    found = (line.oldest_fresh(), line.newest_fresh())
    assert [job.order for job in found if job is not None] == [2, 4]
    assert orders([line.pop() for _ in range(5)]) == [4, 0, 3, 2, 9]
    line.push(Job(11, 11))
    assert line.oldest_fresh() is line.newest_fresh() is line.first()


@pytest.mark.req("OC-CORE-1003")
def test_a_long_line_keeps_small_parts_wherever_tasks_come_and_go() -> None:
    """What an operation touches is bounded by the parts' sizes, and removals leave no empty parts behind."""
    blocks: SortedBlocks[int] = SortedBlocks()
    count = 40_000
    # Multiplying by a number prime to the count visits every rank once, in no simple order.
    ranks = [n * 17_389 % count for n in range(count)]
    for rank in ranks:
        blocks.insert(rank, rank, rank)
    groups, filled_parts = parts(blocks)
    assert filled_parts <= 3 * count // BLOCK_MAX
    assert groups <= 3 * filled_parts // GROUP_MAX
    assert blocks.before(25_000) == pytest.approx((25_000, sum(range(25_000))), rel=0.001)
    for rank in ranks[: count - 100]:
        blocks.remove(rank)
    kept = sorted(ranks[count - 100 :])
    assert blocks.head(count) == kept
    assert parts(blocks) == (1, 1)
    assert (blocks.count, blocks.cost) == (100, sum(kept))


@pytest.mark.req("OC-CORE-1003")
def test_parts_that_shrink_one_after_another_join() -> None:
    """Each looks to both sides: its neighbour may have been too full when the other one shrank."""
    blocks: SortedBlocks[int] = SortedBlocks()
    count = 4 * BLOCK_MAX * GROUP_MAX
    for rank in range(count):
        blocks.insert(rank, 1, rank)
    for rank in range(count):
        if rank % BLOCK_MAX:
            blocks.remove(rank)
    assert blocks.count == 4 * GROUP_MAX
    groups, sparse_parts = parts(blocks)
    assert sparse_parts <= 3 * blocks.count // BLOCK_MIN
    assert groups == 1


@pytest.mark.req("OC-CORE-1003")
def test_tasks_that_come_in_order_fill_the_parts_to_the_brim() -> None:
    blocks: SortedBlocks[int] = SortedBlocks()
    count = 2 * BLOCK_MAX * GROUP_MAX
    for rank in range(count):
        blocks.insert(rank, 1, rank)
    assert parts(blocks) == (2, 2 * GROUP_MAX)
    assert blocks.pick([0, 5_000, count - 1]) == [(0, 1), (5_000, 5_001), (count - 1, count)]
    assert [blocks.pop_first() for _ in range(count)] == list(range(count))
    assert (parts(blocks), blocks.first(), blocks.cost) == ((1, 1), None, 0)


def parts(blocks: SortedBlocks[int]) -> tuple[int, int]:
    """(groups, blocks), after a look at every sum that is kept of them."""
    groups = blocks._groups
    for g, group in enumerate(groups):
        sizes = [len(block.ranks) for block in group.blocks]
        assert max(sizes) <= BLOCK_MAX
        assert len(sizes) <= GROUP_MAX
        assert group.counts == sizes
        assert group.costs == [sum(block.costs) for block in group.blocks]
        assert len(group.lasts) == len(sizes)
        assert (blocks._counts[g], blocks._costs[g]) == (sum(sizes), sum(group.costs))
        if blocks.count:
            assert min(sizes) > 0
            assert all(block.ranks[-1] <= last for block, last in zip(group.blocks, group.lasts, strict=True))
            assert group.blocks[-1].ranks[-1] <= blocks._lasts[g]
    assert len(blocks._lasts) == len(blocks._counts) == len(blocks._costs) == len(groups)
    return len(groups), sum(len(group.blocks) for group in groups)
