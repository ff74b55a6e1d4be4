"""GPUs that are not there: a scripted libnvidia-ml.so.1 for tests, and the file that scripts it.

The library is C, so that the real NVML binding runs unchanged on top of it, in this project's processes and
in Ray's. It is compiled where it is used (`build_fake_nvml`); a process that starts with `FakeGpus.environment` sees
the GPUs of the state file. See fake_nvml.c for the file's keys.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

LIBRARY: Final = "libnvidia-ml.so.1"
STATE_VARIABLE: Final = "LLORCH_FAKE_NVML"
#: NVML's event types: nvmlEventTypeSingleBitEccError, …DoubleBitEccError, …XidCriticalError.
SINGLE_BIT_ECC: Final = 1
DOUBLE_BIT_ECC: Final = 2
XID: Final = 8

_SOURCE: Final = Path(__file__).with_name("fake_nvml.c")
_COMPILE_TIMEOUT_S: Final = 60


class BuildError(Exception):
    """The fake library could not be compiled."""


def build_fake_nvml(folder: Path) -> Path:
    """Compile the library into `folder` with `$CC` or `cc`, and return the folder, for LD_LIBRARY_PATH.

    A library that is newer than its source is kept. Raises BuildError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY
    if library.exists() and library.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return folder
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BuildError("the fake NVML is C and no compiler was found: install gcc or clang, or point $CC at one")
    partial = folder / f"{LIBRARY}.{os.getpid()}"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(partial), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise BuildError(f"{compiler} failed on {_SOURCE.name}: {done.stderr.strip()}")
    # Another process may be loading it: it appears whole.
    partial.replace(library)
    return folder


class FakeGpus:
    """The GPUs of one node: the writer of a state file, which every process that was pointed at it sees at once."""

    def __init__(self, folder: Path, state: Path, values: Mapping[str, str | int] | None = None) -> None:
        self._folder = folder
        self._state = state
        self._values: dict[str, str] = {}
        self._events: list[str] = []
        build_fake_nvml(folder)
        self.set(values or {})

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment when it starts; overrides no other library path."""
        inherited = os.environ.get("LD_LIBRARY_PATH")
        places = [str(self._folder), inherited] if inherited else [str(self._folder)]
        return {"LD_LIBRARY_PATH": ":".join(places), STATE_VARIABLE: str(self._state)}

    def set(self, values: Mapping[str, str | int]) -> None:
        """Change keys such as `gpu0.used_mib`; all at once."""
        self._values |= {key: str(value) for key, value in values.items()}
        self._write()

    def event(self, gpu: int, type_: int, data: int = 0) -> None:
        """Let an event happen on a GPU; `data` is the code of an XID."""
        self._events.append(f"event {len(self._events) + 1} {gpu} {type_} {data}")
        self._write()

    def _write(self) -> None:
        lines = [f"{key} {value}" for key, value in self._values.items()] + self._events
        partial = self._state.with_name(self._state.name + ".partial")
        partial.write_text("".join(f"{line}\n" for line in lines))
        partial.replace(self._state)
