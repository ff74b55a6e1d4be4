"""Replicas and the index that finds the least loaded Ready one (ORCH-3010, OC-CORE-1010, 1012).

The index is a heap keyed by load. A change of load pushes a new entry and makes the old one
stale; stale entries are dropped when they surface and swept when they outnumber the replicas.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Literal

from contracts.tasks import ReplicaInfo

if TYPE_CHECKING:
    from orchestrator.core.records import TaskRecord
    from orchestrator.core.replica_set import ReplicaSet

#: Load of a replica without a free slot; lower loads are fractions of it.
FULL: Final = 1 << 32
STALE_MAX: Final = 64

ReplicaState = Literal["loading", "ready", "unready"]
SlotKey = tuple[str, int]
LoadEntry = tuple[int, int, int, int, "Replica"]


class Replica:
    """One registered replica.

    `busy` maps (task_id, attempt) to the task for each occupied slot; `measuring` holds the tasks whose
    prompts it counts. `since_ns` is when it began to load. `version` counts changes of load.
    """

    __slots__ = (
        "busy",
        "home",
        "info",
        "measuring",
        "pool_id",
        "reason",
        "replica_id",
        "sequence",
        "since_ns",
        "state",
        "version",
    )

    def __init__(self, replica_id: str, pool_id: str, home: ReplicaSet, sequence: int, since_ns: int) -> None:
        self.replica_id = replica_id
        self.pool_id = pool_id
        self.home = home
        self.sequence = sequence
        self.since_ns = since_ns
        self.state: ReplicaState = "loading"
        self.reason = ""
        self.info: ReplicaInfo | None = None
        self.busy: dict[SlotKey, TaskRecord] = {}
        self.measuring: dict[str, TaskRecord] = {}
        self.version = 0

    @property
    def slots(self) -> int:
        """Attempts that it runs at once; 0 unless Ready."""
        return self.info.slots if self.info is not None else 0


class ReplicaIndex:
    """The Ready replicas of one set, by load: busy fraction, then busy slots, then order of registration."""

    def __init__(self) -> None:
        self._ready: dict[str, Replica] = {}
        self._heap: list[LoadEntry] = []
        self.slots = 0
        self.free_slots = 0

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def heap_size(self) -> int:
        """Entries on the heap, stale ones included."""
        return len(self._heap)

    def replicas(self) -> list[Replica]:
        """All Ready replicas; O(n), for checks."""
        return list(self._ready.values())

    def add(self, replica: Replica) -> None:
        """A replica became Ready, with all its slots free."""
        self._ready[replica.replica_id] = replica
        self.slots += replica.slots
        self.free_slots += replica.slots
        self._changed(replica)

    def remove(self, replica: Replica) -> None:
        """A replica is not Ready any more; what it was running must be dealt with by the caller."""
        del self._ready[replica.replica_id]
        self.slots -= replica.slots
        self.free_slots -= replica.slots - len(replica.busy)
        replica.version += 1

    def take(self, replica: Replica, key: SlotKey, record: TaskRecord) -> None:
        """Occupy a slot. The caller got `replica` from `least_loaded`, so one is free."""
        assert len(replica.busy) < replica.slots, f"replica {replica.replica_id} has no free slot"
        replica.busy[key] = record
        self.free_slots -= 1
        self._changed(replica)

    def release(self, replica: Replica, key: SlotKey) -> None:
        """Free an occupied slot."""
        del replica.busy[key]
        self.free_slots += 1
        self._changed(replica)

    def least_loaded(self) -> Replica | None:
        """The Ready replica with the lowest load, whether or not it has a free slot.

        It has one whenever any replica has: a full replica sorts behind all others.
        """
        while self._heap:
            entry = self._heap[0]
            if self._is_current(entry):
                return entry[4]
            heappop(self._heap)
        return None

    def _changed(self, replica: Replica) -> None:
        replica.version += 1
        heappush(self._heap, self._entry(replica))
        if len(self._heap) > 2 * len(self._ready) + STALE_MAX:
            self._heap = [self._entry(each) for each in self._ready.values()]
            heapify(self._heap)

    @staticmethod
    def _entry(replica: Replica) -> LoadEntry:
        busy = len(replica.busy)
        return (busy * FULL // replica.slots, busy, replica.sequence, replica.version, replica)

    @staticmethod
    def _is_current(entry: LoadEntry) -> bool:
        # Removing counts as a change of load, so a removed replica has no current entry.
        return entry[3] == entry[4].version
