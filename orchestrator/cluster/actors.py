"""The Ray actors: names, lifetimes, and how the others find the scheduler. Thin wrappers only.

`max_task_retries=0` everywhere: Ray would otherwise run an interrupted call again and report
success, which is wrong for anything that is not idempotent.
"""

import asyncio
import gc
from typing import Any, Final

import ray
import structlog
from ray.util import get_node_ip_address

from contracts.engine import AdapterFactory, EngineSpec
from contracts.messages import Endpoint
from contracts.policies import SchedulerConfig
from orchestrator.cluster import logs
from orchestrator.cluster.connection import ChannelError
from orchestrator.cluster.replica_host import ReplicaHost
from orchestrator.cluster.scheduler_service import SchedulerService

log = structlog.get_logger(__name__)

NAMESPACE: Final = "llorch"
SCHEDULER: Final = "scheduler"
#: Objects made between two collections of the scheduler process, by generation.
GC_THRESHOLDS: Final = (50_000, 20, 100)


def node_id() -> str:
    return ray.get_runtime_context().get_node_id()  # type: ignore[no-any-return]


class SchedulerActor:
    """The one scheduler of the cluster; listens from its first `endpoint` call on."""

    def __init__(self, config: SchedulerConfig, secret: bytes) -> None:
        logs.configure()
        self._config = config
        self._secret = secret
        self._starting: asyncio.Task[Endpoint] | None = None

    async def endpoint(self) -> Endpoint:
        if self._starting is None:
            # Made here and not in __init__: the service belongs to the actor's event loop.
            service = SchedulerService(self._config, self._secret)
            # What was loaded by now stays, and the core makes no cycles: full collections would only pause it.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            self._starting = asyncio.create_task(service.start(node_id(), get_node_ip_address()))
        return await asyncio.shield(self._starting)


class ReplicaActor:
    """Owns one engine process for as long as it lives."""

    def __init__(self, spec: EngineSpec, make_adapter: AdapterFactory, secret: bytes) -> None:
        logs.configure()
        if spec.accelerator == "cpu-dev":
            log.warning("replica.cpu_dev", replica_id=spec.replica_id, note="development carve-out (ORCH-1101)")
        self._spec = spec
        self._make_adapter = make_adapter
        self._secret = secret
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve; returns at once, readiness is reported to the scheduler."""
        if self._running is None:
            host = ReplicaHost(
                self._spec, self._make_adapter, self._secret, locate_scheduler, node_id(), get_node_ip_address()
            )
            self._running = asyncio.create_task(host.run())

    async def stop(self) -> None:
        """End the engine process and all connections."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


def start_scheduler(config: SchedulerConfig, secret: bytes) -> Any:
    """Start the scheduler actor and wait until it listens."""
    actor = (
        ray.remote(SchedulerActor)
        .options(
            name=SCHEDULER,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1000,
            num_cpus=0,
        )
        .remote(config, secret)
    )
    ray.get(actor.endpoint.remote(), timeout=60)
    return actor


async def locate_scheduler() -> Endpoint:
    """Where the scheduler listens now. Raises ChannelError when it cannot be asked."""
    try:
        actor = ray.get_actor(SCHEDULER, namespace=NAMESPACE)
        endpoint: Endpoint = await actor.endpoint.remote()
    except (ValueError, ray.exceptions.RayError) as failed:
        raise ChannelError(f"the scheduler actor does not answer: {failed}") from failed
    return endpoint
