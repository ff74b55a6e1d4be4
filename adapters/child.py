"""One engine process: started with its parent's fate tied to it, watched, drained, ended.

What it writes to stderr is freed of secrets before it is kept (OC-CTRL-2041).

Works on any event loop and in any thread: the exit is watched through a pidfd, stderr through
the loop's reader. The child stays in the parent's process group, so that whatever ends the group
ends it too (ORCH-3001).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Final

from adapters.oom_kills import oom_kills
from adapters.redaction import redact, secret_values

STDERR_LINES_MAX: Final = 200
STDERR_LINE_CHARS_MAX: Final = 1000
#: More of a line is read than is kept, so that no secret is cut in two before it is looked for.
_LINE_BYTES_MAX: Final = 8192
_READ_BYTES: Final = 65536
_STOP_GRACE_MS: Final = 3000

#: Tells the processes of one engine that has several.
_MARK: Final = "LLORCH_ENGINE_MARK"
_WITH_PARENT: Final = str(Path(__file__).with_name("with_parent.py"))
_WITH_DESCENDANTS: Final = str(Path(__file__).with_name("with_descendants.py"))


def bound_to_this_process(argv: Sequence[str], *, tree: bool = False) -> list[str]:
    """`argv` (an absolute path first), made to be killed when the calling thread or process ends.

    With `tree` whatever it started is killed as well, also when it ends by itself.
    """
    return [sys.executable, "-I", "-S", _WITH_DESCENDANTS if tree else _WITH_PARENT, str(os.getpid()), *argv]


def _kill_marked(mark: bytes) -> None:
    """Kill what has `mark` in its environment: what an engine left whose supervisor was killed itself."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended, or is somebody else's
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)


class ChildProcess:
    """A started process. `status` is its exit status once it has ended (negative: signal).

    `is_stopping`: it was asked to end here. `oom_killed`: the kernel killed a process for want of memory meanwhile
    (ORCH-3039).
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], secrets: Sequence[str] = (), *, tree: bool = False
    ) -> None:
        """Start `argv`. Must be called in the thread of a running event loop that outlives the child.

        `secrets`, and those that `env` names as such, are taken out of what the process says. `tree`: it starts
        processes of its own, which must end with it.
        """
        self._loop = asyncio.get_running_loop()
        self._secrets = (*secrets, *secret_values(env))
        self._tail: deque[str] = deque(maxlen=STDERR_LINES_MAX)
        self._line = b""
        self._exited = asyncio.Event()
        self._oom_kills_before = oom_kills()
        self.oom_killed = False
        self.is_stopping = False
        self.status: int | None = None
        mark = token_hex(16) if tree else ""
        self._mark = f"{_MARK}={mark}" if mark else ""
        self._process = subprocess.Popen(
            bound_to_this_process(argv, tree=tree),
            env={**env, _MARK: mark} if mark else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self._stderr_fd, False)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._stderr_fd, self._drain_stderr)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last complete lines that the process wrote to stderr."""
        return tuple(self._tail)

    async def wait(self) -> int:
        """Return the exit status when the process has ended."""
        await self._exited.wait()
        assert self.status is not None
        return self.status

    async def stop(self, grace_ms: int = _STOP_GRACE_MS) -> None:
        """SIGTERM, then SIGKILL when the process is still there after `grace_ms`. Safe to repeat.

        A second SIGTERM has whatever it started killed with it.
        """
        self.is_stopping = True
        for _ in range(2 if self._mark else 1):
            if self.status is None:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._exited.wait(), grace_ms / 1000)
        if self.status is None:
            self._signal(signal.SIGKILL)
            await self._exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _drain_stderr(self) -> None:
        try:
            data = os.read(self._stderr_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr_fd)
            return
        self._split(data)

    def _split(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        # Of a line without an end its beginning is kept.
        self._line = rest[:_LINE_BYTES_MAX]
        for line in lines:
            self._keep(line)

    def _keep(self, line: bytes) -> None:
        text = redact(line[:_LINE_BYTES_MAX].decode(errors="replace").strip(), self._secrets)
        if text:
            self._tail.append(text[:STDERR_LINE_CHARS_MAX])

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.status = self._process.wait()
        self.oom_killed = oom_kills() > self._oom_kills_before
        if self._mark and self.status == -signal.SIGKILL:
            _kill_marked(self._mark.encode())
        # What it wrote last is still in the pipe; a bounded number of reads empties it.
        self._loop.remove_reader(self._stderr_fd)
        with contextlib.suppress(OSError):
            for _ in range(32):
                data = os.read(self._stderr_fd, _READ_BYTES)
                if not data:
                    break
                self._split(data)
        self._keep(self._line)
        assert self._process.stderr is not None
        self._process.stderr.close()
        os.close(self._pidfd)
        self._exited.set()
