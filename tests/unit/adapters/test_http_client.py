"""Calls to an engine are bounded, and whatever goes wrong is a typed error."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from adapters import http_client
from adapters.errors import engine_error
from adapters.exchange import Address
from adapters.http_client import EngineClient
from contracts.engine import EngineError


@contextlib.asynccontextmanager
async def client_of(*parts: bytes, keep_open: bool = False) -> AsyncIterator[EngineClient]:
    """A client of a peer that answers every request with `parts` and closes the connection unless told not to."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
            if keep_open:
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def refusal(status: int, body: bytes) -> EngineError:
        return engine_error("INTERNAL", f"{status} {body[:20]!r}", engine="e", retriable=True)

    client = EngineClient("e", Address(port=port), {"X-Own": "1"}, refusal)
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await asyncio.wait_for(asyncio.gather(*serving), 20)


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def code_of(client: EngineClient, **options: float) -> tuple[str, str]:
    with pytest.raises(EngineError) as raised:
        await client.call("GET", "/x", **options)
    return raised.value.info.code, raised.value.info.message


async def test_a_call_gives_the_body() -> None:
    async with client_of(answer(200, b"hello")) as client:
        assert await client.call("POST", "/x", {"a": 1}) == b"hello"
        assert await client.health("/x")


@pytest.mark.req("ORCH-3025")
async def test_refusals_are_mapped_by_the_dialect() -> None:
    async with client_of(answer(418, b"teapot")) as client:
        assert await code_of(client) == ("INTERNAL", "418 b'teapot'")
        assert not await client.health("/x")
        with pytest.raises(EngineError, match="418"):
            await client.open("/x", {})


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"no http at all\r\n\r\n"])
async def test_a_broken_answer_is_a_worker_reset(part: bytes) -> None:
    async with client_of(part) as client:
        assert (await code_of(client))[0] == "WORKER_RESET"
        assert not await client.health("/x") or part.startswith(b"HTTP")


async def test_silence_is_bounded() -> None:
    async with client_of(keep_open=True) as client:
        assert (await code_of(client, timeout_s=0.1))[0] == "WORKER_RESET"


async def test_endless_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_ANSWER_BYTES_MAX", 1000)
    async with client_of(answer(200, b"x" * 5000)) as client:
        assert "never ends" in (await code_of(client))[1]


async def test_a_refusal_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_REFUSAL_BYTES_MAX", 1000)
    endless = b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % (b"x" * 1024) * 5
    async with client_of(endless, keep_open=True) as client:
        with pytest.raises(EngineError, match="500"):
            await asyncio.wait_for(client.open("/x", {}), 10)


async def test_nobody_there_is_a_worker_reset() -> None:
    async with client_of(answer(200, b"")) as client:
        port = client._address.port
    gone = EngineClient("e", Address(port=port), {}, lambda status, body: AssertionError((status, body)))  # type: ignore[arg-type,return-value]
    assert (await code_of(gone))[0] == "WORKER_RESET"
    with pytest.raises(EngineError, match="before it answered"):
        await gone.open("/x", {})
    await gone.close()
