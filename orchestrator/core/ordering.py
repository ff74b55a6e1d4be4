"""The order of tasks within one waiting line (ORCH-3079, OC-CORE-1003).

A line is sorted by a key, ties by arrival. The key is what an ordering policy is: one pure function
of deadline and arrival. Earliest deadline first meets every deadline of the waiting tasks when any
order does (Jackson, "Scheduling a production line to minimize maximum tardiness", UCLA 1955).
Tasks that wait again keep their key, and so their place.
"""

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from contracts.policies import OrderingKind
from orchestrator.core.sorted_blocks import SortedBlocks

#: Arrival numbers are below 2**48, so that a key and one of them make a number that sorts like the two.
ORDER_BITS: Final = 48

#: (deadline_ns, arrival number) -> key
Ordering = Callable[[int, int], int]


def key_of_edf(deadline_ns: int, order: int) -> int:  # noqa: ARG001 - one signature for all orderings
    """Earliest deadline first."""
    return deadline_ns


def key_of_fifo(deadline_ns: int, order: int) -> int:  # noqa: ARG001 - one signature for all orderings
    """First in, first out."""
    return order


ORDERINGS: Final[dict[OrderingKind, Ordering]] = {"edf": key_of_edf, "fifo": key_of_fifo}


def ordering(kind: OrderingKind) -> Ordering:
    """The function that makes the keys of a set's tasks."""
    return ORDERINGS[kind]


class Waiting(Protocol):
    """What a line reads of a task; none of it may change while the task waits.

    `order` is the arrival number, unique in a line; `fresh` is true until the task is started once.
    """

    order: int
    key: int
    cost_tokens: int
    fresh: bool


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """Waiting tasks of one flow, in the order in which they start. Does not enforce a bound: admission does."""

    __slots__ = ("_arrivals", "_blocks")

    def __init__(self) -> None:
        self._blocks: SortedBlocks[W] = SortedBlocks()
        #: Fresh tasks by arrival: made when first asked for, kept until the line is empty.
        self._arrivals: SortedBlocks[W] | None = None

    def __len__(self) -> int:
        return self._blocks.count

    @property
    def cost_tokens(self) -> int:
        """Sum over the waiting tasks."""
        return self._blocks.cost

    def push(self, item: W) -> None:
        """Add a task. Raises `ValueError` when it waits already."""
        self._blocks.insert(item.key << ORDER_BITS | item.order, item.cost_tokens, item)
        if self._arrivals is not None and item.fresh:
            self._arrivals.insert(item.order, 0, item)

    def pop(self) -> W:
        """Take the task that starts next. Raises `IndexError` when the line is empty."""
        item = self._blocks.pop_first()
        if self._arrivals is not None:
            self._leave(item)
        return item

    def discard(self, item: W) -> None:
        """Take a waiting task out. Raises `KeyError` when it does not wait here."""
        self._blocks.remove(item.key << ORDER_BITS | item.order)
        if self._arrivals is not None:
            self._leave(item)

    def first(self) -> W | None:
        """The task that starts next."""
        return self._blocks.first()

    def last(self) -> W | None:
        """The task that starts last."""
        return self._blocks.last()

    def position(self, item: W) -> int:
        """How many tasks of this line start before this one."""
        return self._blocks.count_before(item.key << ORDER_BITS | item.order)

    def ahead(self, key: int, order: int) -> tuple[int, int]:
        """(tasks, cost tokens) that start before a task of this key and arrival, whether it waits or not."""
        return self._blocks.before(key << ORDER_BITS | order)

    def checkpoints(self, key: int, order: int, most: int = 8) -> list[tuple[W, int]]:
        """Up to `most` of the tasks that start after that place, evenly spread, the last one included.

        Each comes with the cost tokens up to and including it, from the front of the line.
        """
        # A task that waits at that very place is not behind it.
        ahead = self._blocks.count_before((key << ORDER_BITS | order) + 1)
        behind = self._blocks.count - ahead
        picks = min(most, behind)
        return self._blocks.pick([ahead + (n + 1) * behind // picks - 1 for n in range(picks)])

    def head(self, most: int) -> list[W]:
        """The first `most` tasks."""
        return self._blocks.head(most)

    def items(self) -> list[W]:
        """All tasks; O(n), for checks."""
        return self._blocks.head(self._blocks.count)

    def oldest_fresh(self) -> W | None:
        """The task that arrived first, of those that never started."""
        return self._by_arrival().first()

    def newest_fresh(self) -> W | None:
        """The task that arrived last, of those that never started."""
        return self._by_arrival().last()

    def _by_arrival(self) -> SortedBlocks[W]:
        arrivals = self._arrivals
        if arrivals is None:
            arrivals = SortedBlocks()
            for item in self.items():
                if item.fresh:
                    arrivals.insert(item.order, 0, item)
            # An empty line drops the index, so it must not gain one.
            if self._blocks.count:
                self._arrivals = arrivals
        return arrivals

    def _leave(self, item: W) -> None:
        if not self._blocks.count:
            self._arrivals = None
        elif item.fresh and self._arrivals is not None:
            self._arrivals.remove(item.order)
