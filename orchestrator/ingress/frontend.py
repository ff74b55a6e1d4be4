"""What the ingress offers over a gateway: the ASGI app, and the same calls for Python callers.

Python callers pass plain dicts with the fields of the HTTP bodies and get plain dicts back; they
are validated by the same code and refused with the same errors.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec

from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo
from contracts.gateway import Gateway, Tokens
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import IngressSettings
from orchestrator.ingress.submission import parse_session_id, parse_submission, parse_task_id

_NAMES: dict[type, str] = {Started: "started", Metrics: "metrics", End: "end", ErrorInfo: "error"}


class Frontend:
    """One ingress replica's API. Methods raise `OrchError`."""

    def __init__(self, gateway: Gateway, settings: IngressSettings) -> None:
        self.asgi = build_app(gateway, settings)
        self._gateway = gateway

    async def submit(self, request: dict[str, Any], tenant: str) -> dict[str, Any]:
        """Admit a task; the fields are those of `POST /v1/tasks` and of its 202."""
        submission = parse_submission(msgspec.json.encode(request), tenant, str(uuid4()), False)
        return _plain(await self._gateway.submit(submission.task, submission.request))

    async def stream(self, task_id: str, tenant: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """Events as `{"event": name, "data": {...}}`, one for each token, ending with `end` or `error`."""
        async for event in self._gateway.stream(parse_task_id(task_id), tenant, after):
            if isinstance(event, Tokens):
                for token in event.each():
                    yield {"event": "token", "data": _plain(token)}
            else:
                yield {"event": _NAMES[type(event)], "data": _plain(event)}

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


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
