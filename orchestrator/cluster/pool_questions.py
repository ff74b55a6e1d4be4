"""What an ingress asks the scheduler about pools, and has it do to them."""

from contracts import control_messages as wire
from contracts.control import Capabilities, DrainRequest, PoolHealth, ReloadRequest, ReplicaSetStatus
from contracts.messages import Done
from orchestrator.cluster.scheduler_link import SchedulerLink


class PoolQuestions:
    """Implements `contracts.gateway.PoolGateway` over a link to the scheduler, and numbers its questions."""

    def __init__(self, link: SchedulerLink) -> None:
        self._scheduler = link
        self._number = 0

    async def pool_health(self, pool_id: str) -> PoolHealth:
        req = self._next()
        return (await self._scheduler.ask(wire.GetPoolHealth(req, pool_id), req, wire.PoolHealthReport)).health

    async def drain_pool(self, pool_id: str, request: DrainRequest) -> None:
        req = self._next()
        await self._scheduler.ask(wire.DrainPool(req, pool_id, request.deadline_ms), req, Done)

    async def reload_pool(self, pool_id: str, request: ReloadRequest) -> None:
        req = self._next()
        question = wire.ReloadPool(req, pool_id, request.new_model_ref, request.canary_percent)
        await self._scheduler.ask(question, req, Done)

    async def promote_pool(self, pool_id: str) -> None:
        req = self._next()
        await self._scheduler.ask(wire.PromotePool(req, pool_id), req, Done)

    async def rollback_pool(self, pool_id: str) -> None:
        req = self._next()
        await self._scheduler.ask(wire.RollbackPool(req, pool_id), req, Done)

    async def replica_sets(self) -> list[ReplicaSetStatus]:
        req = self._next()
        return (await self._scheduler.ask(wire.GetReplicaSets(req), req, wire.ReplicaSetsReport)).sets

    async def capabilities(self) -> Capabilities:
        req = self._next()
        return (await self._scheduler.ask(wire.GetCapabilities(req), req, wire.CapabilitiesReport)).capabilities

    def _next(self) -> int:
        """A number that no other question of this ingress has."""
        self._number += 1
        return self._number
