"""Pools as the core decides about them: nodes, orders for replicas, faults, and what is asked of a pool.

A pool keeps replicas of one engine and one model. The core orders replicas and engine launches, the pool
manager and the replicas carry them out and report. An order is known by its replica id and `incarnation`,
which grows each time that the replica's actor has to be made anew: reports of an older one are dropped.
"""

from typing import Literal

from msgspec import Struct

from contracts.base import Command, Event
from contracts.errors import ErrorInfo

#: Why a replica does not serve.
#: exit: the engine's process ended; killed: somebody else ended it (SIGKILL, SIGTERM); stuck: it stopped answering;
#: launch: it did not come up or failed its self-test; model: the model's file is missing, unreadable or another
#: one; headroom: too little free memory; mask: GPUs of the mask are absent or held by others; vram_oom, host_oom:
#: memory ran out; driver: CUDA or driver error, driver reset; ecc, xid, gpu_lost: told by the GPU; actor, node: they
#: died; lease: it ran out; refused: unlike its set.
FaultKind = Literal[
    "exit",
    "killed",
    "stuck",
    "launch",
    "model",
    "headroom",
    "mask",
    "vram_oom",
    "host_oom",
    "driver",
    "ecc",
    "xid",
    "gpu_lost",
    "actor",
    "node",
    "lease",
    "refused",
]


class NodeInfo(Struct, frozen=True):
    """A live node as Ray tells of it: how many GPUs it has (numbered from 0) and where it stands."""

    node_id: str
    gpus: int = 0
    zone: str = ""
    accelerator_type: str = ""


class ReplicaOrder(Struct, frozen=True):
    """One replica that is to exist: which model, on which node (empty: wherever Ray finds room), on which GPUs."""

    replica_id: str
    incarnation: int
    pool_id: str
    model_ref: str
    node_id: str = ""
    devices: tuple[int, ...] = ()


# -------------------------------------------------------------------------- events


class NodesSeen(Event, frozen=True, gc=False):
    """All live nodes; told when the manager connects and whenever they change."""

    nodes: tuple[NodeInfo, ...]


class ReplicaPlaced(Event, frozen=True, gc=False):
    """Ray gave an ordered replica its resources on a node, and its actor is being started there."""

    replica_id: str
    incarnation: int
    node_id: str


class ReplicaUnplaced(Event, frozen=True, gc=False):
    """Ray has no room for an ordered replica (yet); `reason` says what is missing."""

    replica_id: str
    incarnation: int
    reason: str


class ReplicaGone(Event, frozen=True, gc=False):
    """The actor of an ordered replica is dead, or its node is."""

    replica_id: str
    incarnation: int
    kind: FaultKind
    reason: str


class ReplicaFaulted(Event, frozen=True, gc=False):
    """A replica still serves, but must be given a new engine soon: its GPU or driver told of an error (ORCH-3038)."""

    replica_id: str
    kind: FaultKind
    reason: str


class LeaseRenewed(Event, frozen=True, gc=False):
    """A replica is alive and its event loop runs."""

    replica_id: str


class DrainRequested(Event, frozen=True, gc=False):
    """Someone asked for a pool to be emptied within `deadline_ms` and stopped; answered by `AnswerControl`."""

    request: int
    pool_id: str
    deadline_ms: int


class ReloadRequested(Event, frozen=True, gc=False):
    """Someone asked for a pool to serve another model; answered by `AnswerControl` at once.

    With `canary_percent` the new replicas take that share of the sessions until promoted or rolled back.
    """

    request: int
    pool_id: str
    model_ref: str
    canary_percent: int | None = None


class PromoteRequested(Event, frozen=True, gc=False):
    """Someone asked for a pool's canary to take over; answered by `AnswerControl`."""

    request: int
    pool_id: str


class RollbackRequested(Event, frozen=True, gc=False):
    """Someone asked for a pool's last reload to be undone; answered by `AnswerControl`."""

    request: int
    pool_id: str


PoolEvent = (
    NodesSeen
    | ReplicaPlaced
    | ReplicaUnplaced
    | ReplicaGone
    | ReplicaFaulted
    | LeaseRenewed
    | DrainRequested
    | ReloadRequested
    | PromoteRequested
    | RollbackRequested
)

# ------------------------------------------------------------------------ commands


class OrderReplica(Command, frozen=True, gc=False):
    """Have a replica exist; an older incarnation of it is to be ended first."""

    order: ReplicaOrder


class RetireReplica(Command, frozen=True, gc=False):
    """End a replica and give its resources back."""

    replica_id: str
    incarnation: int


class LaunchEngine(Command, frozen=True, gc=False):
    """Have a replica bring its engine up, ending the one it has; it reports Loading, then Ready or Unready.

    `slots` is what it may serve at once: fewer than configured after its GPU ran out of memory (ORCH-3039).
    """

    replica_id: str
    slots: int


class AnswerControl(Command, frozen=True, gc=False):
    """Answer a request about a pool: taken on, or refused with `error`."""

    request: int
    error: ErrorInfo | None = None


PoolChange = Literal[
    "ordered",
    "retired",
    "restart",
    "breaker_open",
    "breaker_closed",
    "lease_lapsed",
    "lease_renewed",
    "capacity_reduced",
    "scaled_up",
    "scaled_down",
    "drain_started",
    "drained",
    "reload_started",
    "canary_started",
    "reload_done",
    "rolled_back",
]


class NotePool(Command, frozen=True, gc=False):
    """Log and count a decision about a pool; `kind` is the fault that led to it, where one did."""

    pool_id: str
    change: PoolChange
    reason: str
    replica_id: str = ""
    kind: FaultKind | None = None

    @property
    def why(self) -> str:
        return self.reason


PoolCommand = OrderReplica | RetireReplica | LaunchEngine | AnswerControl | NotePool
