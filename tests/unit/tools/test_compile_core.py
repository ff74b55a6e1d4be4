"""The tool that compiles the core: what it takes in, when it works anew, and the wheel that it packs."""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from tools import compile_core
from tools.compile_core import CompileError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source tree with one module to compile."""
    for package in compile_core.PACKAGES:
        (tmp_path / "src" / package).mkdir(parents=True)
        (tmp_path / "src" / package / "__init__.py").write_text("")
    core = tmp_path / "src" / compile_core.CORE
    core.mkdir()
    (core / "__init__.py").write_text("")
    (core / "scheduler.py").write_text("def twice(n: int) -> int:\n    return 2 * n\n")
    return tmp_path / "src"


def test_all_modules_of_the_core_but_the_packages_own_file_are_compiled() -> None:
    names = {path.name for path in compile_core.modules(compile_core.ROOT)}
    assert {"scheduler.py", "wfq.py", "timers.py"} <= names
    assert "__init__.py" not in names


def test_the_build_is_a_copy_beside_the_sources(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    stale = out / "orchestrator" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    (root / compile_core.CORE / "scheduler.so").write_text("not for the copy")
    compile_core.copy_packages(root, out)
    assert (out / compile_core.CORE / "scheduler.py").read_text() == (
        root / compile_core.CORE / "scheduler.py"
    ).read_text()
    assert not stale.exists()
    assert not list(out.rglob("*.so"))


def test_a_build_is_current_until_any_source_changes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    assert not compile_core.is_current(root, out)
    out.mkdir()
    (out / compile_core.STAMP).write_text(compile_core.fingerprint(root))
    assert compile_core.is_current(root, out)
    assert not compile_core.compile_core(root, out)
    (root / "contracts" / "__init__.py").write_text("CHANGED = True\n")
    assert not compile_core.is_current(root, out)


def test_the_sources_are_never_written_over(root: Path) -> None:
    for out in (root, root.parent):
        with pytest.raises(CompileError, match="name another folder"):
            compile_core.compile_core(root, out)
    assert (root / compile_core.CORE / "scheduler.py").is_file()


def test_what_mypyc_refuses_is_told(root: Path, tmp_path: Path) -> None:
    (root / compile_core.CORE / "scheduler.py").write_text("def twice(n: int) -> int:\n    return 'no'\n")
    with pytest.raises(CompileError, match=r"scheduler\.py:2"):
        compile_core.compile_core(root, tmp_path / "build")
    assert not compile_core.is_current(root, tmp_path / "build")


def test_a_build_that_is_not_compiled_is_refused(root: Path, tmp_path: Path) -> None:
    compile_core.copy_packages(root, tmp_path / "build")
    with pytest.raises(CompileError, match="not usable"):
        compile_core.try_import(tmp_path / "build")


@pytest.mark.timeout(300)
def test_a_module_is_compiled_and_imported_in_place_of_its_source(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    assert compile_core.compile_core(root, out)
    assert compile_core.is_current(root, out)
    assert list((out / compile_core.CORE).glob("scheduler.*.so"))
    assert not list(root.rglob("*.so"))


def test_the_wheel_has_the_compiled_modules_and_a_record_that_is_right(tmp_path: Path) -> None:
    plain = tmp_path / "llama_orch-0.1.0-py3-none-any.whl"
    info = "llama_orch-0.1.0.dist-info"
    with zipfile.ZipFile(plain, "w") as wheel:
        wheel.writestr("orchestrator/core/wfq.py", "")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    out = tmp_path / "out"
    (out / compile_core.CORE).mkdir(parents=True)
    (out / compile_core.CORE / "wfq.so").write_bytes(b"compiled")

    packed = compile_core.add_compiled(plain, out)

    assert not plain.exists()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert packed.name.startswith(f"llama_orch-0.1.0-{python}-{python}-")
    with zipfile.ZipFile(packed) as wheel:
        assert wheel.read("orchestrator/core/wfq.so") == b"compiled"
        about = wheel.read(f"{info}/WHEEL").decode()
        assert "Root-Is-Purelib: false" in about
        assert f"Tag: {packed.name.split('-', 2)[2].removesuffix('.whl')}" in about
        lines = wheel.read(f"{info}/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in lines} == set(wheel.namelist())
        for line in lines:
            name, digest, size = line.split(",")
            if digest:
                content = wheel.read(name)
                encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
                assert (digest, int(size)) == (f"sha256={encoded}", len(content))
