"""Which pools of a set may serve a session: canaries get a fixed share of the sessions (OC-CORE-1013).

A session stays on its side, so that what it sees does not change from turn to turn.
"""

from zlib import crc32

from contracts.policies import PoolPolicy
from orchestrator.core.placement import ReplicaIndex


def percentile(session_id: str) -> int:
    """Where a session stands among all, 0 to 99; the same in every process."""
    return crc32(session_id.encode()) % 100


class Canaries:
    """The indexes of one set: one for each canary pool, one for all the others."""

    def __init__(self, pools: tuple[PoolPolicy, ...]) -> None:
        self.main = ReplicaIndex()
        self.indexes: list[ReplicaIndex] = [self.main]
        self.index_of_pool: dict[str, ReplicaIndex] = {}
        self._percents: dict[str, int] = {}
        #: (first percentile that is not this canary's, its index), ascending.
        self._bounds: list[tuple[int, ReplicaIndex]] = []
        for pool in pools:
            self.add(pool)

    def add(self, pool: PoolPolicy) -> None:
        """A pool joins the set."""
        if pool.canary_percent is None:
            self.index_of_pool[pool.pool_id] = self.main
            return
        index = self.index_of_pool[pool.pool_id] = ReplicaIndex()
        self.indexes.append(index)
        self._percents[pool.pool_id] = pool.canary_percent
        self._share_out()

    def remove(self, pool_id: str) -> None:
        """A pool leaves the set; it has no replica there any more."""
        index = self.index_of_pool.pop(pool_id)
        if self._percents.pop(pool_id, None) is not None:
            self.indexes.remove(index)
            self._share_out()

    def _share_out(self) -> None:
        bound = 0
        self._bounds.clear()
        for pool_id, percent in self._percents.items():
            bound += percent
            self._bounds.append((bound, self.index_of_pool[pool_id]))

    def index_for(self, session_id: str) -> ReplicaIndex:
        """The index that serves a session.

        A canary's sessions go to the others while it has no free slot; the others' go to a canary only
        when nothing else is Ready.
        """
        if not self._bounds:
            return self.main
        place = percentile(session_id)
        for bound, index in self._bounds:
            if place < bound:
                if index.free_slots or (len(index) and not len(self.main)):
                    return index
                break
        if len(self.main):
            return self.main
        return next((index for _, index in self._bounds if len(index)), self.main)
