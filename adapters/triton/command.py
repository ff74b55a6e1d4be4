"""How a `tritonserver` is started: arguments and environment."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from adapters.folder import SOCKET_NAME
from adapters.triton.stubs import memory_prefix
from contracts.engine import EngineSpec

_GRPC: Final = "grpc"
#: The server puts its port behind the address, also behind the path of a socket.
_GRPC_PORT: Final = 8001
_METRICS: Final = "metrics"
_EXIT_TIMEOUT_S: Final = 2


def grpc_socket(folder: Path) -> str:
    """Where the gRPC service listens."""
    return f"{folder / _GRPC}:{_GRPC_PORT}"


def metrics_socket(folder: Path) -> str:
    """Where the metrics page is."""
    return str(folder / _METRICS)


def server_arguments(spec: EngineSpec, models: Sequence[str], folder: Path, extra: Sequence[str]) -> list[str]:
    """The command line behind the binary. The server listens on Unix sockets in `folder` only (OC-ADAPT-5002).

    Models are loaded by name and on request, so that nothing else of the repository takes memory (ORCH-3057).
    """
    home = Path(spec.binary).parent.parent
    return [
        f"--model-repository={spec.model_path}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        f"--http-address=unix:{folder / SOCKET_NAME}",
        f"--grpc-address=unix:{folder / _GRPC}",
        f"--grpc-port={_GRPC_PORT}",
        f"--metrics-address=unix:{folder / _METRICS}",
        f"--allow-gpu-metrics={'true' if spec.accelerator == 'gpu' else 'false'}",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
        # Its tables and notes would crowd out the last words that matter.
        "--log-info=false",
        f"--backend-config=python,shm-region-prefix-name={memory_prefix(folder)}",
        *(f"--{name}-directory={home / place}" for name, place in _PLACES if (home / place).is_dir()),
        *extra,
    ]


#: Where a server that is not installed in its usual place has its parts.
_PLACES: Final = (("backend", "backends"), ("cache", "caches"))


def server_environment(spec: EngineSpec, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment: exactly the devices of the mask (ORCH-3011), and the Python that belongs to the server.

    The Python backend takes the first `python3` on the path for its own, and no account of this process's settings
    may reach it.
    """
    source = os.environ if base is None else base
    env = {
        name: value
        for name, value in source.items()
        if not name.startswith(("PYTHON", "TRITON_", "TRITONSERVER_")) and name != "VIRTUAL_ENV"
    }
    if spec.accelerator == "cpu-dev":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif spec.gpu_uuids or spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids or spec.devices)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    python = _python_folder(Path(spec.binary))
    if python is not None:
        env["PATH"] = f"{python}:{env.get('PATH', os.defpath)}"
    return env


def _python_folder(binary: Path) -> Path | None:
    """The programs of the Python environment that the server lies in, None where it lies in none."""
    return next((parent / "bin" for parent in binary.parents if (parent / "pyvenv.cfg").is_file()), None)
