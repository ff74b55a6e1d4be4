"""A long sorted sequence with running counts and costs, cheap at any place (OC-CORE-1003).

Entries lie in blocks of at most 256 and blocks in groups of at most 64, so that a change moves few
pointers and a sum reads few numbers. The blocks are those of sortedcontainers (Grant Jenks).
"""

from bisect import bisect_left
from typing import Final, Generic, TypeVar

T = TypeVar("T")

BLOCK_MAX: Final = 256
GROUP_MAX: Final = 64
#: Costs of more entries of a block than these are not added up one by one.
SUM_MAX: Final = 32
#: A part smaller than a quarter joins its neighbour if both fill at most three quarters.
BLOCK_MIN: Final = BLOCK_MAX // 4
BLOCK_JOINED_MAX: Final = BLOCK_MAX * 3 // 4
GROUP_MIN: Final = GROUP_MAX // 4
GROUP_JOINED_MAX: Final = GROUP_MAX * 3 // 4


class _Block(Generic[T]):
    """Some consecutive entries, as columns."""

    __slots__ = ("costs", "items", "ranks")

    def __init__(self, ranks: list[int], costs: list[int], items: list[T]) -> None:
        self.ranks = ranks
        self.costs = costs
        self.items = items

    def cost_before(self, at: int, total: int) -> int:
        """Cost of the first `at` entries, given that of all: exact near an end, else in proportion."""
        count = len(self.costs)
        if at <= SUM_MAX:
            return sum(self.costs[:at]) if at else 0
        if count - at <= SUM_MAX:
            return total - sum(self.costs[at:])
        return total * at // count


class _Group(Generic[T]):
    """Some consecutive blocks. `lasts` holds a rank for each that none of its entries exceeds."""

    __slots__ = ("blocks", "costs", "counts", "lasts")

    def __init__(self, blocks: list[_Block[T]], lasts: list[int], counts: list[int], costs: list[int]) -> None:
        self.blocks = blocks
        self.lasts = lasts
        self.counts = counts
        self.costs = costs


class SortedBlocks(Generic[T]):
    """Items by rank, lowest first; each rank at most once. `count` and `cost` sum over all."""

    __slots__ = ("_costs", "_counts", "_groups", "_lasts", "cost", "count")

    def __init__(self) -> None:
        # There is always a block to look into, if only an empty one.
        self._groups: list[_Group[T]] = [_Group([_Block([], [], [])], [0], [0], [0])]
        self._lasts = [0]
        self._counts = [0]
        self._costs = [0]
        self.count = 0
        self.cost = 0

    def insert(self, rank: int, cost: int, item: T) -> None:
        """Add an item. Raises `ValueError` when the rank is taken."""
        g, b, at = self._locate(rank)
        group = self._groups[g]
        block = group.blocks[b]
        ranks = block.ranks
        if at < len(ranks) and ranks[at] == rank:
            raise ValueError(f"rank {rank} is taken: take its item out before it is put in again")
        if rank > group.lasts[b]:
            group.lasts[b] = rank
            self._lasts[g] = max(self._lasts[g], rank)
        ranks.insert(at, rank)
        block.costs.insert(at, cost)
        block.items.insert(at, item)
        self.count += 1
        self.cost += cost
        self._counts[g] += 1
        self._costs[g] += cost
        group.counts[b] += 1
        group.costs[b] += cost
        if len(ranks) > BLOCK_MAX:
            # Entries that come in order fill blocks to the brim instead of halving each.
            self._split_block(g, b, at if at == BLOCK_MAX else BLOCK_MAX // 2)

    def remove(self, rank: int) -> T:
        """Take an item out. Raises `KeyError` when there is none of that rank."""
        g, b, at = self._locate(rank)
        block = self._groups[g].blocks[b]
        if at == len(block.ranks) or block.ranks[at] != rank:
            raise KeyError(f"no item of rank {rank}: only what was put in can be taken out")
        return self._take(g, b, at)

    def pop_first(self) -> T:
        """Take the lowest item out. Raises `IndexError` when there is none."""
        if not self.count:
            raise IndexError("pop from an empty sequence")
        return self._take(0, 0, 0)

    def first(self) -> T | None:
        return self._groups[0].blocks[0].items[0] if self.count else None

    def last(self) -> T | None:
        return self._groups[-1].blocks[-1].items[-1] if self.count else None

    def count_before(self, rank: int) -> int:
        """How many entries are lower."""
        g, b, at = self._locate(rank)
        return _prefix(self._counts, g, self.count) + _prefix(self._groups[g].counts, b, self._counts[g]) + at

    def before(self, rank: int) -> tuple[int, int]:
        """(count, cost) of the entries that are lower."""
        g, b, at = self._locate(rank)
        group = self._groups[g]
        count = _prefix(self._counts, g, self.count) + _prefix(group.counts, b, self._counts[g]) + at
        cost = _prefix(self._costs, g, self.cost) + _prefix(group.costs, b, self._costs[g])
        return count, cost + group.blocks[b].cost_before(at, group.costs[b])

    def pick(self, places: list[int]) -> list[tuple[T, int]]:
        """The items at these ascending places, each with the cost up to and including it."""
        picked: list[tuple[T, int]] = []
        g = b = count = cost = count_in = cost_in = 0
        for place in places:
            while count + self._counts[g] <= place:
                count += self._counts[g]
                cost += self._costs[g]
                g += 1
                b = count_in = cost_in = 0
            group = self._groups[g]
            while count + count_in + group.counts[b] <= place:
                count_in += group.counts[b]
                cost_in += group.costs[b]
                b += 1
            block = group.blocks[b]
            at = place - count - count_in
            picked.append((block.items[at], cost + cost_in + block.cost_before(at + 1, group.costs[b])))
        return picked

    def head(self, most: int) -> list[T]:
        """The first `most` items."""
        found: list[T] = []
        for group in self._groups:
            for block in group.blocks:
                if len(found) >= most:
                    return found
                found.extend(block.items[: most - len(found)])
        return found

    def _locate(self, rank: int) -> tuple[int, int, int]:
        """Group, block and place in the block of the first entry that is not lower."""
        g = bisect_left(self._lasts, rank)
        if g == len(self._lasts):
            g -= 1
        group = self._groups[g]
        b = bisect_left(group.lasts, rank)
        if b == len(group.lasts):
            b -= 1
        return g, b, bisect_left(group.blocks[b].ranks, rank)

    def _take(self, g: int, b: int, at: int) -> T:
        group = self._groups[g]
        block = group.blocks[b]
        del block.ranks[at]
        cost = block.costs.pop(at)
        item = block.items.pop(at)
        self.count -= 1
        self.cost -= cost
        self._counts[g] -= 1
        self._costs[g] -= cost
        group.counts[b] -= 1
        group.costs[b] -= cost
        if len(block.ranks) < BLOCK_MIN and (len(group.blocks) > 1 or len(self._groups) > 1):
            self._shrink(g, b)
        return item

    def _split_block(self, g: int, b: int, cut: int) -> None:
        group = self._groups[g]
        block = group.blocks[b]
        right = _Block(block.ranks[cut:], block.costs[cut:], block.items[cut:])
        del block.ranks[cut:], block.costs[cut:], block.items[cut:]
        cost = sum(right.costs)
        group.blocks.insert(b + 1, right)
        group.lasts.insert(b, block.ranks[-1])
        group.counts[b : b + 1] = [cut, len(right.ranks)]
        group.costs[b : b + 1] = [group.costs[b] - cost, cost]
        if len(group.blocks) > GROUP_MAX:
            self._split_group(g, b + 1 if b + 1 == GROUP_MAX else GROUP_MAX // 2)

    def _split_group(self, g: int, cut: int) -> None:
        group = self._groups[g]
        right = _Group(group.blocks[cut:], group.lasts[cut:], group.counts[cut:], group.costs[cut:])
        del group.blocks[cut:], group.lasts[cut:], group.counts[cut:], group.costs[cut:]
        self._groups.insert(g + 1, right)
        self._lasts.insert(g, group.lasts[-1])
        self._counts[g : g + 1] = [sum(group.counts), sum(right.counts)]
        self._costs[g : g + 1] = [sum(group.costs), sum(right.costs)]

    def _shrink(self, g: int, b: int) -> None:
        """Let a small block go into a neighbour, and its group likewise, so that removals leave no trace."""
        group = self._groups[g]
        counts = group.counts
        if len(counts) > 1:
            left = _pair(counts, b, BLOCK_JOINED_MAX if counts[b] else BLOCK_MAX)
            if left < 0:
                return
            into, rest = group.blocks[left], group.blocks.pop(left + 1)
            into.ranks += rest.ranks
            into.costs += rest.costs
            into.items += rest.items
            counts[left] += counts.pop(left + 1)
            group.costs[left] += group.costs.pop(left + 1)
            del group.lasts[left]
        if not self._counts[g]:
            del self._groups[g], self._lasts[g], self._counts[g], self._costs[g]
        elif len(counts) < GROUP_MIN:
            self._shrink_group(g)

    def _shrink_group(self, g: int) -> None:
        left = _pair([len(group.blocks) for group in self._groups], g, GROUP_JOINED_MAX)
        if left < 0:
            return
        into, rest = self._groups[left], self._groups.pop(left + 1)
        into.blocks += rest.blocks
        into.lasts += rest.lasts
        into.counts += rest.counts
        into.costs += rest.costs
        self._counts[left] += self._counts.pop(left + 1)
        self._costs[left] += self._costs.pop(left + 1)
        del self._lasts[left]


def _pair(sizes: list[int], n: int, most: int) -> int:
    """The left one of part `n` and a neighbour that are small enough to be one; -1 when there is none."""
    if n + 1 < len(sizes) and sizes[n] + sizes[n + 1] <= most:
        return n
    return n - 1 if n and sizes[n - 1] + sizes[n] <= most else -1


def _prefix(values: list[int], upto: int, total: int) -> int:
    """Sum of the first `upto` values, read from the shorter side."""
    return sum(values[:upto]) if upto * 2 <= len(values) else total - sum(values[upto:])
