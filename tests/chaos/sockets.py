"""Cuts connections of another process from outside: its socket is taken by pidfd_getfd(2) and shut down.

The process sees what it sees when a peer or the network goes: end of file on reading, EPIPE on writing.
"""

import ctypes
import os
import socket
from pathlib import Path
from typing import Final

from msgspec import Struct

_PIDFD_GETFD: Final = 438
#: Ray's own servers in a worker listen below; what the service opens gets a port of the ephemeral range.
_OURS_FROM_PORT: Final = 20_000
#: HTTP of ingress replicas, Serve's way in.
_SERVE_PORTS: Final = range(30_000, 31_001)
_ESTABLISHED_TCP, _LISTEN_TCP, _CONNECTED_UNIX = "01", "0A", "03"
_CHANNEL: Final = "/channel.sock"

_libc = ctypes.CDLL(None, use_errno=True)


class Link(Struct, frozen=True):
    """An accepted connection of a process's channel: its file descriptor there, and a name for the report."""

    fd: int
    name: str


def links(pid: int) -> list[Link]:
    """Connections that peers hold to the channel that a process listens on, over its Unix socket and TCP."""
    fds = _socket_fds(pid)
    return sorted(_unix_links(pid, fds) + _tcp_links(pid, fds), key=lambda link: link.fd)


def cut(pid: int, fd: int) -> None:
    """Shut a socket of another process down, both ways. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        ours = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if ours < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
        with socket.socket(fileno=ours) as theirs:
            theirs.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(pidfd)


def _socket_fds(pid: int) -> dict[str, int]:
    """Descriptors of a process's sockets, by inode."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            found[target[8:-1]] = int(entry.name)
    return found


def _unix_links(pid: int, fds: dict[str, int]) -> list[Link]:
    """Accepted sockets bear the path that they were accepted on."""
    found = []
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and fields[7].endswith(_CHANNEL) and fields[5] == _CONNECTED_UNIX and fields[6] in fds:
            found.append(Link(fds[fields[6]], f"unix {fields[6]}"))
    return found


def _tcp_links(pid: int, fds: dict[str, int]) -> list[Link]:
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    mine = [(int(row[1].rpartition(":")[2], 16), row[2], row[3], fds[row[9]]) for row in rows if row[9] in fds]
    listening = {port for port, _, state, _ in mine if state == _LISTEN_TCP and _is_channel(port)}
    return [
        Link(fd, f"tcp {int(peer.rpartition(':')[2], 16)}")
        for port, peer, state, fd in mine
        if state == _ESTABLISHED_TCP and port in listening
    ]


def _is_channel(port: int) -> bool:
    return port >= _OURS_FROM_PORT and port not in _SERVE_PORTS
