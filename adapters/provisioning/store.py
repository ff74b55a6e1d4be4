"""Engines in the cache: made once, complete or absent, by one maker at a time."""

import contextlib
import fcntl
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from adapters.child import bound_to_this_process
from adapters.provisioning.progress import Progress, Report, UnusableError
from adapters.redaction import redact

REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "requirements"

_LOCK_WAIT_S: Final = 3600
_COMMAND_MAX_S: Final = 3600
_TERMINATE_S: Final = 10


def made_once(root: Path, name: str, make: Callable[[Path], None], report: Report) -> Path:
    """The folder `root/name`; where absent, `make` fills a new one, which is then moved into place.

    Raises UnusableError where making fails or another process holds the lock for too long.
    """
    final = root / name
    if final.is_dir():
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{name}.lock", report):
            if final.is_dir():
                return final
            for leftover in root.glob(f".making-{name}-*"):  # of a maker that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".making-{name}-", dir=root) as scratch:
                filling = Path(scratch) / "out"
                filling.mkdir()
                make(filling)
                filling.rename(final)
    except OSError as error:
        raise UnusableError(f"cannot write the cache: {error}") from error
    return final


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold an exclusive lock that the kernel drops when its holder dies."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnusableError(f"another process has been making it for {_LOCK_WAIT_S} s") from None
                if not told:
                    report(Progress("wait", 0, 1, "another process is making it"))
                    told = True
                time.sleep(0.5)
        yield


def requirements_file(name: str) -> Path:
    """A hashed requirements file of the project. Raises UnusableError where it is not there."""
    path = REQUIREMENTS / name
    if not path.is_file():
        raise UnusableError(f"requirements/{name} is missing from this installation")
    return path


def run_tool(
    argv: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a tool to its end, line by line. Raises UnusableError with its last lines when it fails."""
    tail: deque[str] = deque(maxlen=5)
    deadline = time.monotonic() + _COMMAND_MAX_S
    if not Path(argv[0]).is_file():
        raise UnusableError(f"cannot run {argv[0]}: there is no such file")
    process = subprocess.Popen(
        bound_to_this_process(argv),
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.strip():
                tail.append(redact(line.strip()))
                on_line(line)
            if time.monotonic() > deadline:
                raise UnusableError(f"{Path(argv[0]).name} took longer than {_COMMAND_MAX_S} s")
        status = process.wait()
    finally:
        _end(process)
        process.stdout.close()
    if status != 0:
        raise UnusableError(f"{Path(argv[0]).name} failed with status {status}: {' | '.join(tail)[-600:]}")


def _end(process: "subprocess.Popen[str]") -> None:
    """End a tool that still runs; asked politely first, because then it ends its own children."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
