"""What must be right before an engine is launched: its binary, its model, the GPUs that it finds."""

import asyncio
from pathlib import Path

from msgspec.structs import replace

from adapters.errors import engine_error, model_error
from adapters.gpus import gpu_count
from adapters.llamacpp.command import server_environment
from adapters.llamacpp.files import model_digest
from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.protocol import ENGINE
from adapters.llamacpp.provision import find_engine
from adapters.llamacpp.smoke import offload_devices
from contracts.engine import EngineSpec


async def with_model(spec: EngineSpec) -> EngineSpec:
    """`spec` with its model's path, which is there and has the digest that was asked for (ORCH-3037).

    Raises EngineError with kind `model`.
    """
    if not spec.model_path:
        spec = replace(spec, model_path=str(bundled_model_path(spec.model)))
    await asyncio.to_thread(_check_model, spec)
    return spec


async def with_binary(spec: EngineSpec) -> EngineSpec:
    """`spec` with an engine's path, found on this node where the configuration leaves it open."""
    if not spec.binary:
        binary = await asyncio.to_thread(find_engine, accelerator=spec.accelerator)
        spec = replace(spec, binary=str(binary))
    if not Path(spec.binary).is_file():
        message = f"engine binary {spec.binary!r} does not exist; correct `engine_options.binary` or leave it out"
        raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True)
    return spec


async def check_gpus(spec: EngineSpec) -> None:
    """The engine must find the GPUs of its mask, and no others. Raises EngineError with kind `mask`.

    Without a device llama-server would quietly compute on the CPU (ORCH-1101, ORCH-3018).
    """
    if spec.accelerator == "cpu-dev":
        return
    env = server_environment(spec, "")
    found = await asyncio.to_thread(offload_devices, Path(spec.binary), env)
    wanted = gpu_count(spec)
    if not found:
        problem = "the engine finds no GPU it can use; there is no CPU fallback (for development set "
        problem += "`accelerator: cpu-dev`)"
    elif wanted and len(found) != wanted:
        problem = f"the mask holds {wanted} GPUs ({', '.join(spec.gpu_uuids or spec.devices)}) and the engine finds "
        problem += f"{len(found)} ({', '.join(found)}); correct `devices` of pool {spec.pool_id}"
    else:
        return
    raise engine_error("POOL_UNAVAILABLE", problem, engine=ENGINE, retriable=True, kind="mask")


def _check_model(spec: EngineSpec) -> None:
    path = Path(spec.model_path)
    if not path.is_file():
        raise model_error(spec, f"model file {spec.model_path!r} does not exist", "put it there, or correct its path")
    if not spec.model_digest:
        return
    try:
        found = model_digest(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise model_error(spec, f"model file {spec.model_path!r}: {reason}", "make it readable") from None
    if found != spec.model_digest.lower():
        raise model_error(
            spec,
            f"model file {spec.model_path!r} has {found} and must have {spec.model_digest}",
            "put the right file there, or correct `model_digest`",
        )
