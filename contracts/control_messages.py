"""Channel messages about pools: ingress to scheduler, and scheduler to pool manager."""

from contracts.base import Frame
from contracts.control import Capabilities, PoolHealth, ReplicaSetStatus
from contracts.pools import (
    NodesSeen,
    OrderReplica,
    ReplicaGone,
    ReplicaOrder,
    ReplicaPlaced,
    ReplicaUnplaced,
    RetireReplica,
)

# ------------------------------------------------------------- ingress and scheduler


class GetPoolHealth(Frame, frozen=True, gc=False):
    """Ask how a pool is; answered by `PoolHealthReport`."""

    req: int
    pool_id: str


class PoolHealthReport(Frame, frozen=True, gc=False):
    req: int
    health: PoolHealth


class GetReplicaSets(Frame, frozen=True, gc=False):
    req: int


class ReplicaSetsReport(Frame, frozen=True, gc=False):
    req: int
    sets: list[ReplicaSetStatus]


class GetCapabilities(Frame, frozen=True, gc=False):
    req: int


class CapabilitiesReport(Frame, frozen=True, gc=False):
    req: int
    capabilities: Capabilities


class DrainPool(Frame, frozen=True, gc=False):
    """These four are answered by `Done` once taken on, or by `Failed`."""

    req: int
    pool_id: str
    deadline_ms: int


class ReloadPool(Frame, frozen=True, gc=False):
    req: int
    pool_id: str
    model_ref: str
    canary_percent: int | None = None


class PromotePool(Frame, frozen=True, gc=False):
    req: int
    pool_id: str


class RollbackPool(Frame, frozen=True, gc=False):
    req: int
    pool_id: str


PoolRequest = DrainPool | ReloadPool | PromotePool | RollbackPool

# ------------------------------------------------------------- scheduler and manager


class Orders(Frame, frozen=True, gc=False):
    """All replicas that are to exist; sent to a manager that connects. `OrderReplica`, `RetireReplica` follow."""

    orders: tuple[ReplicaOrder, ...]


FromManager = NodesSeen | ReplicaPlaced | ReplicaUnplaced | ReplicaGone
ToManager = Orders | OrderReplica | RetireReplica
