"""Fake engines as executables that are up sooner: their modules are run without the registry of adapters.

    python quick_start.py MODULE ARGUMENTS...

A fake engine needs modules beside the adapters, not the adapters: the clients that those import take most of the time
that a fake needs to start, and tests start a hundred of them. So the packages stand here without their own code.
"""

import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
FAKE_LLAMA = "adapters.testing.fake_llama_server"
TGI_PEER = "adapters.testing.tgi_peer"


def write_engine(directory: Path, module: str, *options: str) -> Path:
    """Write an executable that runs this fake engine; `options` come first."""
    words = [sys.executable, str(Path(__file__).resolve()), module, *options]
    path = directory / module.rpartition(".")[2]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def main() -> None:
    sys.path[0] = str(ROOT)
    for name in ("adapters", "adapters.llamacpp"):
        package = ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
