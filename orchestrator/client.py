"""A small asynchronous client of the service, as the command line uses it.

A stream that breaks is taken up again where it stopped, by `Last-Event-ID` (ORCH-2002): whoever
iterates sees every token once and in order, or an error, never a silent gap.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final
from urllib.parse import quote

import aiohttp
import msgspec

from contracts.api import Admission, End, Session, Started, TaskRequest, TaskStatus, Token
from contracts.control import Capabilities, DrainRequest, PoolHealth, ReloadRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import PoolAccepted, Readiness
from orchestrator.client_errors import CannotConnectError, NotTheServiceError, StreamBrokenError, refusal
from orchestrator.client_events import StreamEvent, decode_event
from orchestrator.client_patience import BACKOFF_FIRST_S, Patience
from orchestrator.client_tls import StrPath, connector
from orchestrator.sse import SseParser

#: Longest silence on a stream; the server sends a comment far more often than this.
SILENCE_MAX_S: Final = 60
CONNECT_MAX_S: Final = 5


class Client:
    """Use as `async with Client(url, key) as client`. Refusals and failures are raised as OrchError."""

    def __init__(
        self, url: str, api_key: str, *, ca_file: StrPath | None = None, backoff_first_s: float = BACKOFF_FIRST_S
    ) -> None:
        self._url = url.rstrip("/")
        self._ca = ca_file
        self._backoff_first_s = backoff_first_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None
        self._was_heard = False

    async def __aenter__(self) -> "Client":
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_MAX_S, sock_read=SILENCE_MAX_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector(self._ca))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def submit(self, request: TaskRequest) -> Admission:
        """Have a task admitted (ORCH-2001), sent again if need be (ORCH-3024); follow it with `stream`."""
        data = msgspec.json.encode(request)
        patience = Patience(self._backoff_first_s)
        while True:
            try:
                return msgspec.json.decode(await self._call("POST", "/v1/tasks", data=data), type=Admission)
            except NotTheServiceError:
                patience.failed(brought_something=False)
                if patience.is_over(was_heard=self._was_heard):
                    raise
            await patience.wait()

    async def run(self, request: TaskRequest) -> AsyncIterator[StreamEvent]:
        """Submit and stream in one call; ends with one `End`.

        The request should say `cancel_on_disconnect: false`, or a broken connection cancels the
        task instead of being taken up again.
        """
        path, headers = "/v1/tasks", {"Accept": "text/event-stream", "Content-Type": "application/json"}
        async for event in self._follow(str(request.task_id), "POST", path, headers, msgspec.json.encode(request)):
            yield event

    async def stream(self, task_id: str, after: int = -1) -> AsyncIterator[StreamEvent]:
        """Events of an admitted task from token `after + 1` on; ends with one `End`."""
        path, headers = _attach(task_id, after)
        async for event in self._follow(task_id, "GET", path, headers, None, after):
            yield event

    async def cancel(self, task_id: str) -> None:
        """Cancel a task (ORCH-2003)."""
        await self._call("POST", f"/v1/tasks/{task_id}/cancel")

    async def status(self, task_id: str) -> TaskStatus:
        """State, position and outcome of a task."""
        return msgspec.json.decode(await self._call("GET", f"/v1/tasks/{task_id}"), type=TaskStatus)

    async def session(self, session_id: str) -> Session:
        """Life, turns, kept context and budgets of a session (ORCH-2004)."""
        return msgspec.json.decode(await self._call("GET", f"/v1/sessions/{session_id}"), type=Session)

    async def close_session(self, session_id: str) -> None:
        """End a session (ORCH-2005)."""
        await self._call("DELETE", f"/v1/sessions/{session_id}")

    async def pools(self) -> list[PoolHealth]:
        """Health of every pool."""
        return msgspec.json.decode(await self._call("GET", "/v1/pools"), type=list[PoolHealth])

    async def pool_health(self, pool_id: str) -> PoolHealth:
        """How a pool and its replicas are (ORCH-2103)."""
        return msgspec.json.decode(await self._call("GET", _pool(pool_id, "health")), type=PoolHealth)

    async def drain(self, pool_id: str, deadline_ms: int) -> PoolAccepted:
        """Empty a pool and stop it (ORCH-2101)."""
        return await self._change(pool_id, "drain", DrainRequest(deadline_ms))

    async def reload(self, pool_id: str, model_ref: str, canary_percent: int | None = None) -> PoolAccepted:
        """Have a pool serve another model (ORCH-2102)."""
        return await self._change(pool_id, "reload", ReloadRequest(model_ref, canary_percent))

    async def promote(self, pool_id: str) -> PoolAccepted:
        """Have a pool's canary take over (ORCH-3033)."""
        return await self._change(pool_id, "promote", None)

    async def rollback(self, pool_id: str) -> PoolAccepted:
        """Undo a pool's last reload (ORCH-3033)."""
        return await self._change(pool_id, "rollback", None)

    async def capabilities(self) -> Capabilities:
        """What the engines of the service can do (ORCH-3095)."""
        return msgspec.json.decode(await self._call("GET", "/v1/capabilities"), type=Capabilities)

    async def readiness(self) -> Readiness:
        """Whether tasks can be served now, and what each pool is doing."""
        return msgspec.json.decode(await self._call("GET", "/readyz", ok=(200, 503)), type=Readiness)

    async def metrics(self) -> str:
        """The metrics page, Prometheus text format."""
        return (await self._call("GET", "/metrics")).decode()

    async def _change(self, pool_id: str, action: str, request: DrainRequest | ReloadRequest | None) -> PoolAccepted:
        data = None if request is None else msgspec.json.encode(request)
        return msgspec.json.decode(await self._call("POST", _pool(pool_id, action), data=data), type=PoolAccepted)

    async def _follow(
        self, task_id: str, method: str, path: str, headers: dict[str, str], body: bytes | None, after: int = -1
    ) -> AsyncIterator[StreamEvent]:
        """Events over as many connections as it takes; the attempts without progress are bounded."""
        started = False
        patience = Patience(self._backoff_first_s)
        while True:
            before, failed = after, None
            try:
                async for event in self._events(method, path, headers, body):
                    if isinstance(event, ErrorInfo):
                        failed = event
                        continue  # nothing follows it
                    if isinstance(event, Token):
                        if event.i <= after:
                            continue
                        if event.i != after + 1:
                            raise OrchError(ErrorInfo("INTERNAL", f"token {after + 1} is missing from the stream"))
                        after = event.i
                    elif isinstance(event, Started):
                        if started:
                            continue
                        started = True
                    yield event
                    if isinstance(event, End):
                        return
            except (StreamBrokenError, CannotConnectError, OrchError) as error:
                patience.failed(brought_something=after > before)
                if self._is_final(error, patience, is_submission=body is not None):
                    raise
                arrived = not isinstance(error, CannotConnectError)
                asked_ms = (error.info.retry_after_ms or 0) if isinstance(error, OrchError) else 0
            if failed is not None:
                raise OrchError(failed)
            await patience.wait(asked_ms / 1000)
            if arrived or body is None:  # a submission that did not arrive is sent again
                method, body, (path, headers) = "GET", None, _attach(task_id, after)

    def _is_final(self, error: Exception, patience: Patience, *, is_submission: bool) -> bool:
        """Whether an attempt that failed so was the last."""
        if patience.is_over(was_heard=self._was_heard):
            return True
        if isinstance(error, OrchError):
            # The task goes on where only its stream is refused for now; a refused task is its caller's to send again.
            return is_submission or not error.info.retriable
        return type(error) is CannotConnectError and patience.fruitless == 1 and is_submission

    async def _events(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> AsyncIterator[StreamEvent | ErrorInfo]:
        """Events of one connection, `end` or `error` last; raises StreamBrokenError when it ends without."""
        parser = SseParser()
        try:
            async with self._open.request(method, self._url + path, headers=headers, data=body) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                self._was_heard = True
                async for chunk in response.content.iter_any():
                    for name, data in parser.feed(chunk):
                        event = decode_event(name, data)
                        if event is not None:
                            yield event
                        if isinstance(event, End | ErrorInfo):
                            return
        except aiohttp.ClientConnectorError as error:
            raise CannotConnectError(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise StreamBrokenError(str(error) or type(error).__name__) from error
        except ValueError as error:
            raise OrchError(ErrorInfo("INTERNAL", f"not an event stream: {error}")) from error
        raise StreamBrokenError("the connection ended before the stream did")

    async def _call(self, method: str, path: str, *, data: bytes | None = None, ok: tuple[int, ...] = ()) -> bytes:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        try:
            async with self._open.request(method, self._url + path, data=data, headers=headers) as response:
                body = await response.read()
                if response.status // 100 != 2 and response.status not in ok:
                    raise refusal(response.status, body)
                self._was_heard = True
                return body
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise CannotConnectError(str(error) or type(error).__name__) from error

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(...)`")
        return self._session


def _attach(task_id: str, after: int) -> tuple[str, dict[str, str]]:
    """Path and headers that take a stream up after token `after`."""
    return f"/v1/tasks/{task_id}/stream", {"Last-Event-ID": str(after)} if after >= 0 else {}


def _pool(pool_id: str, action: str) -> str:
    return f"/v1/pools/{quote(pool_id, safe='')}/{action}"
