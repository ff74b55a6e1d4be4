"""How `llama-server` is started: arguments and environment.

The numeric flags make output byte-exact under continuous batching (ORCH-3045): one compute
thread, flash attention, and batches of at most 32 rows, so that no request ever shares a tile
with another or takes another kernel path than it would alone. Slots are counted explicitly
because an automatic count switches to one context shared by all.

Embeddings and ranks need a whole input in one batch, so these servers compute as many rows as a slot's context has.
What shares a batch does change their numbers then: such a server is exact for one input at a time.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.gpus import gpu_count
from contracts.engine import EngineSpec

#: How many rows the engine computes at once, at most.
BATCH_ROWS: Final = 32
EXACT_FLAGS: Final = ("-t", "1", "-fa", "on")


def batch_rows(spec: EngineSpec) -> int:
    """How many rows the engine computes at once, at most."""
    return BATCH_ROWS if spec.workload == "completion" else max(BATCH_ROWS, spec.ctx)


def server_arguments(spec: EngineSpec, socket_path: Path, pooling: str = "", contexts: Path | None = None) -> list[str]:
    """The command line. The engine listens on a Unix socket only (OC-ADAPT-5002).

    A port would be open to every user of the host, and llama-server binds with SO_REUSEPORT: two
    replicas that raced for one port would silently share it. `pooling` is for models that name none; in the
    folder `contexts` the engine saves what its slots hold, where there is one.
    """
    rows = str(batch_rows(spec))
    return [
        *("-m", spec.model_path, "--alias", spec.model, "--host", str(socket_path)),
        *("-np", str(spec.slots), "-c", str(spec.ctx * spec.slots)),
        *EXACT_FLAGS,
        *("-b", rows, "-ub", rows),
        *_workload(spec, pooling),
        *(("--slot-save-path", str(contexts)) if contexts else ()),
        # No state in memory beyond the slots themselves: it stays bounded by -c.
        *("--cache-ram", "0", "--fit", "off"),
        *("--metrics", "--slots", "--no-webui", "--offline"),
        *_placement(spec),
        *spec.args,
    ]


def _workload(spec: EngineSpec, pooling: str) -> list[str]:
    if spec.workload == "embedding":
        return ["--embeddings", *(("--pooling", pooling) if pooling else ())]
    return ["--reranking"] if spec.workload == "rerank" else []


def _placement(spec: EngineSpec) -> list[str]:
    """Where the model goes: all of it onto the GPUs of the mask, in the shares that were given (ORCH-3012).

    Without shares like GPUs take equal ones: by default the engine shares out by what is free at the moment,
    which would put the same layers elsewhere in another replica.
    """
    if spec.accelerator == "cpu-dev":
        return ["-ngl", "0", "--device", "none"]
    gpus = gpu_count(spec)
    if gpus == 0:
        return ["-ngl", "999"]
    if gpus == 1:
        return ["-ngl", "999", "--split-mode", "none", "--main-gpu", "0"]
    shares = spec.tensor_split or (1.0,) * gpus
    return ["-ngl", "999", "--split-mode", "layer", "--tensor-split", ",".join(f"{share:g}" for share in shares)]


def server_environment(spec: EngineSpec, api_key: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment: no inherited engine settings, exactly the devices of the mask (ORCH-3011).

    CUDA is told UUIDs where they are known: its own numbering may differ from the driver's. `LLAMA_ARG_*`
    variables would override or add flags behind our back, so none is passed on. The key goes through the
    environment because command lines are readable by every user.
    """
    source = os.environ if base is None else base
    env = {name: value for name, value in source.items() if not name.startswith("LLAMA_")}
    env["LLAMA_API_KEY"] = api_key
    if spec.accelerator == "cpu-dev":
        env["CUDA_VISIBLE_DEVICES"] = ""
        env["GGML_VK_VISIBLE_DEVICES"] = ""
    elif spec.gpu_uuids or spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids or spec.devices)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        # Vulkan knows no UUIDs here; its numbers are the same where all GPUs of the host are alike.
        if all(device.isdigit() for device in spec.devices):
            env["GGML_VK_VISIBLE_DEVICES"] = ",".join(spec.devices)
    return with_library_path(Path(spec.binary), env)


def with_library_path(binary: Path, env: dict[str, str]) -> dict[str, str]:
    """`env`, with the binary's own folder first on the library path where it ships a Vulkan loader."""
    if (binary.parent / "libvulkan.so.1").exists():
        before = env.get("LD_LIBRARY_PATH")
        env["LD_LIBRARY_PATH"] = f"{binary.parent}:{before}" if before else str(binary.parent)
    return env
