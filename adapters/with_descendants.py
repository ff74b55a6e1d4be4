"""Run a program and end everything that it started when it ends, or when this process' parent does.

Run as a script: `python -I -S with_descendants.py PARENT_PID PROGRAM [ARGUMENT...]`.

Engines of several processes leave some behind when one of them is killed. This process adopts what they leave (it
is a subreaper), so that nothing can escape it. It passes the first SIGTERM on to the program and kills all at the
second. It ends as the program ended: with its status, or by its signal. The program is killed by the kernel should
this process be killed itself.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = {signal.SIGTERM, signal.SIGCHLD}


def main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    # What a terminal sends to all is for the program to take.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bound = os.path.join(os.path.dirname(os.path.abspath(__file__)), "with_parent.py")
    program = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", bound, str(os.getpid()), *argv],
        os.environ,
        setsigmask=(),
        setsigdef=(signal.SIGINT,),
    )
    _end_like(_status_of(program, parent))


def _status_of(program: int, parent: int) -> int:
    """The program's exit code once it has ended and everything it started with it (negative: signal)."""
    code, asked = None, False
    while code is None:
        if signal.sigwait(_WATCHED) == signal.SIGTERM:
            # From a parent that is gone it is the death signal: nobody waits for a graceful end.
            if asked or os.getppid() != parent:
                _kill_all()
                return -signal.SIGKILL
            asked = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(program, signal.SIGTERM)
        code = _reap(program)
    _kill_all()
    return code


def _reap(program: int) -> int | None:
    """Take the ends that there are; the program's exit code where it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == program:
                code = os.waitstatus_to_exitcode(status)
    return code


def _kill_all() -> None:
    """Kill children until there are none: those of a killed one become ours."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _end_like(code: int) -> None:
    if code >= 0:
        sys.exit(code)
    with contextlib.suppress(ValueError, OSError):  # SIGKILL has no handler to reset
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    os.kill(os.getpid(), -code)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
