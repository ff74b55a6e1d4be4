"""What the pool manager needs of the cluster under it: nodes, placement groups and replica actors."""

from typing import Any, Protocol

from contracts.pools import NodeInfo, ReplicaOrder


class Actor(Protocol):
    """A replica's actor: `run.remote()` ends when the replica does."""

    run: Any


class Fleet(Protocol):
    """Nodes, placement groups and replica actors. Names are those of `name_of`."""

    async def nodes(self) -> tuple[NodeInfo, ...]:
        """Live nodes, by id."""

    async def existing(self) -> set[str]:
        """Names of the groups that are there, whoever made them."""

    async def reserve(self, order: ReplicaOrder, nodes: tuple[NodeInfo, ...]) -> Any:
        """The replica's placement group: the one that is there, or a new one; off `nodes` if it names no node."""

    async def placed_on(self, group: Any) -> tuple[str, str]:
        """(node of a group, empty until it has one; what is said meanwhile)."""

    async def start(self, order: ReplicaOrder, group: Any, node_id: str) -> Actor:
        """The replica's actor: the one that is there, or a new one in its group."""

    def is_unavailable(self, error: Exception) -> bool:
        """Whether an actor only cannot be reached now, which is not its end."""

    async def end(self, name: str) -> None:
        """End a replica's actor, engine first, and give its resources back; fine if nothing is there."""


def name_of(order: ReplicaOrder) -> str:
    """Under which a replica's group and actor are found again."""
    return f"{order.replica_id}-{order.incarnation}"
