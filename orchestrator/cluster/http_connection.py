"""One HTTP connection of the ingress replicas' own port, within bounds (OC-CTRL-2040).

The parser holds whatever a client sends of a head, for as long as it takes; here is what ends that. A refusal is the
envelope of all errors wherever HTTP still allows one (ORCH-2006). Bodies are bounded by the app: what is done about
them here is for clients whose request was answered before it was whole.
"""

import asyncio
import contextlib
import math
import socket
import sys
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from contracts.errors import HTTP_STATUS, ErrorInfo

#: How long a connection stays open between two requests.
KEEP_ALIVE_S: Final = 75
#: How long a client that was refused may take to read why, before the connection is closed under it.
LINGER_S: Final = 1.0
#: Where the kernel tells how much a peer has acknowledged (linux/tcp.h, `struct tcp_info`).
_ACKED_AT: Final = 120
_ACKED_END: Final = 128
#: The app answers a body that is late, within a quarter of its time; this is when the connection is closed under it.
BODY_TIMES: Final = 1.5

log = structlog.get_logger(__name__)

_encode = msgspec.json.Encoder().encode


class HttpLimits(msgspec.Struct, frozen=True):
    """Bounds of one request; `request_timeout_ms` is for its head, and again for its body.

    `write_timeout_ms` is how long a client may take nothing of what waits for it.
    """

    head_max_bytes: int = 32 * 1024
    headers_max: int = 100
    request_timeout_ms: int = 30_000
    write_timeout_ms: int = 60_000


def refusal(info: ErrorInfo) -> bytes:
    """A whole response that ends its connection."""
    body, head = _encode(info), [STATUS_LINE[HTTP_STATUS[info.code]]]
    if info.retry_after_ms is not None:
        head.append(b"retry-after: %d\r\n" % max(1, math.ceil(info.retry_after_ms / 1000)))
        head.append(b"x-backoff-ms: %d\r\n" % info.retry_after_ms)
    head.append(b"x-correlation-id: %b\r\n" % str(uuid4()).encode())
    head.append(b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body))
    return b"".join([*head, body])


class HttpConnection(HttpToolsProtocol):
    """uvicorn's connection with limits on heads and time. `ended` is called once, when the connection is over."""

    def __init__(self, config: Config, state: ServerState, limits: HttpLimits, ended: Callable[[], None]) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._limits = limits
        self._ended = ended
        self._refused = False
        #: Between requests; None then means that nothing is awaited but the next one.
        self._reading: str | None = "head"
        self._head_bytes = 0
        self._parsed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timed: str | None = None
        self._unread: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # as asyncio types its own protocols
        # Writing pauses as soon as anything waits for the client, so that it is seen how long it does.
        self.transport.set_write_buffer_limits(high=1, low=0)
        self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_waiting()
        super().connection_lost(exc)
        self._ended()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # it is only waited for that the client reads the refusal
        if self._reading is None:
            self._reading = "head"
        if self._reading == "head":
            self._head_bytes += len(data)
        super().data_received(data)
        if self._refused:
            return
        if self._reading == "head" and self._head_bytes > self._limits.head_max_bytes:
            self._refuse_head()
        elif self._reading != self._timed:
            self._time()

    # ------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        self._reading = "head"
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parsed_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parsed_bytes += len(name) + len(value) + len(": \r\n")
        if len(self.headers) <= self._limits.headers_max:  # one more than allowed is enough to know
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        if self._parsed_bytes > self._limits.head_max_bytes or len(self.headers) > self._limits.headers_max:
            self._refuse_head()
            return
        self._reading = "body"
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._reading = None
        self._head_bytes = self._parsed_bytes = 0
        super().on_message_complete()

    # ------------------------------------------------------------------ refusals

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (the signature is uvicorn's)
        """What the parser could not read; the text of a request is nobody's to repeat."""
        self._refuse(ErrorInfo("INVALID_PARAMS", "This is not an HTTP/1.1 request.", retriable=False))

    def _refuse_head(self) -> None:
        limits = self._limits
        message = f"Request line and headers are over {limits.head_max_bytes} bytes or {limits.headers_max} headers."
        self._refuse(ErrorInfo("PAYLOAD_TOO_LARGE", message, retriable=False))

    def _refuse(self, info: ErrorInfo) -> None:
        """Say why and close, once the client has had time to read it; closing at once would lose what it did not."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an earlier answer is on its way: another in its middle would be none
            return
        self.transport.write(refusal(info))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    # ---------------------------------------------------------------------- time

    def _time(self) -> None:
        """Give what is read now its time, from now on."""
        self._stop_timer()
        self._timed = self._reading
        if self._reading is not None:
            times = BODY_TIMES if self._reading == "body" else 1.0
            self._timer = self.loop.call_later(times * self._limits.request_timeout_ms / 1000, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.flow.read_paused:
            self._time()  # it waits for us: behind another request, or for the app to take what is there
        elif self._reading == "head" and self._head_bytes:
            message = f"The request did not arrive within {self._limits.request_timeout_ms} ms. Send it without pauses."
            self._refuse(ErrorInfo("INVALID_PARAMS", message, retriable=False))
        else:
            self.transport.close()

    def _wait_for_reader(self) -> None:
        """Give the client its time, from now on, to take something of what waits for it."""
        self._unread = self.loop.call_later(self._limits.write_timeout_ms / 1000, self._look_again, self._taken())

    def _look_again(self, before: tuple[int, int]) -> None:
        if self._taken() != before:
            self._wait_for_reader()
        else:  # closing would wait for what is not taken
            log.info("connection_not_read", waiting_bytes=-before[0], after_ms=self._limits.write_timeout_ms)
            self.transport.abort()

    def _taken(self) -> tuple[int, int]:
        """Changes whenever the client takes something: what waits here, and what the client's side acknowledged.

        Nothing is added while writing is paused. The kernel asks for more only when much of what it has was taken, so
        it is asked itself (Linux, `tcpi_bytes_acked` of tcp(7)); where it does not tell, that is 0.
        """
        acknowledged = 0
        with contextlib.suppress(AttributeError, OSError):
            told = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_END)
            acknowledged = int.from_bytes(told[_ACKED_AT:_ACKED_END], sys.byteorder)
        return -self.transport.get_write_buffer_size(), acknowledged

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def http_config(app: Any) -> Config:
    """uvicorn's settings for connections of `app`: no access log, no lifespan, no headers of its own."""
    config = Config(
        app,
        http="httptools",
        loop="none",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()
    return config
