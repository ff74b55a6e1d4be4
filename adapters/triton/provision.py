"""A real `tritonserver` with its Python backend, for development and tests: hashed wheels in an environment of its own.

Production pools name their own server (`engine_options.binary`). The backend runs models in a stub process that is
built for one version of Python and loads its shared library, and that misreads numpy 2: so it takes an interpreter
between 3.9 and 3.12 with a shared library. That is the project's own where it fits, else another one of this host.

`python -m adapters.triton` does it ahead of time and prints the path.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from adapters.cache import cache_dir
from adapters.errors import engine_error
from adapters.provisioning.progress import Progress, Report, UnusableError, silent
from adapters.provisioning.store import free_bytes, made_once, requirements_file, run_tool
from adapters.triton.protocol import ENGINE

_NAME: Final = "nvidia-pytriton-0.7.0"
#: Part of the folder's name; raised whenever what is made of the wheels changes.
_RECIPE: Final = "r1"
_DISK_BYTES_NEEDED: Final = 600_000_000
_ASK_TIMEOUT_S: Final = 30
_INTERPRETERS_MAX: Final = 32
#: For which there are wheels of numpy 1.26.
_VERSIONS: Final = ("3.11", "3.12", "3.10", "3.9")
_ADVICE: Final = (
    "install Python 3.11 or 3.12 with its shared library (on Debian: python3.11 and libpython3.11), "
    "or set engine_options.binary to a tritonserver of yours"
)
_ASK: Final = (
    "import json, sys, sysconfig as s; "
    "print(json.dumps(['%d.%d' % sys.version_info[:2], *map(s.get_config_var, ('LIBDIR', 'MULTIARCH', 'INSTSONAME'))]))"
)


class Interpreter(Struct, frozen=True):
    """A Python that the stub can run in: its executable, `major.minor`, and its shared library."""

    executable: str
    version: str
    library: Path


def find_engine(report: Report = silent) -> Path:
    """The path of a tritonserver that runs here. Blocks while it is installed.

    Raises EngineError (POOL_UNREADY) that says what is missing and what to do.
    """
    try:
        interpreter = _interpreter()

        def make(folder: Path) -> None:
            _make_environment(folder, interpreter, report)

        name = f"{_NAME}-python{interpreter.version}-{_RECIPE}"
        root = made_once(cache_dir() / "engines" / ENGINE, name, make, report)
    except UnusableError as unusable:
        message = f"no usable tritonserver: {unusable}. {_ADVICE}"
        raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=False) from None
    return _package(root, interpreter.version) / "tritonserver" / "bin" / "tritonserver"


def _package(root: Path, version: str) -> Path:
    return root / "venv" / "lib" / f"python{version}" / "site-packages" / "pytriton"


def _make_environment(folder: Path, interpreter: Interpreter, report: Report) -> None:
    free = free_bytes(folder)
    if free < _DISK_BYTES_NEEDED:
        raise UnusableError(f"it needs {_DISK_BYTES_NEEDED // 10**6} MB of disk, {free // 10**6} MB are free")
    report(Progress("install", 0, 1, f"tritonserver with Python {interpreter.version}"))
    venv = folder / "venv"
    uv = [sys.executable, "-m", "uv"]
    run_tool([*uv, "venv", "--relocatable", "--python", interpreter.executable, str(venv)], cwd=folder, env=os.environ)
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    requirements = str(requirements_file("triton.txt"))
    python = str(venv / "bin" / "python")
    run_tool([*uv, "pip", "install", "--python", python, *options, "-r", requirements], cwd=folder, env=os.environ)
    package = _package(folder, interpreter.version)
    stub = package / "tritonserver" / "python_backend_stubs" / interpreter.version / "triton_python_backend_stub"
    try:
        # Its run path leads to the package's own libraries, also from here.
        shutil.copy(stub, package / "tritonserver" / "backends" / "python")
        libraries = package.parent / "nvidia_pytriton.libs"
        (libraries / interpreter.library.name).symlink_to(interpreter.library)
    except OSError as error:
        raise UnusableError(f"the package is not laid out as expected: {error}") from None


def _interpreter() -> Interpreter:
    """The first interpreter that fits. Raises UnusableError that says why the project's own does not."""
    own, reason = _look_at(sys.executable)
    if own is not None:
        return own
    for executable in _installed():
        other, _ = _look_at(executable)
        if other is not None:
            return other
    raise UnusableError(f"its Python backend cannot use this Python ({reason}), and there is no other one that fits")


def _installed() -> Iterator[str]:
    """Executables of the fitting interpreters of this host, in the order of preference."""
    for version in _VERSIONS:
        argv = [sys.executable, "-m", "uv", "python", "list", "--only-installed", "--output-format", "json", version]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_TIMEOUT_S)
            listed = json.loads(done.stdout or b"[]")
            yield from [entry["path"] for entry in listed if entry.get("path")][:_INTERPRETERS_MAX]
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError, AttributeError):
            continue


def _look_at(executable: str) -> tuple[Interpreter | None, str]:
    """What an interpreter says of itself; None and a reason where it does not fit."""
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_TIMEOUT_S,
        )
        version, folder, arch, name = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None, "it cannot be run"
    if version not in _VERSIONS:
        return None, f"there is no numpy 1.x for Python {version}"
    # Distributions put the library into a folder of the architecture.
    places = [Path(folder or "/usr/lib"), Path("/usr/lib") / (arch or ""), Path("/usr/lib64")]
    for name_of_library in (str(name), f"libpython{version}.so.1.0"):
        for place in places:
            library = place / name_of_library
            if library.suffix != ".a" and library.is_file():
                return Interpreter(executable, version, library), ""
    return None, f"it has no shared library libpython{version}.so.1.0"
