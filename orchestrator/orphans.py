"""Processes that outlive whoever started them end with this one.

Ray's own shutdown misses its agents when it is interrupted while they start; they would stay for
a minute or more. A process that adopts its orphans sees them all, at whatever depth.
"""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.05


def adopt() -> None:
    """From now on, descendants whose parent ends become children of this process (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(timeout_s: float) -> None:
    """Kill and collect children, and what becomes one by that, until none is left or time is up."""
    until = time.monotonic() + timeout_s
    while (children := _children()) and time.monotonic() < until:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # as many as there are children
                pass


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
