"""A scheduler with managed pools on a hand-moved clock, and the moves of a fleet that carries out its orders."""

from collections.abc import Callable
from typing import Any

from contracts.policies import PoolPolicy, RestartPolicy, ScalingPolicy
from contracts.pools import (
    FaultKind,
    LaunchEngine,
    LeaseRenewed,
    NodeInfo,
    NodesSeen,
    NotePool,
    OrderReplica,
    ReplicaOrder,
)
from contracts.scheduling import AnyCommand, AnyEvent, ReplicaLoading, ReplicaLost, ReplicaReady, ReplicaUnready
from orchestrator.core.pools.records import Member, Pool
from tests.unit.core.core_kit import MS, Core, of, replica, replica_set

#: Without jitter, so that a test can tell the instant of a launch.
EXACT = RestartPolicy(jitter_percent=0)


def pool(pool_id: str = "pool-a", replicas: int = 2, **over: Any) -> PoolPolicy:
    """A managed pool on CPUs; `scaling` fields are given by `smallest`, `largest` and their own names."""
    smallest, largest = over.pop("smallest", replicas), over.pop("largest", replicas)
    waits = {name: over.pop(name) for name in ("target_wait_ms", "up_after_ms", "down_after_ms") if name in over}
    values: dict[str, Any] = {"accelerator": "cpu-dev", "model_ref": "small", "restart": EXACT}
    return PoolPolicy(pool_id, scaling=ScalingPolicy(smallest, largest, replicas, **waits), **{**values, **over})


def gpu_pool(pool_id: str = "pool-a", replicas: int = 2, devices: tuple[str, ...] = ("0",), **over: Any) -> PoolPolicy:
    return pool(pool_id, replicas, devices=devices, accelerator="gpu", **over)


def changes(commands: list[AnyCommand]) -> list[tuple[str, str]]:
    """(what changed, replica) of each note, in order."""
    return [(note.change, note.replica_id) for note in of(commands, NotePool)]


class Fleet(Core):
    """A scheduler under test, the orders that stand, and every launch with its time."""

    def __init__(self, *pools: PoolPolicy, nodes: tuple[NodeInfo, ...] = (NodeInfo("n0"),), **more: Any) -> None:
        self.orders: dict[str, ReplicaOrder] = {}
        self.launches: list[tuple[int, str, int]] = []
        super().__init__(replica_set(pools=pools or (pool(),), **more.pop("over", {})), **more)
        self.see(*nodes)

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        return self._hear(super().tell(event))

    def during(self, change: Callable[[], object]) -> list[AnyCommand]:
        """What follows from a change that is made within a step."""
        state = self.scheduler.state
        state.begin_step(self.now_ms * MS)
        change()
        return self._hear(list(state.out)) + self.tell(LeaseRenewed(""))

    def _hear(self, commands: list[AnyCommand]) -> list[AnyCommand]:
        for command in commands:
            if isinstance(command, OrderReplica):
                self.orders[command.order.replica_id] = command.order
            elif isinstance(command, LaunchEngine):
                self.launches.append((self.now_ms, command.replica_id, command.slots))
        return commands

    def see(self, *nodes: NodeInfo) -> list[AnyCommand]:
        return self.tell(NodesSeen(nodes))

    def come(self, replica_id: str) -> list[AnyCommand]:
        """The actor of the last order registers."""
        order = self.orders[replica_id]
        return self.tell(ReplicaLoading(replica_id, order.pool_id, order.incarnation))

    def ready(self, replica_id: str, **over: Any) -> list[AnyCommand]:
        order = self.orders[replica_id]
        info = replica(replica_id, **{"pool_id": order.pool_id, "node_id": order.node_id, **over})
        return self.tell(ReplicaReady(info))

    def up(self, *replica_ids: str, **over: Any) -> None:
        """Their actors register, and their engines come up."""
        for replica_id in replica_ids:
            self.come(replica_id)
            self.ready(replica_id, **over)

    def fail(self, replica_id: str, kind: FaultKind = "exit", reason: str = "it broke") -> list[AnyCommand]:
        return self.tell(ReplicaUnready(replica_id, reason, kind))

    def lose(self, replica_id: str) -> list[AnyCommand]:
        return self.tell(ReplicaLost(replica_id, "its connection ended"))

    # ------------------------------------------------------------------ reading

    def member(self, replica_id: str) -> Member:
        return self.scheduler.state.pools.members[replica_id]

    @property
    def members(self) -> list[str]:
        return list(self.scheduler.state.pools.members)

    def pool(self, pool_id: str = "pool-a") -> Pool:
        return self.scheduler.state.pools.by_id[pool_id]

    def home_ready(self) -> list[str]:
        return list(self.scheduler.state.sets[0].ready)
