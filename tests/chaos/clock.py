"""Steps of the time of day, for the service's processes alone: a preloaded library and the offset that it adds."""

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

OFFSET_VARIABLE: Final = "LLORCH_CLOCK_OFFSET"
_SOURCE: Final = Path(__file__).with_name("clock.c")
_BUILD_TIMEOUT_S: Final = 60


class MovedClock:
    """The time of day of every process that starts with `environment`; all of them see a step at once."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "moved_clock.so"
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise RuntimeError("steps of the clock need a C compiler: install gcc or clang, or point $CC at one")
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=_BUILD_TIMEOUT_S)
        path = folder / "clock.offset"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(self._library), OFFSET_VARIABLE: str(path)}

    def set(self, offset_ms: int) -> None:
        """How far the time of day is from the true one; 0 puts it right again."""
        self._offset[:8] = struct.pack("=q", offset_ms * 1_000_000)
