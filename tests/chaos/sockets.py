"""Cuts connections of another process from outside, or loses what comes over them, by a copy of its socket.

The copy is made by pidfd_getfd(2). Cut, the process sees what it sees when a peer goes: end of file on reading, EPIPE
on writing. Lossy, the kernel drops every segment that arrives at the socket, as a network does that is gone for a
while: TCP sends them again, later and later, until they are let in or somebody gives up.
"""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
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
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
#: One instruction of a classic BPF program: return 0, which keeps no byte of a segment.
_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


class Link(Struct, frozen=True):
    """An accepted connection of a process's channel: its file descriptor there, and a name for the report."""

    fd: int
    name: str

    @property
    def is_tcp(self) -> bool:
        return self.name.startswith("tcp")


def links(pid: int) -> list[Link]:
    """Connections that peers hold to the channel that a process listens on, over its Unix socket and TCP."""
    fds = _socket_fds(pid)
    return sorted(_unix_links(pid, fds) + _tcp_links(pid, fds), key=lambda link: link.fd)


def cut(pid: int, fd: int) -> None:
    """Shut a socket of another process down, both ways. Raises OSError."""
    with _taken(pid, fd) as theirs:
        theirs.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def lossy(pid: int, fd: int) -> Iterator[None]:
    """Lose all that arrives at a TCP socket of another process, until the end of the block. Raises OSError.

    The copy is not kept meanwhile: a process that is killed must be seen to close its socket.
    """
    program = ctypes.create_string_buffer(_DROP_ALL)
    with _taken(pid, fd) as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    try:
        yield
    finally:
        # The process or its connection may be gone by now, and the number may be another file's.
        with contextlib.suppress(OSError), _taken(pid, fd) as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


@contextlib.contextmanager
def _taken(pid: int, fd: int) -> Iterator[socket.socket]:
    """A socket of another process, as one of ours."""
    pidfd = os.pidfd_open(pid)
    try:
        ours = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if ours < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    finally:
        os.close(pidfd)
    with socket.socket(fileno=ours) as theirs:
        yield theirs


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
