"""The processes in which Triton runs models of its Python backend, and the shared memory through which it feeds them.

A server whose model process has died goes on calling itself and the model ready, and never ends the streams that
were under way (seen with 2.51.0); so the processes are watched from here.
"""

import asyncio
import contextlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_SHARED_MEMORY: Final = Path("/dev/shm")
_STUB: Final = b"triton_python_backend_stub"
_DEPTH_MAX: Final = 8


class ModelProcesses:
    """The model processes that descend from `root` now. `on_end` is called once, when the first of them ends.

    Made, used and closed in one event loop.
    """

    def __init__(self, root: int, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._pidfds: list[int] = []
        for pid in _stubs(root):
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                self._pidfds.append(os.pidfd_open(pid))
        for pidfd in self._pidfds:
            self._loop.add_reader(pidfd, self._ended)

    @property
    def count(self) -> int:
        """How many are watched."""
        return len(self._pidfds)

    def release(self) -> None:
        """Watch no more: what ends from now on was meant to. Safe to repeat."""
        for pidfd in self._pidfds:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()

    def _ended(self) -> None:
        self.release()
        self._on_end()


def memory_prefix(folder: Path) -> str:
    """How the shared memory of the server with this private folder is named; folders elsewhere may have its name."""
    return f"{_place(folder.parent)}{folder.name}"


def free_memory(folder: Path, memory: Path = _SHARED_MEMORY) -> None:
    """Remove the shared memory that a server which has ended did not."""
    for region in memory.glob(f"{memory_prefix(folder)}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def free_abandoned_memory(beside: Path, memory: Path = _SHARED_MEMORY) -> None:
    """Remove the shared memory of servers whose private folder, which lay where `beside` does, is gone.

    What is left was a killed server's, whose folder another launch has removed.
    """
    place = _place(beside.parent)
    for region in memory.glob(f"{place}*"):
        if not (beside.parent / region.name[len(place) : len(place) + len(beside.name)]).exists():
            with contextlib.suppress(OSError):
                region.unlink()


def _place(parent: Path) -> str:
    return f"llorch-{zlib.crc32(bytes(parent.resolve())):08x}-"


def _stubs(root: int) -> list[int]:
    """The stubs among the descendants of a process."""
    found, generation = [], [root]
    for _ in range(_DEPTH_MAX):
        generation = [child for pid in generation for child in _children(pid)]
        found += [pid for pid in generation if _program(pid).endswith(_STUB)]
    return found


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in sorted((_PROC / str(parent) / "task").iterdir()):
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def _program(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().partition(b"\0")[0]
    except OSError:
        return b""
