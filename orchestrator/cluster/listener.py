"""The ingress replicas' own HTTP port.

Serve's way in costs a request about twice the CPU of the request itself (HAProxy, then Serve's
wrapper around every ASGI call; `benchmarks/overhead.py` measures both doors). So each ingress
replica also listens by itself: all replicas of a node share one port by SO_REUSEPORT, the kernel
spreads connections over them, and a replica that dies takes only its own connections along.
"""

import asyncio
import socket
from typing import Any

import uvicorn

KEEP_ALIVE_S = 75
BACKLOG = 2048
#: How long open streams may go on once the replica is told to stop.
SHUTDOWN_GRACE_S = 5


class Listener:
    """Serves one ASGI app on a shared port, on the running event loop. Serve runs the app's lifespan."""

    def __init__(self, app: Any, port: int, connections_max: int) -> None:
        self._port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
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
                backlog=BACKLOG,
                limit_concurrency=connections_max,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. Raises OSError when the port is taken by somebody who does not share it."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("0.0.0.0", self._port))
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))

    async def stop(self) -> None:
        """Stop accepting, let open streams end for a bounded time, and close."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
