"""The Ray actors of replicas and the pool manager, and the end of all. Thin wrappers only.

`max_task_retries=0` everywhere: Ray would otherwise run an interrupted call again and report
success, which is wrong for anything that is not idempotent.
"""

import asyncio
import contextlib
import os
import threading
from typing import Any, Final

import ray
import structlog
from ray import PlacementGroupID
from ray.util import get_node_ip_address, list_named_actors, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from contracts.engine import AdapterFactory, EngineSpec
from orchestrator.cluster import logs
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.locating import MANAGER, NAMESPACE, SCHEDULER, STANDBY, locate_scheduler, node_id, only_one
from orchestrator.cluster.pool_manager import PoolManager
from orchestrator.cluster.replica_host import ReplicaHost
from orchestrator.cluster.terminating import when_terminated

log = structlog.get_logger(__name__)

#: Placement groups of replicas begin with this.
GROUP_PREFIX: Final = "llorch-"
STOP_TIMEOUT_S: Final = 10.0
#: How long attempts may go on in a replica whose process is asked to end.
FINISH_S: Final = 10.0


class ReplicaActor:
    """Owns one engine process for as long as it lives."""

    def __init__(self, spec: EngineSpec, make_adapter: AdapterFactory, secret: bytes) -> None:
        logs.configure()
        if spec.accelerator == "cpu-dev":
            log.warning("replica.cpu_dev", replica_id=spec.replica_id, note="development carve-out (ORCH-1101)")
        self._spec = spec
        self._make_adapter = make_adapter
        self._secret = secret
        self._host: ReplicaHost | None = None
        self._running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until stopped; whoever calls it again waits for the same end. Readiness is told to the scheduler."""
        if self._running is None:
            self._host = ReplicaHost(
                self._spec, self._make_adapter, self._secret, locate_scheduler, node_id(), get_node_ip_address()
            )
            self._running = asyncio.create_task(self._host.run())
            when_terminated(self._finish)
        # A manager that is gone cancels its call, not the replica.
        await asyncio.wait({self._running})
        if not self._running.cancelled() and (crashed := self._running.exception()) is not None:
            log.error("replica.crashed", exc_info=crashed)
            raise crashed.exceptions[0] if isinstance(crashed, BaseExceptionGroup) else crashed

    async def stop(self) -> None:
        """End the engine process and all connections."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _finish(self) -> None:
        """What runs may end; what does not goes on elsewhere."""
        assert self._host is not None
        await self._host.finish(FINISH_S)
        await self.stop()


class PoolManagerActor:
    """Runs the pool manager from its birth on: after a restart nobody would call it."""

    def __init__(self, fleet: Fleet, secret: bytes) -> None:
        logs.configure()
        self._fleet = fleet
        self._secret = secret
        threading.Thread(target=self._manage, name="pool-manager", daemon=True).start()

    def _manage(self) -> None:
        try:
            asyncio.run(PoolManager(self._fleet, self._secret, locate_scheduler, node_id()).run())
        except BaseException:
            log.exception("manager.crashed")
        os._exit(1)  # Ray starts it again

    def pid(self) -> int:
        """The process it runs in."""
        return os.getpid()


def start_manager(fleet: Fleet, secret: bytes) -> Any:
    """Start the pool manager, which connects to the scheduler by itself."""
    actor = ray.remote(PoolManagerActor).options(**only_one(MANAGER), get_if_exists=True).remote(fleet, secret)
    ray.get(actor.pid.remote(), timeout=60)
    return actor


def groups() -> list[tuple[str, PlacementGroup]]:
    """(name, placement group) of all replicas. By the table: Ray finds groups by name in one job's namespace only."""
    return [
        (group["name"], PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))
        for group_id, group in placement_group_table().items()
        if group["state"] != "REMOVED" and group["name"].startswith(GROUP_PREFIX)
    ]


def groups_named(name: str) -> list[PlacementGroup]:
    """The placement groups of that name; there should be one at most."""
    return [group for each, group in groups() if each == name]


def end_all() -> bool:
    """End the pool manager, replicas with their engines, then the scheduler's actors; false if there was nothing."""
    found = _kill(MANAGER)  # first, or it would bring back what ends
    names = [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    stopping = []
    for name in names:
        with contextlib.suppress(ValueError):  # it died meanwhile
            if name not in (MANAGER, SCHEDULER, STANDBY):
                stopping.append(ray.get_actor(name, namespace=NAMESPACE).stop.remote())
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(stopping, timeout=STOP_TIMEOUT_S)
    for name in names:
        found = _kill(name) or found
    for _, group in groups():
        remove_placement_group(group)
    return found


def _kill(name: str) -> bool:
    """Kill an actor; false if there is none of that name."""
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    except ValueError:
        return False
    return True
