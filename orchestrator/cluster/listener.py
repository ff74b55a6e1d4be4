"""The ingress replicas' own HTTP port.

Serve's way in costs a request about twice the CPU of the request itself (HAProxy, then Serve's
wrapper around every ASGI call; `benchmarks/overhead.py` measures both doors). So each ingress
replica also listens by itself: all replicas of a node share one port by SO_REUSEPORT, the kernel
spreads connections over them, and a replica that dies takes only its own connections along.

Connections are counted where they are accepted, so that handshakes are bounded as well, and each
gets the certificate that is valid when it comes.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog
from uvicorn.server import ServerState

from contracts.errors import ErrorInfo
from orchestrator.cluster.http_connection import LINGER_S, HttpConnection, HttpLimits, http_config, refusal
from orchestrator.cluster.listener_tls import Certificate, TlsFiles

BACKLOG: Final = 2048
#: How long open streams may go on once the replica is told to stop.
SHUTDOWN_GRACE_S: Final = 5.0
#: Connections over the limit that are told so at one time; further ones are just closed.
TURNED_AWAY_MAX: Final = 64
#: What is read of a connection that is turned away, so that it reads why.
TURNED_AWAY_BYTES_MAX: Final = 64 * 1024
RETRY_MS: Final = 1_000
#: Pause after the host could not give a connection (no file descriptors, no memory).
ACCEPT_RETRY_S: Final = 0.1

log = structlog.get_logger(__name__)


class Door(msgspec.Struct, frozen=True):
    """Where a listener is, what it bears, and its certificate; plain HTTP without one."""

    port: int
    connections_max: int = 10_000
    limits: HttpLimits = HttpLimits()
    tls: TlsFiles | None = None


class Listener:
    """Serves one ASGI app on a shared port, on the running event loop. Serve runs the app's lifespan.

    `port` 0 means any that is free; `start` sets it.
    """

    def __init__(
        self, app: Any, port: int, connections_max: int, limits: HttpLimits | None = None, tls: TlsFiles | None = None
    ) -> None:
        self.port = port
        self._connections_max = connections_max
        self._limits = limits or HttpLimits()
        self._tls = tls
        self._certificate: Certificate | None = None
        self._config = http_config(app)
        self._state = ServerState()
        self._socket: socket.socket | None = None
        self._running: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._turned_away: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, app: Any, door: Door) -> "Listener":
        """The listener that a configuration asks for."""
        return cls(app, door.port, door.connections_max, door.limits, door.tls)

    def start(self) -> None:
        """Listen. Raises OSError when somebody who does not share the port has it, or the certificate is unusable."""
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            self._certificate = Certificate(self._tls)
            self._running.append(loop.create_task(self._certificate.watch()))
        listening = self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("0.0.0.0", self.port))
        self.port = listening.getsockname()[1]
        listening.listen(BACKLOG)
        listening.setblocking(False)
        self._running.append(loop.create_task(self._accept(listening)))

    async def stop(self, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """Stop accepting, let open streams end for a bounded time, and close."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._connections:
            await asyncio.wait(self._connections, timeout=grace_s)
        for request in list(self._state.tasks):
            request.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()
        left = self._connections | self._turned_away | self._state.tasks
        for task in self._turned_away:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LINGER_S)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("connection_not_accepted", why=error.strerror)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._connections) < self._connections_max:
                self._keep(self._connections, loop.create_task(self._serve(accepted)))
            elif self._certificate is None and len(self._turned_away) < TURNED_AWAY_MAX:
                self._keep(self._turned_away, loop.create_task(self._turn_away(accepted)))
            else:
                accepted.close()
            await asyncio.sleep(0)  # a burst of connections must not hold up those that are open

    def _keep(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        """One connection, from its handshake to its end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def connection() -> HttpConnection:
            return HttpConnection(self._config, self._state, self._limits, end)

        try:
            if self._certificate is None:
                await loop.connect_accepted_socket(connection, accepted)
            else:
                await loop.connect_accepted_socket(
                    connection,
                    accepted,
                    ssl=self._certificate.context,
                    ssl_handshake_timeout=self._limits.request_timeout_ms / 1000,
                    ssl_shutdown_timeout=LINGER_S,
                )
        except OSError:  # no handshake, or the client left before one
            accepted.close()
            return
        await ended

    async def _turn_away(self, accepted: socket.socket) -> None:
        """Tell a connection over the limit so, and close it once that was read."""
        loop = asyncio.get_running_loop()
        message = f"This door has {self._connections_max} connections open, its limit. Come again, or use another."
        info = ErrorInfo("ADMISSION_REJECT", message, retriable=True, retry_after_ms=RETRY_MS, policy_label="reject")
        with accepted, suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await loop.sock_sendall(accepted, refusal(info))
                accepted.shutdown(socket.SHUT_WR)
                read = 0
                while read < TURNED_AWAY_BYTES_MAX:
                    part = await loop.sock_recv(accepted, 4096)
                    if not part:
                        return
                    read += len(part)
