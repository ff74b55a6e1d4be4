"""The little of HTTP that the ingress needs, on plain ASGI: one request, one reply.

Frameworks cost more than the whole rest of a submission here, so there is none on the hot path.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from uuid import uuid4

from orchestrator.ingress.settings import Key

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"

#: The key of requests that need none.
NOBODY: Final = Key("", "", "", ())

_CORRELATION_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")


class ClientGone(Exception):
    """The client closed the connection before the request was served."""


class BodyTooLarge(Exception):
    """The request body is over the limit."""


class Reply:
    """A complete response. An empty `body` is sent without a content type."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers | None = None) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers or []


class Request:
    """The head of one request; the body is read by `read_body`, once.

    `correlation_id` is the client's when it is 1 to 128 visible ASCII characters, else a new UUID
    (OC-CTRL-2052). `key` is set by authentication; `started` once the head of a response was sent.
    `closing` has the connection closed after the response.
    """

    __slots__ = (
        "closing",
        "correlation_id",
        "headers",
        "key",
        "method",
        "path",
        "receive",
        "scope",
        "send",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path = _path(scope)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self.send = send
        self.key = NOBODY
        self.started = False
        self.closing = False
        given = self.headers.get(b"x-correlation-id", b"")
        self.correlation_id = given.decode() if _CORRELATION_ID.fullmatch(given) else str(uuid4())

    def wants_events(self) -> bool:
        """Whether the client asked for a stream by `Accept: text/event-stream`."""
        return b"text/event-stream" in self.headers.get(b"accept", b"").lower()

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.key.tenant

    @property
    def client(self) -> str:
        """The name of its key, "" without one."""
        return self.key.name

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be over `max_bytes`, or ClientGone."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
            raise BodyTooLarge
        parts: list[bytes] = []
        size = 0
        while True:  # bounded by max_bytes or the end of the body
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise BodyTooLarge
            if not message.get("more_body", False):
                return b"".join((*parts, part)) if parts else part
            parts.append(part)

    async def gone(self) -> None:
        """Return when the client has closed the connection. Call after the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: bytes, headers: Headers) -> None:
        """Send the head of a response; the correlation id is on every one (OC-CTRL-2052)."""
        head: Headers = [(b"x-correlation-id", self.correlation_id.encode()), *headers]
        if content_type:
            head.append((b"content-type", content_type))
        if self.closing:
            head.append((b"connection", b"close"))
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": head})

    async def reply(self, reply: Reply) -> None:
        """Send a complete response."""
        headers = reply.headers
        if reply.status != 204:
            headers = [*headers, (b"content-length", b"%d" % len(reply.body))]
        await self.start(reply.status, reply.content_type if reply.body else b"", headers)
        await self.send({"type": "http.response.body", "body": reply.body, "more_body": False})


#: None: the response was sent already (a stream).
Handler = Callable[[Request], Awaitable[Reply | None]]
#: Takes the id in the path too.
ItemHandler = Callable[[Request, str], Awaitable[Reply | None]]


def _path(scope: Scope) -> str:
    """The path below the mount point."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path
