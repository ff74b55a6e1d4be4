"""The ingress replicas' own port with TLS: end to end with a test authority, renewed while it is in use."""

import asyncio
import contextlib
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from contracts import openapi_examples as ex
from contracts.gateway import Tokens
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError
from orchestrator.cluster import listener_tls
from orchestrator.cluster.http_connection import HttpLimits
from orchestrator.cluster.listener import Listener
from orchestrator.cluster.listener_tls import TlsFiles
from orchestrator.ingress.app import build_app
from tests.unit.cluster.certificates import Authority
from tests.unit.ingress.asgi import KEY, SETTINGS
from tests.unit.ingress.fake_gateway import FakeGateway


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_tls, "POLL_S", 0.05)


@contextlib.asynccontextmanager
async def listening(files: TlsFiles, limits: HttpLimits | None = None, most: int = 100) -> AsyncIterator[Listener]:
    gateway = FakeGateway()
    gateway.script = [ex.STARTED, Tokens(0, ["a", "b"]), ex.END]
    listener = Listener(build_app(gateway, SETTINGS), 0, most, limits, files)
    listener.start()
    try:
        yield listener
    finally:
        await listener.stop(0.1)


async def peer_serial(listener: Listener, context: ssl.SSLContext) -> str:
    """Serial number of the certificate that a new connection is shown."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.req("OC-CTRL-2040")
async def test_the_client_submits_and_streams_over_tls(authority: Authority) -> None:
    async with listening(TlsFiles(*authority.issue("door"))) as listener:
        url = f"https://127.0.0.1:{listener.port}"
        async with Client(url, KEY, ca_file=authority.ca_file) as client:
            events = [event async for event in client.run(ex.PROMPT)]
            assert events[-1] == ex.END
            assert (await client.status(str(ex.PROMPT.task_id))).state == "finished"
        async with Client(url, KEY) as distrustful:
            with pytest.raises(CannotConnectError, match="certificate"):
                await distrustful.readiness()
        stranger = Authority(authority.folder, "stranger")
        async with Client(url, KEY, ca_file=stranger.ca_file) as wrong:
            with pytest.raises(CannotConnectError, match="certificate"):
                await wrong.readiness()


@pytest.mark.req("OC-CTRL-2040")
async def test_nothing_is_said_in_the_clear(authority: Authority) -> None:
    async with listening(TlsFiles(*authority.issue("door"))) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert await peer_serial(listener, authority.client())


@pytest.mark.req("OC-CTRL-2040")
async def test_clients_need_a_certificate_where_an_authority_for_them_is_named(authority: Authority) -> None:
    clients = Authority(authority.folder, "clients")
    files = TlsFiles(*authority.issue("door"), clients.ca_file)
    async with listening(files) as listener:
        await peer_serial(listener, authority.client(clients.issue("someone")))
        for pair in (None, authority.issue("someone-else")):
            with pytest.raises((OSError, AssertionError)):  # told by an alert, or by the end of the connection
                await peer_serial(listener, authority.client(pair))


@pytest.mark.req("OC-CTRL-2040")
async def test_a_new_certificate_is_taken_up_and_open_connections_go_on(authority: Authority) -> None:
    cert_file, key_file = authority.issue("door")
    context = authority.client()
    async with listening(TlsFiles(cert_file, key_file)) as listener:
        before = await peer_serial(listener, context)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
        renewed = authority.issue("renewed")
        with structlog.testing.capture_logs() as logs:
            os.replace(renewed[0], cert_file)  # and for a moment they do not go together
            await eventually(lambda: any(line["event"] == "tls_certificate_unusable" for line in logs))
            assert await peer_serial(listener, context) == before
            os.replace(renewed[1], key_file)
            await eventually(lambda: any(line["event"] == "tls_certificate_loaded" for line in logs))
        assert await peer_serial(listener, context) != before
        assert [line["event"] for line in logs].count("tls_certificate_unusable") == 1
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.req("OC-CTRL-2040")
async def test_a_port_whose_certificate_is_unusable_is_not_opened(authority: Authority) -> None:
    cert_file, _ = authority.issue("door")
    for files in (TlsFiles(cert_file, authority.folder / "none.key"), TlsFiles(cert_file, authority.issue("b")[1])):
        with pytest.raises(OSError, match=r"key|No such file"):
            Listener(build_app(FakeGateway(), SETTINGS), 0, 10, None, files).start()


async def test_a_handshake_that_does_not_end_is_cut_and_counts_as_a_connection(authority: Authority) -> None:
    files = TlsFiles(*authority.issue("door"))
    async with listening(files, HttpLimits(request_timeout_ms=500), most=2) as listener:
        silent = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(2)]
        await eventually(lambda: len(listener._connections) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""  # one too many: closed without a word
        writer.close()
        for quiet, _ in silent:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(quiet.read(), 10) == b""
        await eventually(lambda: not listener._connections)
        assert await peer_serial(listener, authority.client())
        for _, quiet_writer in silent:
            quiet_writer.close()


async def test_a_renewal_by_a_changed_link_is_seen(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes swaps the folder of a mounted secret."""
    for version, name in (("v1", "one"), ("v2", "two")):
        (tmp_path / version).mkdir()
        cert_file, key_file = authority.issue(name)
        shutil.move(cert_file, tmp_path / version / "tls.crt")
        shutil.move(key_file, tmp_path / version / "tls.key")
    link = tmp_path / "current"
    link.symlink_to("v1")
    async with listening(TlsFiles(link / "tls.crt", link / "tls.key")) as listener:
        before = await peer_serial(listener, authority.client())
        (tmp_path / "next").symlink_to("v2")
        os.replace(tmp_path / "next", link)
        async with asyncio.timeout(10):
            while await peer_serial(listener, authority.client()) == before:
                await asyncio.sleep(0.02)
