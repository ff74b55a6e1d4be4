"""Replicas and the index that finds the least loaded Ready one (ORCH-3008, ORCH-3010, ORCH-3091, OC-CORE-1010, 1012).

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
#: How many replicas are looked at, least loaded first, for one that suits a task.
CANDIDATES_MAX: Final = 8
#: KV pressure counts in steps of this many thousandths, so that small changes do not reorder replicas.
PRESSURE_STEP_PERMILLE: Final = 125

#: aside: Ready, but takes no new task, because its lease ran out or it is being drained.
ReplicaState = Literal["loading", "ready", "aside", "unready"]
SlotKey = tuple[str, int]
LoadEntry = tuple[int, int, int, int, int, int, "Replica"]


class Replica:
    """One registered replica.

    `busy` maps (task_id, attempt) to the task for each occupied slot; `measuring` holds the tasks whose
    prompts it counts. `kv_reserved` sums the KV tokens that its attempts may need. `since_ns` is when it
    began to load. `version` counts changes of load.
    """

    __slots__ = (
        "busy",
        "home",
        "index",
        "info",
        "kv_capacity",
        "kv_reserved",
        "measuring",
        "pool_id",
        "pressure",
        "reason",
        "replica_id",
        "sequence",
        "since_ns",
        "slots",
        "state",
        "version",
    )

    def __init__(self, replica_id: str, pool_id: str, home: ReplicaSet, sequence: int, since_ns: int) -> None:
        self.replica_id = replica_id
        self.pool_id = pool_id
        self.home = home
        self.index: ReplicaIndex = home.canaries.index_of_pool[pool_id]
        self.sequence = sequence
        self.since_ns = since_ns
        self.state: ReplicaState = "loading"
        self.reason = ""
        self.info: ReplicaInfo | None = None
        #: Attempts that it runs at once; 0 unless Ready.
        self.slots = 0
        self.kv_capacity = 0
        self.kv_reserved = 0
        self.pressure = 0
        self.busy: dict[SlotKey, TaskRecord] = {}
        self.measuring: dict[str, TaskRecord] = {}
        self.version = 0

    def came_up(self, info: ReplicaInfo) -> None:
        """Its engine is ready, with nothing running."""
        self.info = info
        self.slots = info.slots
        self.kv_capacity = info.kv_tokens or info.slots * info.ctx
        self.kv_reserved = 0
        self.pressure = 0

    def went_down(self) -> None:
        """Its engine is gone; `busy` and `measuring` are the caller's to deal with."""
        self.info = None
        self.slots = 0

    def has_room(self, kv_tokens: int) -> bool:
        """Whether a slot is free and its KV cache can hold `kv_tokens` more."""
        return len(self.busy) < self.slots and self.kv_reserved + kv_tokens <= self.kv_capacity

    def takes(self, record: TaskRecord) -> bool:
        """Whether a task may start on it now: it has room, and a suspect finds no other suspect there."""
        return self.has_room(record.kv_tokens) and (not record.crashes or self.suspect() is None)

    def suspect(self) -> TaskRecord | None:
        """The task that runs on it of which engines crashed before; at most one does, so that a crash convicts it."""
        for (_, attempt), record in self.busy.items():
            if record.crashes and record.replica is self and record.attempt == attempt:
                return record
        return None


class ReplicaIndex:
    """Ready replicas by load: the fraction of slots or KV taken, then KV pressure, then distance.

    Busy slots and the order of registration break what ties are left.
    """

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
        """A replica takes tasks from now on."""
        self._ready[replica.replica_id] = replica
        self.slots += replica.slots
        self.free_slots += replica.slots - len(replica.busy)
        self.changed(replica)

    def remove(self, replica: Replica) -> None:
        """A replica takes no more tasks; what it is running is the caller's to deal with."""
        del self._ready[replica.replica_id]
        self.slots -= replica.slots
        self.free_slots -= replica.slots - len(replica.busy)
        replica.version += 1

    def take(self, replica: Replica, key: SlotKey, record: TaskRecord) -> None:
        """Occupy a slot. The caller made sure that one is free."""
        assert len(replica.busy) < replica.slots, f"replica {replica.replica_id} has no free slot"
        replica.busy[key] = record
        replica.kv_reserved += record.kv_tokens
        self.free_slots -= 1
        self.changed(replica)

    def release(self, replica: Replica, key: SlotKey) -> None:
        """Free an occupied slot."""
        replica.kv_reserved -= replica.busy.pop(key).kv_tokens
        if replica.state == "ready":
            self.free_slots += 1
            self.changed(replica)

    def least_loaded(self) -> Replica | None:
        """The Ready replica with the lowest load, whether or not it has a free slot.

        It has one whenever any replica has: a full replica sorts behind all others.
        """
        heap = self._heap
        while heap:
            entry = heap[0]
            # Removing counts as a change of load, so a removed replica has no current entry.
            if entry[5] == entry[6].version:
                return entry[6]
            heappop(heap)
        return None

    def candidates(self) -> list[Replica]:
        """Up to `CANDIDATES_MAX` replicas with a free slot, least loaded first."""
        found: list[LoadEntry] = []
        while len(found) < CANDIDATES_MAX and self._heap:
            entry = heappop(self._heap)
            if entry[5] != entry[6].version:
                continue
            found.append(entry)
            if entry[0] >= FULL:
                break
        for entry in found:
            heappush(self._heap, entry)
        return [entry[6] for entry in found if entry[0] < FULL]

    def changed(self, replica: Replica) -> None:
        """The load of a replica is another one than before."""
        replica.version += 1
        heappush(self._heap, _entry(replica))
        if len(self._heap) > 2 * len(self._ready) + STALE_MAX:
            self._heap = [_entry(each) for each in self._ready.values()]
            heapify(self._heap)


def _entry(replica: Replica) -> LoadEntry:
    busy = len(replica.busy)
    info = replica.info
    distance = info.distance if info is not None else 0
    return (load(replica), replica.pressure, distance, busy, replica.sequence, replica.version, replica)


def load(replica: Replica) -> int:
    """The larger of the fractions of slots and of KV tokens taken; `FULL` without a free slot."""
    busy = len(replica.busy)
    if busy >= replica.slots:
        return FULL
    by_slots = busy * FULL // replica.slots
    by_kv = replica.kv_reserved * FULL // replica.kv_capacity
    return min(FULL - 1, max(by_slots, by_kv))


def has_room_for(home: ReplicaSet, record: TaskRecord) -> bool:
    """Whether a replica of the task's side has a slot and the KV for it now."""
    index = home.canaries.index_for(record.task.session_id)
    first = index.least_loaded()
    if first is None:
        return False
    return first.takes(record) or any(each.takes(record) for each in index.candidates())
