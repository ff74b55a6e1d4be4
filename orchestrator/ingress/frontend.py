"""What the ingress offers over a gateway: the ASGI app, and the same calls for Python callers.

Python callers pass plain dicts with the fields of the HTTP bodies and get plain dicts back; they
are validated by the same code and refused with the same errors.
"""

from collections.abc import AsyncIterator, Awaitable
from typing import Any
from uuid import uuid4

import msgspec

from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo
from contracts.gateway import Gateway, Tokens
from orchestrator.ingress.app import build_app
from orchestrator.ingress.bodies import read_json
from orchestrator.ingress.control import DRAIN, RELOAD, accept, list_pools, parse_pool_id, versioned_capabilities
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.results import EndWithResults, first_wanted, gathered
from orchestrator.ingress.settings import IngressSettings
from orchestrator.ingress.streaming import release
from orchestrator.ingress.submission import parse_session_id, parse_submission, parse_task_id

_NAMES: dict[type, str] = {Started: "started", Metrics: "metrics", End: "end", ErrorInfo: "error"}


class Frontend:
    """One ingress replica's API. Methods raise `OrchError`."""

    def __init__(self, gateway: Gateway, settings: IngressSettings) -> None:
        self._memory = ResultMemory()
        self.asgi = build_app(gateway, settings, self._memory)
        self._gateway = gateway

    async def submit(self, request: dict[str, Any], tenant: str) -> dict[str, Any]:
        """Admit a task; the fields are those of `POST /v1/tasks` and of its 202."""
        submission = parse_submission(msgspec.json.encode(request), tenant, str(uuid4()), False)
        return _plain(await self._gateway.submit(submission.task, submission.request))

    async def stream(self, task_id: str, tenant: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """Events as `{"event": name, "data": {...}}`, one for each token, ending with `end` or `error`."""
        task_id = parse_task_id(task_id)
        task = await self._gateway.task_info(task_id, tenant)
        source = self._gateway.stream(task_id, tenant, first_wanted(after, task.workload))
        events = gathered(source, task, self._memory)
        try:
            async for event in events:
                if isinstance(event, Tokens):
                    for token in event.each():
                        yield {"event": "token", "data": _plain(token)}
                elif isinstance(event, EndWithResults):
                    yield {"event": "end", "data": msgspec.json.decode(event.encoded())}
                else:
                    yield {"event": _NAMES[type(event)], "data": _plain(event)}
        finally:
            await release(events)

    async def cancel(self, task_id: str, tenant: str) -> None:
        """Cancel a task; no token of it follows."""
        await self._gateway.cancel(parse_task_id(task_id), tenant)

    async def status(self, task_id: str, tenant: str) -> dict[str, Any]:
        """The body of `GET /v1/tasks/{id}`."""
        return _plain(await self._gateway.status(parse_task_id(task_id), tenant))

    async def session(self, session_id: str, tenant: str) -> dict[str, Any]:
        """The body of `GET /v1/sessions/{id}`."""
        return _plain(await self._gateway.session(parse_session_id(session_id), tenant))

    async def close_session(self, session_id: str, tenant: str) -> None:
        """End a session."""
        await self._gateway.close_session(parse_session_id(session_id), tenant)

    # ---------------------------------------------------------- control plane

    async def pools(self) -> list[dict[str, Any]]:
        """The body of `GET /v1/pools`."""
        return [_plain(health) for health in await list_pools(self._gateway)]

    async def pool_health(self, pool_id: str) -> dict[str, Any]:
        """The body of `GET /v1/pools/{id}/health` (ORCH-2103)."""
        return _plain(await self._gateway.pool_health(parse_pool_id(pool_id)))

    async def drain(self, pool_id: str, deadline_ms: int) -> dict[str, Any]:
        """Empty a pool and stop it (ORCH-2101)."""
        asked = read_json(DRAIN, msgspec.json.encode({"deadline_ms": deadline_ms}))
        return await self._accept("drain", pool_id, self._gateway.drain_pool(parse_pool_id(pool_id), asked))

    async def reload(self, pool_id: str, new_model_ref: str, canary_percent: int | None = None) -> dict[str, Any]:
        """Have a pool serve another model (ORCH-2102)."""
        fields = {"new_model_ref": new_model_ref, "canary_percent": canary_percent}
        asked = read_json(RELOAD, msgspec.json.encode(fields))
        return await self._accept("reload", pool_id, self._gateway.reload_pool(parse_pool_id(pool_id), asked))

    async def promote(self, pool_id: str) -> dict[str, Any]:
        """Have a pool's canary take over (ORCH-3033)."""
        return await self._accept("promote", pool_id, self._gateway.promote_pool(parse_pool_id(pool_id)))

    async def rollback(self, pool_id: str) -> dict[str, Any]:
        """Undo a pool's last reload (ORCH-3033)."""
        return await self._accept("rollback", pool_id, self._gateway.rollback_pool(parse_pool_id(pool_id)))

    async def replica_sets(self) -> list[dict[str, Any]]:
        """The body of `GET /v1/replicasets` (ORCH-2104)."""
        return [_plain(one) for one in await self._gateway.replica_sets()]

    async def capabilities(self) -> dict[str, Any]:
        """The body of `GET /v1/capabilities` (ORCH-3095)."""
        return _plain(await versioned_capabilities(self._gateway))

    async def _accept(self, action: str, pool_id: str, work: Awaitable[None]) -> dict[str, Any]:
        """Those who hold a handle are inside the cluster: there is no key to name."""
        return _plain(await accept(action, pool_id, work, tenant="", client="", correlation_id=str(uuid4())))


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
