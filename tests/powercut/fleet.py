"""Replicas without Ray: the pool manager's fleet, kept by the manager's own process on engines that say `mock`."""

import asyncio
from typing import Any, Final

from msgspec.structs import replace

from adapters.mock.adapter import MockAdapter
from adapters.mock.faults import MockFaults
from contracts.engine import EngineSpec
from contracts.pools import NodeInfo, ReplicaOrder
from orchestrator.cluster.fleet import name_of
from orchestrator.cluster.replica_host import ReplicaHost
from orchestrator.cluster.scheduler_link import Locate

NODE: Final = "here"
TOKEN_MS: Final = 2
SPEC: Final = EngineSpec(
    engine="llamacpp",
    pool_id="pool",
    replica_id="",
    model="m",
    model_path="",
    ctx=2048,
    slots=4,
    accelerator="cpu-dev",
)


class LocalActor:
    """A replica that runs as a task of this process; `run.remote()` ends when it does."""

    def __init__(self, host: ReplicaHost) -> None:
        self.task = asyncio.create_task(host.run())
        self.run = self

    async def remote(self) -> None:
        await asyncio.wait({self.task})


class LocalFleet:
    """One node with room for everything. What it made goes with its process."""

    def __init__(self, secret: bytes, locate: Locate) -> None:
        self._secret = secret
        self._locate = locate
        self._actors: dict[str, LocalActor] = {}

    async def nodes(self) -> tuple[NodeInfo, ...]:
        return (NodeInfo(NODE),)

    async def existing(self) -> set[str]:
        return set(self._actors)

    async def reserve(self, order: ReplicaOrder, nodes: tuple[NodeInfo, ...]) -> Any:  # noqa: ARG002
        return name_of(order)

    async def placed_on(self, group: Any) -> tuple[str, str]:  # noqa: ARG002
        return NODE, ""

    async def start(self, order: ReplicaOrder, group: Any, node_id: str) -> LocalActor:
        actor = self._actors.get(group)
        if actor is None:
            spec = replace(SPEC, replica_id=order.replica_id, incarnation=order.incarnation)
            host = ReplicaHost(spec, _engine, self._secret, self._locate, node_id, "127.0.0.1")
            actor = self._actors[group] = LocalActor(host)
        return actor

    def is_unavailable(self, error: Exception) -> bool:  # noqa: ARG002
        return False

    async def end(self, name: str) -> None:
        actor = self._actors.pop(name, None)
        if actor is not None:
            actor.task.cancel()
            await asyncio.gather(actor.task, return_exceptions=True)


def _engine(spec: EngineSpec) -> MockAdapter:
    return MockAdapter(spec, MockFaults(token_ms=TOKEN_MS))
