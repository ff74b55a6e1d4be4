"""Drives an ASGI app without a server: what is sent is kept message by message."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from contracts import openapi_examples as ex
from orchestrator.ingress.settings import ALL_ROLES, IngressSettings, Key

KEY = "llorch-test-key"
OTHER_KEY = "llorch-other-key"
SETTINGS = IngressSettings(
    keys=(
        Key("test", "acme", hashlib.sha256(KEY.encode()).hexdigest(), ALL_ROLES),
        Key("other", "rival", hashlib.sha256(OTHER_KEY.encode()).hexdigest(), ALL_ROLES),
    ),
    body_max_bytes=10_000,
    keepalive_ms=60_000,
)


def task_body(**changes: Any) -> dict[str, Any]:
    """A valid body with its own task_id; a change to None leaves the field out."""
    body = ex.plain(ex.PROMPT) | {"task_id": str(uuid4())} | changes
    return {name: value for name, value in body.items() if value is not None}


class Exchange:
    """One request under way. `messages` grows while the app sends."""

    def __init__(self, app: Any, method: str, path: str, body: Any = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"authorization": f"Bearer {KEY}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value],
        }
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        self.messages: list[dict[str, Any]] = []
        self.send_fails = False
        self._app = app

    def start(self) -> "Exchange":
        self.task = asyncio.ensure_future(self._app(self.scope, self.incoming.get, self._send))
        return self

    async def done(self) -> "Exchange":
        if not hasattr(self, "task"):
            self.start()
        await asyncio.wait_for(asyncio.shield(self.task), 10)
        return self

    def disconnect(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: dict[str, Any]) -> None:
        if self.send_fails:
            raise OSError("peer is gone")
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        pairs = [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]
        assert len(dict(pairs)) == len(pairs), f"a header is sent twice: {pairs}"
        return dict(pairs)

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        return [message.get("more_body") for message in self.messages].count(False) == 1

    @property
    def events(self) -> list[tuple[str | None, str, Any]]:
        return parse_sse(self.body.decode())


def parse_sse(text: str) -> list[tuple[str | None, str, Any]]:
    """(id, event, data) of every event; comments are left out. Refuses any framing but the contract's."""
    found = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        lines = [line.split(": ", 1) for line in block.split("\n")]
        names = [name for name, _ in lines]
        assert names in (["id", "event", "data"], ["event", "data"]), block
        fields = dict(lines)
        found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most 5 s."""

    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 5)


Call = Callable[..., Awaitable[Exchange]]
