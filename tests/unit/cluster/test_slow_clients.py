"""A client that does not read costs what is on its way to it, and nobody else waits (ORCH-2002)."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from contracts.engine import Chunk, Finish, GenerateRequest
from orchestrator.cluster.following import CREDIT_TOKENS
from orchestrator.cluster.listener import Listener
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import IngressSettings
from tests.unit.cluster.scripted import ScriptedAdapter, task, until
from tests.unit.cluster.scripted_scheduler import Replica, ScriptedScheduler
from tests.unit.cluster.test_gateway_recovery import ingress

TOKENS = 6000
WORD = "x" * 500


class Verbose(ScriptedAdapter):
    """Makes more text than the buffers on the way to a client take."""

    async def generate(self, _attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        for index in range(request.max_tokens):
            await asyncio.sleep(0)
            yield Chunk(f"{WORD}{index} ")
        yield Finish("length", 3)


def asks_for(task_id: str, port: int) -> socket.socket:
    """A client that has asked for a stream and does not read it, with as little room as the system allows."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return client


def tokens_of(body: bytes) -> list[str]:
    """The texts of the `token` events of a chunked response, which it cuts anywhere."""
    text = b"".join(body.split(b"\r\n")[1::2]) if b"\r\n" in body else body
    blocks = [block.split(b"\n") for block in text.split(b"\n\n")]
    return [json.loads(lines[2][6:])["t"] for lines in blocks if len(lines) == 3 and lines[1] == b"event: token"]


async def read_all(client: socket.socket) -> bytes:
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.split(b"\r\n\r\n", 1)[1]


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2022")
async def test_a_client_that_does_not_read_is_held_to_its_credit_and_holds_up_nobody() -> None:
    scheduler = ScriptedScheduler()
    await scheduler.start()
    replica = Replica(scheduler)
    replica.make = Verbose
    slow_id, fast_id = str(uuid4()), str(uuid4())
    try:
        await replica.serve()
        async with ingress(scheduler) as gateway:
            settings = IngressSettings(auth_enabled=False, keepalive_ms=50)
            listener = Listener(build_app(gateway, settings), 0, 10)
            listener.start()
            for name in (slow_id, fast_id):
                scheduler.tasks[name] = task(name, TOKENS, tenant="default")
                scheduler.starts(name, 1, replica)
            slow = asks_for(slow_id, listener.port)
            await until(lambda: slow_id in gateway._streams)
            for each in listener._state.connections:  # the kernel would take it all
                each.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            scheduler.start_attempt(slow_id, prompt="plain", max_tokens=TOKENS)
            (stream,) = gateway._streams[slow_id]
            following = stream._following
            # All is made, and what has left for the slow client does not grow any more.
            await until(lambda: not replica.host._service._running)  # type: ignore[union-attr]
            before = -1
            while before != following._received:
                before = following._received
                await asyncio.sleep(0.2)  # several keep-alives long
            assert before < TOKENS
            assert len(following._texts) <= CREDIT_TOKENS
            buffered = [each.transport.get_write_buffer_size() for each in listener._state.connections]
            assert max(buffered) <= 2 * CREDIT_TOKENS * (len(WORD) + 60)
            scheduler.start_attempt(fast_id, prompt="plain", max_tokens=TOKENS)
            fast = await read_all(asks_for(fast_id, listener.port))
            expected = [f"{WORD}{n} " for n in range(TOKENS)]
            assert tokens_of(fast) == expected
            assert following._received == before
            assert tokens_of(await read_all(slow)) == expected  # it reads at last, and has missed nothing
            await listener.stop(0.1)
    finally:
        await replica.stop()
        await scheduler.stop()
