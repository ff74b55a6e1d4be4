"""Compile the scheduler's core with mypyc: `python -m tools.compile_core [--wheel FOLDER]`.

The sources stay as they are and keep working without it. The build is made in `build/compiled`, outside the
source tree: a copy of all packages in which the modules of `orchestrator/core` stand beside their compiled
form, which Python prefers. Put first on PYTHONPATH it is used instead of the sources. It fits this
machine's interpreter only; unchanged sources are not compiled again. `--wheel` packs it for another
machine of the same kind.
"""

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "build" / "compiled"
PACKAGES: Final = ("contracts", "orchestrator", "adapters")
CORE: Final = Path("orchestrator") / "core"
#: What the build was made from; beside the packages, so that it goes with them.
STAMP: Final = ".compiled-from"

SETUP: Final = """\
from mypyc.build import mypycify
from setuptools import setup

setup(
    name="llama-orch-core",
    packages=[],
    ext_modules=mypycify(
        ["--config-file=mypy.ini", *{files!r}], opt_level="3", debug_level="0", group_name="llama_orch_core"
    ),
)
"""
#: The types are checked elsewhere; here they only have to be read.
MYPY_INI: Final = "[mypy]\nstrict = True\ndisable_error_code = empty-body\n"


class CompileError(Exception):
    """The core could not be compiled; says why and what to do."""


def modules(root: Path) -> list[Path]:
    """The core's modules, relative to `root`; the package's own file has nothing to compile."""
    return sorted(path.relative_to(root) for path in (root / CORE).rglob("*.py") if path.name != "__init__.py")


def fingerprint(root: Path) -> str:
    """sha256 over all that the build is made from: sources, this tool, interpreter and platform."""
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()} {SETUP} {MYPY_INI}".encode())
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def copy_packages(root: Path, out: Path) -> None:
    """A fresh copy of the packages, without caches."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for package in PACKAGES:
        shutil.copytree(root / package, out / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))


def is_current(root: Path, out: Path) -> bool:
    """Whether the build in `out` was made from these sources."""
    stamp = out / STAMP
    return stamp.is_file() and stamp.read_text() == fingerprint(root)


def compile_core(root: Path = ROOT, out: Path = OUT) -> bool:
    """Make the build unless it is there; returns whether it was made. Raises `CompileError`."""
    if is_current(root, out):
        return False
    if out.resolve() == root.resolve() or root.resolve().is_relative_to(out.resolve()):
        raise CompileError(f"{out} holds the sources themselves: name another folder")
    copy_packages(root, out)
    files = [str(path) for path in modules(root)]
    (out / "setup.py").write_text(SETUP.format(files=files))
    (out / "mypy.ini").write_text(MYPY_INI)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(
            "mypyc could not compile the core; a C compiler and the dev requirements are needed"
            f" (apt install gcc, make setup-dev). It said:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    shutil.rmtree(out / "build", ignore_errors=True)
    for name in ("setup.py", "mypy.ini"):
        (out / name).unlink()
    try_import(out)
    (out / STAMP).write_text(fingerprint(root))
    return True


def overlay(out: Path = OUT) -> dict[str, str]:
    """This process's environment, with the build in front of the sources. Use `python -P`, or the sources win."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(out), str(ROOT)))}


def try_import(out: Path) -> None:
    """Raises `CompileError` unless the build is what is imported, and can be."""
    code = "from orchestrator.core import scheduler; print(scheduler.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=out, env=overlay(out), capture_output=True, text=True, check=False
    )
    found = done.stdout.strip()
    if done.returncode or found.endswith(".py") or not found.startswith(str(out)):
        raise CompileError(f"the compiled core is not usable; imported: {found or 'nothing'}\n{done.stderr[-2000:]}")


def pack(out: Path, folder: Path) -> Path:
    """Pack the build as a wheel for this interpreter and platform. Raises `CompileError` without the plain one."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    plain = sorted(folder.glob("llama_orch-*-py3-none-any.whl"))
    if done.returncode or not plain:
        raise CompileError(f"the plain wheel could not be built:\n{done.stderr[-2000:]}")
    return add_compiled(plain[-1], out)


def add_compiled(plain: Path, out: Path) -> Path:
    """A platform wheel: the plain one's files and the compiled modules, with tags and record to match."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    tag = f"{python}-{python}-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    target = plain.with_name(plain.name.replace("py3-none-any", tag))
    record: list[str] = []
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        files = {name: source.read(name) for name in source.namelist() if not name.endswith("/RECORD")}
        (record_name,) = [name for name in source.namelist() if name.endswith(".dist-info/RECORD")]
        for path in sorted(out.rglob("*.so")):
            files[str(path.relative_to(out))] = path.read_bytes()
        for name, content in files.items():
            if name.endswith(".dist-info/WHEEL"):
                content = content.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false")
                content = content.replace(b"Tag: py3-none-any", f"Tag: {tag}".encode())
            wheel.writestr(name, content)
            record.append(f"{name},sha256={_urlsafe(content)},{len(content)}")
        wheel.writestr(record_name, "\n".join([*record, f"{record_name},,", ""]))
    plain.unlink()
    return target


def _urlsafe(content: bytes) -> str:
    """A digest as wheels write it: base64 for URLs, without padding (PEP 376)."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, metavar="FOLDER", help="pack the build as a wheel into this folder")
    asked = parser.parse_args()
    try:
        made = compile_core()
        sys.stdout.write(f"{OUT.relative_to(ROOT)}: {'compiled' if made else 'up to date'}\n")
        if asked.wheel:
            sys.stdout.write(f"{pack(OUT, asked.wheel)}\n")
    except CompileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
