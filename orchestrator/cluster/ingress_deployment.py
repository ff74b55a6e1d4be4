"""The Serve deployment: the ASGI app for HTTP, and methods for Python callers with a handle.

What the ingress does with a request is injected (`make_frontend`); here is only what Serve and
the channel need.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from ray import serve

from contracts.gateway import Gateway
from orchestrator.cluster import logs
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.listener import SHUTDOWN_GRACE_S, Door, Listener
from orchestrator.cluster.locating import locate_scheduler, node_id
from orchestrator.cluster.terminating import when_terminated

#: Requests one ingress replica serves at a time through HAProxy, streams included.
ONGOING_REQUESTS_MAX = 10_000

#: What the listener's own grace and Serve's draining take together, and some more.
SHUTDOWN_TIMEOUT_S = 10


class Frontend(Protocol):
    """What the ingress offers over a gateway: an ASGI app and the same calls for Python."""

    asgi: Any

    async def submit(self, request: dict[str, Any], tenant: str) -> dict[str, Any]: ...

    def stream(self, task_id: str, tenant: str, after: int) -> AsyncIterator[dict[str, Any]]: ...

    async def cancel(self, task_id: str, tenant: str) -> None: ...

    async def status(self, task_id: str, tenant: str) -> dict[str, Any]: ...

    async def session(self, session_id: str, tenant: str) -> dict[str, Any]: ...

    async def close_session(self, session_id: str, tenant: str) -> None: ...

    async def pools(self) -> list[dict[str, Any]]: ...

    async def pool_health(self, pool_id: str) -> dict[str, Any]: ...

    async def drain(self, pool_id: str, deadline_ms: int) -> dict[str, Any]: ...

    async def reload(self, pool_id: str, new_model_ref: str, canary_percent: int | None = None) -> dict[str, Any]: ...

    async def promote(self, pool_id: str) -> dict[str, Any]: ...

    async def rollback(self, pool_id: str) -> dict[str, Any]: ...

    async def replica_sets(self) -> list[dict[str, Any]]: ...

    async def capabilities(self) -> dict[str, Any]: ...


MakeFrontend = Callable[[Gateway], Frontend]


class Ingress:
    """One ingress replica. Python callers reach the methods through a Serve handle:

    `handle = serve.get_app_handle("llorch")`, then `handle.submit.remote({...})`,
    `handle.options(stream=True).stream.remote(task_id)`, `handle.cancel.remote(task_id)`,
    `handle.status.remote(task_id)`, `handle.session.remote(session_id)` and
    `handle.close_session.remote(session_id)`; for operators `handle.pools.remote()`,
    `handle.pool_health.remote(pool_id)`, `handle.drain.remote(pool_id, deadline_ms)`,
    `handle.reload.remote(pool_id, new_model_ref)`, `handle.promote.remote(pool_id)`,
    `handle.rollback.remote(pool_id)`, `handle.replica_sets.remote()` and `handle.capabilities.remote()`.
    Refusals raise `contracts.errors.OrchError`.
    """

    def __init__(self, make_frontend: MakeFrontend, secret: bytes, door: Door, metrics_interval_ms: int) -> None:
        logs.configure()
        self._gateway = ClusterGateway(
            secret, locate_scheduler, node_id(), f"ingress-{os.getpid()}", metrics_interval_ms
        )
        self._frontend = make_frontend(self._gateway)
        self._listener = Listener.of(self._frontend.asgi, door)

    async def __serve_build_asgi_app__(self) -> Any:
        self._gateway.start()
        self._listener.start()
        when_terminated(self._leave)
        return self._frontend.asgi

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to end: what is open may end, then streams go on at another one."""
        await self._listener.stop()
        await self._gateway.close()

    async def _leave(self) -> None:
        """The same without Serve's knowledge: what came through HAProxy is open, too, and has as much time."""
        await asyncio.gather(self._listener.stop(), self._gateway.finish(SHUTDOWN_GRACE_S))
        await self._gateway.close()

    async def submit(self, request: dict[str, Any], tenant: str = "default") -> dict[str, Any]:
        """Admit a task; `request` has the fields of `POST /v1/tasks`, the answer those of its 202."""
        return await self._frontend.submit(request, tenant)

    async def stream(self, task_id: str, tenant: str = "default", after: int = -1) -> AsyncIterator[dict[str, Any]]:
        """Events from token `after + 1` on, as `{"event": name, "data": {...}}`, ending with `end` or `error`."""
        async for event in self._frontend.stream(task_id, tenant, after):
            yield event

    async def cancel(self, task_id: str, tenant: str = "default") -> None:
        """Cancel a task; no token of it follows."""
        await self._frontend.cancel(task_id, tenant)

    async def status(self, task_id: str, tenant: str = "default") -> dict[str, Any]:
        """State, position and outcome, as `GET /v1/tasks/{id}` gives them."""
        return await self._frontend.status(task_id, tenant)

    async def session(self, session_id: str, tenant: str = "default") -> dict[str, Any]:
        """Life, turns, kept context and budgets, as `GET /v1/sessions/{id}` gives them."""
        return await self._frontend.session(session_id, tenant)

    async def close_session(self, session_id: str, tenant: str = "default") -> None:
        """End a session; its tasks that are under way go on."""
        await self._frontend.close_session(session_id, tenant)

    async def pools(self) -> list[dict[str, Any]]:
        """Health of every pool, as `GET /v1/pools` gives it."""
        return await self._frontend.pools()

    async def pool_health(self, pool_id: str) -> dict[str, Any]:
        """How a pool is, as `GET /v1/pools/{id}/health` gives it."""
        return await self._frontend.pool_health(pool_id)

    async def drain(self, pool_id: str, deadline_ms: int) -> dict[str, Any]:
        """Empty a pool within `deadline_ms` and stop it; returns once that is taken on."""
        return await self._frontend.drain(pool_id, deadline_ms)

    async def reload(self, pool_id: str, new_model_ref: str, canary_percent: int | None = None) -> dict[str, Any]:
        """Have a pool serve another model; returns once that is taken on."""
        return await self._frontend.reload(pool_id, new_model_ref, canary_percent)

    async def promote(self, pool_id: str) -> dict[str, Any]:
        """Have a pool's canary take over."""
        return await self._frontend.promote(pool_id)

    async def rollback(self, pool_id: str) -> dict[str, Any]:
        """Undo a pool's last reload."""
        return await self._frontend.rollback(pool_id)

    async def replica_sets(self) -> list[dict[str, Any]]:
        """Load and objectives, as `GET /v1/replicasets` gives them."""
        return await self._frontend.replica_sets()

    async def capabilities(self) -> dict[str, Any]:
        """What the engines here can serve, as `GET /v1/capabilities` gives it."""
        return await self._frontend.capabilities()


def ingress_app(
    make_frontend: MakeFrontend, secret: bytes, *, door: Door, replicas: int, metrics_interval_ms: int
) -> Any:
    """The bound Serve application; `door` is the replicas' own."""
    deployment = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=replicas,
        max_ongoing_requests=ONGOING_REQUESTS_MAX,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        health_check_period_s=5,
    )
    return deployment.bind(make_frontend, secret, door, metrics_interval_ms)
