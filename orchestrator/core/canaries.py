"""Which pools of a set may serve a session: canaries get a fixed share of the sessions (OC-CORE-1013).

A session stays on its side, so that what it sees does not change from turn to turn.
"""

from zlib import crc32

from contracts.policies import PoolPolicy
from orchestrator.core.placement import ReplicaIndex


class Canaries:
    """The indexes of one set: one for each canary pool, one for all the others."""

    def __init__(self, pools: tuple[PoolPolicy, ...]) -> None:
        self.main = ReplicaIndex()
        self.indexes: list[ReplicaIndex] = [self.main]
        self.index_of_pool: dict[str, ReplicaIndex] = {}
        #: (first percentile that is not this canary's, its index), ascending.
        self._bounds: list[tuple[int, ReplicaIndex]] = []
        bound = 0
        for pool in pools:
            if pool.canary_percent is None:
                self.index_of_pool[pool.pool_id] = self.main
                continue
            bound += pool.canary_percent
            index = ReplicaIndex()
            self.index_of_pool[pool.pool_id] = index
            self.indexes.append(index)
            self._bounds.append((bound, index))

    def index_for(self, session_id: str) -> ReplicaIndex:
        """The index that serves a session.

        A canary's sessions go to the others while it has no free slot; the others' go to a canary only
        when nothing else is Ready.
        """
        if not self._bounds:
            return self.main
        percentile = crc32(session_id.encode()) % 100
        for bound, index in self._bounds:
            if percentile < bound:
                if index.free_slots or not len(self.main):
                    return index
                break
        if len(self.main):
            return self.main
        return next((index for _, index in self._bounds if len(index)), self.main)
