"""Become another program that the kernel kills when its parent dies.

Run as a script: `python -I -S with_parent.py PARENT_PID PROGRAM [ARGUMENT...]`.

The death signal is set here, after an exec, and not in the parent's forked child: Python code
between fork and exec may deadlock in a process with threads, and a Ray worker has many. The
signal survives the second exec. The kernel sends it when the *thread* that started this process
ends, so engines are started from the event loop's thread, which lives as long as its process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        # The parent died before the signal was set; nobody would ever end this process.
        sys.exit("the parent process is gone")
    try:
        os.execv(program, sys.argv[2:])
    except OSError as error:
        sys.exit(f"cannot run {program}: {error.strerror}")


if __name__ == "__main__":
    main()
