"""The channel between nodes with Ray's certificates, and beside it the Unix socket without any."""

import asyncio
from pathlib import Path

import pytest

from contracts import messages as wire
from orchestrator.cluster import channel, channel_tls
from orchestrator.cluster.channel import ChannelServer, connect
from orchestrator.cluster.connection import ChannelError, Connection
from tests.unit.cluster.certificates import Authority

SECRET, NODE = b"s" * 32, "node-1"


async def dial(endpoint: wire.Endpoint, node_id: str) -> Connection:
    return await connect(endpoint, node_id, SECRET, "ingress", "i", wire.ToIngress, lambda *_: None, lambda _: None)


@pytest.mark.req("OC-CTRL-2040")
async def test_other_nodes_need_a_certificate_and_processes_of_this_one_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    cert_file, key_file = authority.issue("node")
    for name, value in (
        (channel_tls.USE, "1"),
        (channel_tls.CERT, str(cert_file)),
        (channel_tls.KEY, str(key_file)),
        (channel_tls.CA, str(authority.ca_file)),
    ):
        monkeypatch.setenv(name, value)
    opened: list[Connection] = []
    server = ChannelServer(SECRET, wire.ToScheduler, opened.append, lambda *_: None, lambda _: None)
    endpoint = await server.start(NODE, "127.0.0.1")
    try:
        near, far = await dial(endpoint, NODE), await dial(endpoint, "node-2")
        assert near._transport is not None
        assert near._transport.get_extra_info("ssl_object") is None
        assert far._transport is not None
        assert far._transport.get_extra_info("ssl_object").getpeercert()["subject"]
        monkeypatch.setenv(channel_tls.USE, "0")
        monkeypatch.setattr(channel, "CONNECT_TIMEOUT_S", 0.5)
        with pytest.raises(ChannelError):
            await dial(endpoint, "node-3")  # in the clear
        assert len(opened) == 2
        for connection in (near, far):
            connection.close()
        await asyncio.sleep(0.05)
    finally:
        await server.close()
