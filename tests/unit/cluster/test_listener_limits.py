"""The ingress replicas' own port over real sockets: what a client may send, how slowly, and how often at once."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from contracts import openapi_examples as ex
from orchestrator.cluster.http_connection import BODY_TIMES, HttpLimits
from orchestrator.cluster.listener import Listener
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import IngressSettings
from tests.unit.ingress.asgi import KEY, SETTINGS, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

LIMITS = HttpLimits(head_max_bytes=4096, headers_max=20, request_timeout_ms=400)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@contextlib.asynccontextmanager
async def listening(
    gateway: FakeGateway | None = None,
    limits: HttpLimits = LIMITS,
    connections_max: int = 100,
    settings: IngressSettings = SETTINGS,
) -> AsyncIterator[Listener]:
    listener = Listener(build_app(gateway or FakeGateway(), settings), 0, connections_max, limits)
    listener.start()
    try:
        yield listener
    finally:
        await listener.stop(0.1)


class Client:
    """Bytes over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, listener: Listener) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", listener.port))

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, json.loads(body) if body else None

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def until_cut(self, start: bytes, filler: bytes, pause_s: float) -> bytes:
        """Send without end; what comes until the server stops that."""
        answer = asyncio.create_task(self.rest())
        with contextlib.suppress(ConnectionError):
            await self.send(start)
            while not answer.done():
                await self.send(filler)
                await asyncio.sleep(pause_s)
        return await answer

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def check_refusal(answer: tuple[int, dict[str, str], Any], status: int, code: str) -> None:
    got, headers, body = answer
    assert (got, body["code"]) == (status, code)
    assert headers["connection"] == "close"
    assert len(headers["x-correlation-id"]) == 36


@pytest.mark.req("ORCH-2006")
async def test_requests_follow_one_another_on_a_connection() -> None:
    async with listening() as listener, await Client.of(listener) as client:
        for _ in range(3):
            await client.send(GET + b"\r\n")
            assert (await client.answer())[0] == 200
        await client.send(GET + b"\r\n" + GET + b"\r\n", GET[:10], GET[10:] + b"\r\n")
        assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 200]


@pytest.mark.req("OC-CTRL-2030", "ORCH-2006")
@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"a" * 5000,
        b"".join(b"h%d: 1\r\n" % n for n in range(30)),
        b"x: " + b"a" * 40_000,
    ],
    ids=["one large header", "many headers", "over a packet"],
)
async def test_a_head_over_a_limit_is_refused(head: bytes) -> None:
    async with listening() as listener, await Client.of(listener) as client:
        await client.send(GET + head + b"\r\n\r\n")
        check_refusal(await client.answer(), 413, "PAYLOAD_TOO_LARGE")
        assert await client.rest() == b""


@pytest.mark.req("OC-CTRL-2030")
@pytest.mark.parametrize(
    "start", [GET + b"x: ", GET, b"GET /" + b"a" * 100, b""], ids=["value", "name", "url", "blank"]
)
async def test_an_endless_head_is_cut_while_it_is_sent(start: bytes) -> None:
    """The parser holds what it is sent; nothing but this bounds it."""
    filler = {b"": b"\r\n" * 500, GET: b"n: v\r\n" * 100}.get(start, b"a" * 1000)
    async with listening() as listener, await Client.of(listener) as client:
        assert b"PAYLOAD_TOO_LARGE" in await client.until_cut(start, filler, 0)


async def test_heads_within_the_limits_pass() -> None:
    async with listening() as listener, await Client.of(listener) as client:
        await client.send(GET + b"x: " + b"a" * 3900 + b"\r\n\r\n")
        assert (await client.answer())[0] == 200
        await client.send(GET + b"".join(b"h%d: 1\r\n" % n for n in range(19)) + b"\r\n")
        assert (await client.answer())[0] == 200


@pytest.mark.req("OC-CTRL-2030")
async def test_a_head_that_trickles_is_cut() -> None:
    async with listening() as listener, await Client.of(listener) as client:
        answer = await client.until_cut(GET, b"x", 0.02)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"INVALID_PARAMS" in answer


async def test_a_head_that_trickles_after_a_served_request_is_cut_too() -> None:
    async with listening() as listener, await Client.of(listener) as client:
        await client.send(GET + b"\r\n")
        assert (await client.answer())[0] == 200
        await client.send(GET)
        check_refusal(await client.answer(), 400, "INVALID_PARAMS")
        assert await client.rest() == b""


async def test_a_connection_that_says_nothing_is_closed_in_silence() -> None:
    async with listening() as listener, await Client.of(listener) as client:
        assert await client.rest() == b""


@pytest.mark.req("OC-CTRL-2030", "OC-CTRL-2052")
async def test_a_body_that_is_late_is_answered_and_the_connection_closed() -> None:
    settings = IngressSettings(keys=SETTINGS.keys, request_timeout_ms=200)
    async with listening(settings=settings) as listener, await Client.of(listener) as client:
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 100\r\n\r\n"
        await client.send(head.encode() + b'{"task_id": ')
        answer = await client.answer()
        check_refusal(answer, 400, "INVALID_PARAMS")
        assert "200 ms" in answer[2]["message"]
        assert await client.rest() == b""


async def test_a_body_that_nobody_reads_does_not_hold_the_connection() -> None:
    """The request is answered before it is whole (401); what goes on coming is dropped, and then cut."""
    async with listening() as listener, await Client.of(listener) as client:
        await client.send(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await client.answer())[0] == 401
        assert await client.until_cut(b"", b"x", 0.01) == b""


async def test_a_stream_outlasts_the_time_of_requests() -> None:
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    async with listening(gateway) as listener, await Client.of(listener) as client:
        body = json.dumps(task_body(task_id=ex.TASK_ID)).encode()
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nAccept: text/event-stream\r\n"
        await client.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in await client.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(LIMITS.request_timeout_ms / 1000 + 0.3)
        gateway.feed(ex.TASK_ID, ex.END)
        async with asyncio.timeout(10):
            await client.reader.readuntil(b"event: end")


async def test_a_request_behind_a_long_stream_is_not_blamed_for_waiting() -> None:
    """Its body is more than is held for it, so the rest is left unread until the stream is over."""
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    async with listening(gateway) as listener, await Client.of(listener) as client:
        body = json.dumps(task_body(task_id=ex.TASK_ID)).encode()
        keys = f"HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
        await client.send(
            f"POST /v1/tasks {keys}Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
        )
        await client.reader.readuntil(b"event: started")
        client.writer.write(f"GET /v1/tasks/{ex.TASK_ID} {keys}Content-Length: 2000000\r\n\r\n".encode())
        client.writer.write(b"y" * 2_000_000)
        await asyncio.sleep(BODY_TIMES * LIMITS.request_timeout_ms / 1000 + 0.3)
        gateway.feed(ex.TASK_ID, ex.END)
        async with asyncio.timeout(10):
            await client.reader.readuntil(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030")
@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELO there\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n"]
)
async def test_what_is_not_http_is_refused_with_the_envelope(noise: bytes) -> None:
    async with listening() as listener, await Client.of(listener) as client:
        await client.send(noise)
        check_refusal(await client.answer(), 400, "INVALID_PARAMS")


@pytest.mark.req("ORCH-2007", "OC-CTRL-2011")
async def test_connections_are_bounded_and_one_too_many_is_told_to_come_again() -> None:
    async with listening(connections_max=3) as listener, contextlib.AsyncExitStack() as held:
        clients = [await held.enter_async_context(await Client.of(listener)) for _ in range(3)]
        for client in clients:
            await client.send(GET + b"\r\n")
            assert (await client.answer())[0] == 200
        async with await Client.of(listener) as one_more:
            await one_more.send(GET + b"\r\n")
            answer = await one_more.answer()
            check_refusal(answer, 429, "ADMISSION_REJECT")
            assert (answer[1]["retry-after"], answer[2]["policy_label"]) == ("1", "reject")
            assert await one_more.rest() == b""
        async with clients[0]:
            pass
        async with asyncio.timeout(10):
            while True:
                async with await Client.of(listener) as again:
                    await again.send(GET + b"\r\n")
                    if (await again.answer())[0] == 200:
                        return


async def test_a_flood_of_connections_is_turned_away_within_bounds() -> None:
    async with listening(connections_max=1) as listener, contextlib.AsyncExitStack() as held:
        first = await held.enter_async_context(await Client.of(listener))
        await first.send(GET + b"\r\n")
        await first.answer()
        flood = [await held.enter_async_context(await Client.of(listener)) for _ in range(200)]
        ends = await asyncio.gather(*(client.rest() for client in flood))
        told = [end for end in ends if b"ADMISSION_REJECT" in end]
        assert told
        assert all(end in told or end == b"" for end in ends)
        assert len(listener._connections) == 1
        await first.send(GET + b"\r\n")
        assert (await first.answer())[0] == 200


async def test_a_listener_that_stops_lets_open_requests_end_and_cuts_the_rest() -> None:
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    async with listening(gateway) as listener, await Client.of(listener) as client, await Client.of(listener) as idle:
        body = json.dumps(task_body(task_id=ex.TASK_ID)).encode()
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nAccept: text/event-stream\r\n"
        await client.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await client.reader.readuntil(b"event: started")
        stopping = asyncio.create_task(listener.stop(5))
        assert await idle.rest() == b""
        gateway.feed(ex.TASK_ID, ex.END)
        assert b"event: end" in await client.rest()
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await Client.of(listener)
