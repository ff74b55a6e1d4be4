"""TLS between nodes: on where Ray has it, checked by both sides, and never half on."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from orchestrator.cluster import channel_tls
from tests.unit.cluster.certificates import Authority


def use(monkeypatch: pytest.MonkeyPatch, authority: Authority, pair: tuple[Path, Path]) -> None:
    monkeypatch.setenv(channel_tls.USE, "1")
    monkeypatch.setenv(channel_tls.CERT, str(pair[0]))
    monkeypatch.setenv(channel_tls.KEY, str(pair[1]))
    monkeypatch.setenv(channel_tls.CA, str(authority.ca_file))


async def exchange(server: ssl.SSLContext, client: ssl.SSLContext | None, host: str = "127.0.0.1") -> bytes:
    """What a client reads that says "ping"; raises what ends its connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"pong" if await reader.read(4) == b"ping" else b"what?")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
    port = listening.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(10):
            name = host if client is not None else None
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
            writer.write(b"ping, and enough more for a TLS record")
            try:
                return await reader.read(100)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    finally:
        listening.close()
        await asyncio.sleep(0.05)  # until the server's side has seen the end


async def refused(server: ssl.SSLContext, client: ssl.SSLContext | None) -> bool:
    """With TLS 1.3 a client hears of its refusal when it reads, as an alert or as the end."""
    try:
        return b"pong" not in await exchange(server, client)
    except (ssl.SSLError, ConnectionError):
        return True


def both() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = channel_tls.server_context(), channel_tls.client_context()
    assert server is not None
    assert client is not None
    return server, client


@pytest.mark.req("OC-CTRL-2040")
async def test_two_nodes_with_certificates_of_one_authority_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    use(monkeypatch, authority, authority.issue("node-a"))
    server, _ = both()
    use(monkeypatch, authority, authority.issue("node-b"))
    _, client = both()
    assert await exchange(server, client) == b"pong"


@pytest.mark.req("OC-CTRL-2040")
async def test_a_stranger_is_refused_by_either_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    use(monkeypatch, authority, authority.issue("node"))
    server, client = both()
    use(monkeypatch, authority, stranger.issue("other"))
    foreign_server, foreign_client = both()
    with pytest.raises(ssl.SSLCertVerificationError):
        await exchange(foreign_server, client)
    assert await refused(server, foreign_client)


@pytest.mark.req("OC-CTRL-2040")
async def test_without_a_certificate_or_in_the_clear_nobody_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    use(monkeypatch, authority, authority.issue("node"))
    server, _ = both()
    assert await refused(server, authority.client())
    assert await refused(server, None)


@pytest.mark.req("OC-CTRL-2040")
async def test_a_certificate_is_good_for_its_address_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    use(monkeypatch, authority, authority.issue("node", "192.0.2.7"))
    server, client = both()
    with pytest.raises(ssl.SSLCertVerificationError):
        await exchange(server, client)


@pytest.mark.parametrize("value", [None, "0", "false", ""])
def test_without_rays_tls_there_is_none(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(channel_tls.USE, raising=False)
    if value is not None:
        monkeypatch.setenv(channel_tls.USE, value)
    assert channel_tls.server_context() is None
    assert channel_tls.client_context() is None


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_what_is_missing_or_unusable_is_an_error_and_not_a_plain_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    authority = Authority(tmp_path)
    use(monkeypatch, authority, authority.issue("node"))
    monkeypatch.setenv(channel_tls.USE, value)
    monkeypatch.delenv(channel_tls.CA)
    with pytest.raises(channel_tls.ChannelTlsError, match=channel_tls.CA):
        channel_tls.client_context()
    monkeypatch.setenv(channel_tls.CA, str(tmp_path / "nowhere.pem"))
    with pytest.raises(channel_tls.ChannelTlsError, match="cannot be used"):
        channel_tls.server_context()
    monkeypatch.setenv(channel_tls.CA, str(authority.ca_file))
    monkeypatch.setenv(channel_tls.KEY, str(authority.issue("another")[1]))
    with pytest.raises(channel_tls.ChannelTlsError):
        channel_tls.client_context()
