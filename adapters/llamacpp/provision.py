"""Find a `llama-server` that runs on this host, or make one (see .specs/30-engines.md).

Order: the configured path alone where there is one; else `llama-server` on PATH, the prebuilt
wheel where the CPU can run it, a build from source. Each is tried before it is chosen, so that a
crash is a reason in a message and never how somebody finds out.

`python -m adapters.llamacpp` does it ahead of time and prints the path.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from adapters.cache import cache_dir
from adapters.errors import engine_error
from adapters.llamacpp.build import build_from_source
from adapters.llamacpp.command import with_library_path
from adapters.llamacpp.cpu import WHEEL_FLAGS, cpu_flags, isa_level, read_cpuinfo
from adapters.llamacpp.protocol import ENGINE
from adapters.llamacpp.smoke import offload_devices, why_unusable
from adapters.llamacpp.wheel import install_wheel
from adapters.provisioning.progress import Progress, Report, UnusableError, silent

Accelerator = Literal["gpu", "cpu-dev"]
Locate = Callable[[], Path]

_ADVICE: Final = "set engine_options.binary to a llama-server that runs on this host"


def find_engine(
    configured: Path | None = None,
    *,
    accelerator: Accelerator = "cpu-dev",
    report: Report = silent,
    cpuinfo: str | None = None,
) -> Path:
    """The path of an engine binary that works here. Blocks, for minutes where one has to be built.

    Raises EngineError (POOL_UNREADY) that lists every candidate, why it is unusable, and what to do.
    """
    flags = cpu_flags(read_cpuinfo() if cpuinfo is None else cpuinfo)
    reasons = []
    for name, locate in _candidates(configured, accelerator, flags, report):
        try:
            path = locate()
            report(Progress("check", 0, 1, f"trying {path}"))
            _try(path, accelerator)
        except UnusableError as unusable:
            reasons.append(f"{name}: {unusable}")
        else:
            report(Progress("check", 1, 1, f"using {path}"))
            return path
    raise engine_error(
        "POOL_UNREADY", f"no usable llama-server: {'; '.join(reasons)}. {_ADVICE}", engine=ENGINE, retriable=False
    )


def _candidates(
    configured: Path | None, accelerator: Accelerator, flags: frozenset[str], report: Report
) -> list[tuple[str, Locate]]:
    if configured is not None:
        # An explicit choice is never replaced by another engine behind its owner's back.
        return [(f"configured {configured}", lambda: _existing(configured))]
    return [
        ("llama-server on PATH", _on_path),
        ("prebuilt wheel", lambda: _wheel(flags, report)),
        ("build from source", lambda: _build(accelerator, flags, report)),
    ]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UnusableError("there is no such file")
    return path


def _on_path() -> Path:
    found = shutil.which("llama-server")
    if found is None:
        raise UnusableError("not found")
    return Path(found)


def _wheel(flags: frozenset[str], report: Report) -> Path:
    lacking = sorted(WHEEL_FLAGS - flags)
    if lacking:
        raise UnusableError(f"its code needs CPU instructions that this host lacks ({', '.join(lacking)})")
    return install_wheel(cache_dir(), report)


def _build(accelerator: Accelerator, flags: frozenset[str], report: Report) -> Path:
    if accelerator == "gpu":
        raise UnusableError("it computes on the CPU only, and the pool asks for a GPU")
    return build_from_source(cache_dir(), isa_level(flags), report)


def _try(path: Path, accelerator: Accelerator) -> None:
    env = with_library_path(path, dict(os.environ))
    reason = why_unusable(path, env)
    if reason is not None:
        raise UnusableError(reason)
    if accelerator == "gpu" and not offload_devices(path, env):
        raise UnusableError("it finds no GPU that it can use")
