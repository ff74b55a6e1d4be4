"""Where connections come from: a server on a Unix socket and TCP, and a client that dials one."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from contracts.messages import Endpoint
from orchestrator.cluster import channel_tls
from orchestrator.cluster.connection import ChannelError, Connection, Role

CONNECT_TIMEOUT_S: Final = 5.0
#: Environment variable: where this run of the service keeps its sockets; unset: the host's temporary folder.
RUN_FOLDER: Final = "LLORCH_RUN_DIR"


class ChannelServer:
    """Listens on a Unix socket (mode 0600) and on TCP; hands over authenticated connections."""

    def __init__(
        self,
        secret: bytes,
        message_type: Any,
        on_open: Callable[[Connection], None],
        on_message: Callable[[Connection, Any], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._secret = secret
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(message_type)
        self._callbacks = (on_message, on_close, on_open)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()

    async def start(self, node_id: str, host: str) -> Endpoint:
        """Listen and return where; `host` is the address of this node that others reach."""
        loop = asyncio.get_running_loop()
        # Actors are killed, not closed: whoever set the run's folder removes what they leave.
        self._directory = tempfile.TemporaryDirectory(prefix="channel-", dir=os.environ.get(RUN_FOLDER))
        path = os.path.join(self._directory.name, "channel.sock")
        # The directory is 0700 from its creation, so the socket is private before its own mode is set.
        self._servers.append(await loop.create_unix_server(self._accept, path))
        os.chmod(path, 0o600)
        tcp = await loop.create_server(self._accept, host, 0, ssl=channel_tls.server_context())
        self._servers.append(tcp)
        return Endpoint(node_id, path, host, tcp.sockets[0].getsockname()[1])

    def _accept(self) -> Connection:
        on_message, on_close, on_open = self._callbacks

        def opened(connection: Connection) -> None:
            self._connections.add(connection)
            on_open(connection)

        def closed(connection: Connection) -> None:
            self._connections.discard(connection)
            on_close(connection)

        connection = Connection(self._secret, self._decoder, on_message, closed, on_open=opened)
        # A refused handshake is logged where it happens; nobody awaits the server side's future.
        connection.opened.add_done_callback(lambda future: future.cancelled() or future.exception())
        return connection

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close()
        if self._directory is not None:
            self._directory.cleanup()


async def connect(
    endpoint: Endpoint,
    node_id: str,
    secret: bytes,
    role: Role,
    peer_id: str,
    message_type: Any,
    on_message: Callable[[Connection, Any], None],
    on_close: Callable[[Connection], None],
) -> Connection:
    """Connect to a channel server, over its Unix socket when it is on this node.

    Raises ChannelError when it cannot be reached in time or refuses the secret.
    """
    loop = asyncio.get_running_loop()
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(message_type)

    def make() -> Connection:
        return Connection(secret, decoder, on_message, on_close, hello=(role, peer_id))

    dial: Awaitable[tuple[Any, Connection]]
    if endpoint.node_id == node_id:
        dial = loop.create_unix_connection(make, endpoint.uds_path)
    else:
        dial = loop.create_connection(make, endpoint.host, endpoint.port, ssl=channel_tls.client_context())
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, connection = await dial
            try:
                await connection.opened
            except BaseException:  # nobody waits for it any more
                transport.abort()
                raise
    except (OSError, TimeoutError) as failed:
        raise ChannelError(f"cannot reach {endpoint.host}:{endpoint.port}: {failed}") from failed
    return connection
