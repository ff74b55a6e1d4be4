"""What must be right before vLLM is launched: its Python, its model, the GPUs that it finds, what it can do there."""

import asyncio
import subprocess
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.errors import engine_error
from adapters.gpus import gpu_count
from adapters.vllm.command import server_environment
from adapters.vllm.model import checked_model
from adapters.vllm.protocol import ENGINE
from adapters.vllm.provision import find_engine, find_model
from contracts.engine import EngineSpec

BATCH_INVARIANT: Final = "VLLM_BATCH_INVARIANT"
_COUNT_GPUS: Final = "import torch; print(torch.cuda.device_count())"
_COUNT_TIMEOUT_S: Final = 120


def is_batch_invariant(spec: EngineSpec) -> bool:
    """Whether batches are known not to change tokens: the engine's own switch for that is on, on a GPU (ORCH-3045)."""
    return spec.accelerator == "gpu" and dict(spec.env).get(BATCH_INVARIANT, "0") not in ("", "0")


def check_environment(spec: EngineSpec) -> None:
    """Raises EngineError (INVALID_PARAMS) for batch invariance on the CPU, where it kills the engine when asked."""
    if spec.accelerator == "cpu-dev" and dict(spec.env).get(BATCH_INVARIANT, "0") not in ("", "0"):
        message = f"pool {spec.pool_id} sets {BATCH_INVARIANT}, which vLLM has on GPUs only; take it out of `env`"
        raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)


async def with_binary(spec: EngineSpec) -> EngineSpec:
    """`spec` with the path of a Python that has vLLM; made on this node for development on the CPU alone."""
    if not spec.binary and spec.accelerator == "cpu-dev":
        spec = replace(spec, binary=str(await asyncio.to_thread(find_engine)))
    if not Path(spec.binary).is_file():
        message = f"pool {spec.pool_id}: {spec.binary!r} is no file; set `engine_options.binary` to a Python with vLLM"
        raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True)
    return spec


async def with_model(spec: EngineSpec) -> EngineSpec:
    """`spec` with its model's folder, which is there and has the digest that was asked for (ORCH-3037).

    A bundled development model is converted, which needs vLLM's environment. Raises EngineError with kind `model`.
    """
    if not spec.model_path and spec.accelerator == "cpu-dev":
        spec = await with_binary(spec)
        spec = replace(spec, model_path=str(await asyncio.to_thread(find_model, Path(spec.binary), spec.model)))
    await asyncio.to_thread(checked_model, spec)
    return spec


async def check_gpus(spec: EngineSpec, folder: Path) -> None:
    """The engine must find the GPUs of its mask, and no others. Raises EngineError with kind `mask`.

    A vLLM that is built for the CPU would quietly compute there (ORCH-1101, ORCH-3018).
    """
    if spec.accelerator == "cpu-dev":
        return
    found = await asyncio.to_thread(_gpus_found, spec, folder)
    wanted = max(gpu_count(spec), 1)
    if found == wanted or (found and not gpu_count(spec)):
        return
    mask = ", ".join(spec.gpu_uuids or spec.devices) or "any"
    message = f"the mask of pool {spec.pool_id} holds {wanted} GPUs ({mask}) and vLLM's torch finds {found}; correct "
    message += "`devices`, or give a vLLM that is built for them; there is no CPU fallback"
    raise engine_error("POOL_UNAVAILABLE", message, engine=ENGINE, retriable=True, kind="mask")


def _gpus_found(spec: EngineSpec, folder: Path) -> int:
    try:
        done = subprocess.run(
            [spec.binary, "-c", _COUNT_GPUS],
            env=server_environment(spec, folder, ""),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COUNT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    told = done.stdout.strip()
    return int(told) if done.returncode == 0 and told.isdigit() else 0
