"""One open event stream: events out, keep-alives in silence, and notice of a client that left.

Tokens cost no task switch of their own: one task pumps, one waits for the disconnect, one beats.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog

from contracts.api import End
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import Gateway
from orchestrator.ingress.errors import internal, log_failure
from orchestrator.ingress.http import ClientGone, Headers, Request
from orchestrator.ingress.results import ClientEvent, EndWithResults, Events
from orchestrator.ingress.sse import CONTENT_TYPE, KEEP_ALIVE, format_event

#: How long the client of a stream that is ended early may take to read why.
LAST_WORD_S: Final = 1.0

_log = structlog.get_logger(__name__)


class EventStream:
    """The response of one stream. `serve` may be called once."""

    def __init__(self, request: Request, keepalive_ms: int) -> None:
        self._request = request
        self._keepalive_s = keepalive_ms / 1000
        self._clock = asyncio.get_running_loop().time
        self._sent_at = self._clock()
        self._sending = asyncio.Lock()
        self._pumping: asyncio.Task[bool] | None = None
        self._refusal: ErrorInfo | None = None

    def end_with(self, error: ErrorInfo) -> None:
        """End the stream early, with this as its outcome."""
        self._refusal = error
        if self._pumping is not None:
            self._pumping.cancel()

    async def serve(self, events: Events, headers: Headers) -> bool:
        """Send the head and all events. True when the outcome was sent, False when the client left before it."""
        fixed: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        try:
            await self._request.start(200, CONTENT_TYPE, [*fixed, *headers])
        except OSError:
            return False
        pump = self._pumping = asyncio.create_task(self._pump(events))
        if self._refusal is not None:
            pump.cancel()
        helpers: list[asyncio.Task[None]] = [
            asyncio.create_task(self._request.gone()),
            asyncio.create_task(self._beat()),
        ]
        try:
            await asyncio.wait([pump, *helpers], return_when=asyncio.FIRST_COMPLETED)
            if pump.cancelled():
                await self._tell_refusal()
                return False
            # A pump that got to its end wins over a disconnect seen in the same moment.
            return pump.done() and pump.result()
        finally:
            for task in (pump, *helpers):
                task.cancel()
            await asyncio.gather(pump, *helpers, return_exceptions=True)

    async def _pump(self, events: Events) -> bool:
        """Send events up to and with the one terminal event. False when the client left."""
        try:
            return await self._send(format_event(await self._all_but_last(events)), last=True)
        except ClientGone:
            return False

    async def _all_but_last(self, events: Events) -> ClientEvent:
        """Send what comes before the outcome and return the outcome.

        A stream that just stops, or fails, ends in an `error` event: never a silent truncation.
        """
        try:
            async for event in events:
                if isinstance(event, End | EndWithResults | ErrorInfo):
                    return event
                await self._send(format_event(event))
            _log.error("stream_without_outcome", correlation_id=self._request.correlation_id)
        except OrchError as error:
            return error.info
        except ClientGone:
            raise
        except Exception:
            log_failure("stream_failed", correlation_id=self._request.correlation_id)
        return internal()

    async def _tell_refusal(self) -> None:
        """Send why the stream ends early, to a client that reads; others find the connection closed."""
        if self._refusal is not None:
            with suppress(TimeoutError, ClientGone):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._send(format_event(self._refusal), last=True)

    async def _send(self, block: bytes, last: bool = False) -> bool:
        async with self._sending:
            try:
                await self._request.send({"type": "http.response.body", "body": block, "more_body": not last})
            except OSError:
                raise ClientGone from None
            self._sent_at = self._clock()
        return True

    async def _beat(self) -> None:
        """Send a comment whenever nothing was sent for `keepalive_ms`; ends when the client left."""
        try:
            while True:  # ends with the stream, which the task's watchdog bounds
                silence_s = self._clock() - self._sent_at
                if silence_s >= self._keepalive_s:
                    await self._send(KEEP_ALIVE)
                else:
                    await asyncio.sleep(self._keepalive_s - silence_s)
        except ClientGone:
            return


class Departures:
    """Cancels tasks whose clients left, when they asked for that (`cancel_on_disconnect`).

    Runs beside the request, because the server may cancel the request's own coroutine.
    One short task for each stream that was cut, each bounded in time.
    """

    def __init__(self, gateway: Gateway, timeout_ms: int) -> None:
        self._gateway = gateway
        self._timeout_s = timeout_ms / 1000
        self._running: set[asyncio.Task[None]] = set()

    def left(self, task_id: str, tenant: str, correlation_id: str) -> None:
        """A client of the task went away before the task's outcome was sent."""
        self._start(self._cancel_if_asked(task_id, tenant, correlation_id))

    async def drain(self) -> None:
        """Wait for what is running; used at shutdown."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _cancel_if_asked(self, task_id: str, tenant: str, correlation_id: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                info = await self._gateway.task_info(task_id, tenant)
                if info.cancel_on_disconnect:
                    await self._gateway.cancel(task_id, tenant)
                    _log.info("canceled_on_disconnect", job_id=task_id, correlation_id=correlation_id)
        except OrchError as error:
            _log.info("disconnect_ignored", job_id=task_id, code=error.info.code, correlation_id=correlation_id)
        except Exception:
            log_failure("cancel_on_disconnect_failed", job_id=task_id, correlation_id=correlation_id)


async def release(events: Events) -> None:
    """Let the gateway release what a stream holds; a failure of that must not spoil what was sent."""
    try:
        await events.aclose()
    except Exception:
        log_failure("stream_close_failed")
