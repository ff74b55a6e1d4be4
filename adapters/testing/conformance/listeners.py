"""Where a process and its descendants listen, as the kernel tells it."""

import re
from pathlib import Path
from typing import Final

from msgspec import Struct

_LISTENS: Final = "0A"
_UNIX_LISTENS: Final = "00010000"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_LOOPBACK: Final = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


class Listener(Struct, frozen=True):
    """A listening socket: a port, or a Unix socket's path. `is_loopback` is meant for ports."""

    port: int = 0
    is_loopback: bool = True
    path: str = ""


def listeners(pid: int) -> list[Listener]:
    """The listening sockets of process `pid` and of all that descend from it."""
    inodes = {inode for one in _family(pid) for inode in _sockets(one)}
    found = []
    for name in ("tcp", "tcp6"):
        for fields in _rows(pid, name):
            if fields[3] == _LISTENS and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append(Listener(port=int(port, 16), is_loopback=address in _LOOPBACK))
    found += [
        Listener(path=fields[7])
        for fields in _rows(pid, "unix")
        if fields[3] == _UNIX_LISTENS and fields[6] in inodes and len(fields) > 7
    ]
    return found


def _rows(pid: int, name: str) -> list[list[str]]:
    return [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]


def _sockets(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = _SOCKET.fullmatch(str(link.readlink()))
        except OSError:  # closed meanwhile
            continue
        if match:
            found.append(match[1])
    return found


def _family(pid: int) -> list[int]:
    """The process and its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family
