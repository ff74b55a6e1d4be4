"""A connection whose client takes nothing is cut in bounded time, whatever waits on it; a slow reader is not."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest

from contracts.api import End
from contracts.gateway import Tokens
from orchestrator.cluster.http_connection import HttpLimits
from orchestrator.cluster.listener import Listener
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import IngressSettings
from tests.unit.cluster.scripted import until
from tests.unit.ingress.asgi import task_body
from tests.unit.ingress.fake_gateway import FakeGateway

pytestmark = pytest.mark.req("ORCH-2002")

WORD = "x" * 100_000
WORDS = 50  # more than all buffers on the way take
END = End(tokens_out=WORDS, decode_ms=1, finish_reason="stop", tokens_in=1)


@contextlib.asynccontextmanager
async def listening(write_timeout_ms: int) -> AsyncIterator[tuple[Listener, FakeGateway]]:
    gateway = FakeGateway()
    app = build_app(gateway, IngressSettings(auth_enabled=False, keepalive_ms=20))
    listener = Listener(app, 0, 10, HttpLimits(write_timeout_ms=write_timeout_ms))
    listener.start()
    try:
        yield listener, gateway
    finally:
        await listener.stop(0.1)


def streams(listener: Listener, **changes: object) -> socket.socket:
    """A client that has asked for a stream, with as little room as the system allows."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", listener.port))
    body = json.dumps(task_body(cancel_on_disconnect=False) | changes).encode()
    head = "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    client.setblocking(False)
    return client


async def test_a_stream_whose_client_never_reads_is_cut_and_its_task_goes_on() -> None:
    async with listening(200) as (listener, gateway):
        gateway.script = [Tokens(0, [WORD] * WORDS)]
        with streams(listener):
            await until(lambda: gateway.streams_open == 1)
            await until(lambda: gateway.streams_open == 0)
            await until(lambda: not listener._state.connections)
        (task_id,) = gateway.tasks
        assert gateway.canceled == []
        gateway.feed(task_id, END)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(20):
            assert (await reader.read()).count(b"event: token") == WORDS
        writer.close()
        await writer.wait_closed()


async def test_the_rest_of_a_stream_that_has_ended_does_not_keep_its_connection_either() -> None:
    async with listening(200) as (listener, gateway):
        gateway.script = [Tokens(0, [WORD * WORDS]), END]
        with streams(listener):
            await until(lambda: gateway.tasks)
            await until(lambda: not listener._state.connections)
            await until(lambda: gateway.streams_open == 0)


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    async with listening(300) as (listener, gateway):
        gateway.script = [Tokens(0, [WORD] * WORDS), END]
        loop = asyncio.get_running_loop()
        with streams(listener) as client:
            answer = bytearray()
            for _ in range(20):  # a second, several times what it may take nothing for
                answer += await loop.sock_recv(client, 4096)
                await asyncio.sleep(0.05)
            async with asyncio.timeout(30):
                while b"event: end" not in answer[-1000:]:
                    part = await loop.sock_recv(client, 1 << 20)
                    assert part
                    answer += part
        assert answer.count(b"event: token") == WORDS
