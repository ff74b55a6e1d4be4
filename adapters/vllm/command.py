"""How vLLM's server is started: arguments and environment.

Its own defaults never decide: the model folder's `generation_config.json` is not read, and the KV cache is sized for
the pool's slots instead of taking what a GPU has left.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.gpus import gpu_count
from adapters.vllm.options import context_tokens
from contracts.engine import EngineSpec

#: vLLM refuses to start where less of a GPU is free than this share, which it would take. It takes what we say
#: instead, and whether that fits was found out before (ORCH-3003), so the share is as good as none.
_GPU_SHARE: Final = "0.01"


def server_arguments(spec: EngineSpec, socket_path: Path, kv_cache_bytes: int) -> list[str]:
    """The command line after the Python. The engine listens on a Unix socket only (OC-ADAPT-5002).

    `vllm serve` would be the same and asks for a package of that name, which the CPU's is not called.
    `kv_cache_bytes` is that of one GPU (0: not known, then the engine takes its default share of the GPU).
    """
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", spec.model_path, "--served-model-name", spec.model, "--uds", str(socket_path)),
        *("--max-model-len", str(spec.ctx), "--max-num-seqs", str(spec.slots), "--seed", "0"),
        *("--generation-config", "vllm", "--load-format", "safetensors"),
        *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--no-enable-log-requests"),
        *_workload(spec),
        *_memory(spec, kv_cache_bytes),
        *_placement(spec),
        *spec.args,
    ]


def _workload(spec: EngineSpec) -> list[str]:
    """A strict pool has no prefix cache: what is reused and what is computed anew round differently (ORCH-3045)."""
    cache = ["--no-enable-prefix-caching"] if spec.determinism == "strict" else []
    return cache if spec.workload == "completion" else ["--runner", "pooling", *cache]


def _memory(spec: EngineSpec, kv_cache_bytes: int) -> list[str]:
    if kv_cache_bytes == 0 or spec.workload != "completion":
        return []
    share = ["--gpu-memory-utilization", _GPU_SHARE] if spec.accelerator == "gpu" else []
    return ["--kv-cache-memory-bytes", str(kv_cache_bytes), *share]


def _placement(spec: EngineSpec) -> list[str]:
    """Where it computes.

    On the CPU in 32 bits: without instructions for bfloat16 that is five times as fast. Each prompt goes in one step
    there: vLLM 0.32 dies of a seeded request whose prompt is cut in pieces ("CPU Generator does not use offset").
    """
    if spec.accelerator == "gpu":
        return ["--tensor-parallel-size", str(max(gpu_count(spec), 1))]
    step = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(context_tokens(spec), spec.slots))]
    return ["--dtype", "float32", "--enforce-eager", *step]


def server_environment(
    spec: EngineSpec, folder: Path, api_key: str, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment: no inherited engine settings, exactly the devices of the mask, nothing from the network.

    The key goes through the environment because command lines are readable by every user. What the engine's processes
    say to each other goes through `folder`, which is private and ends with them. They give themselves other titles,
    for which they would write over their environments, and so over the mark by which they are found when they are
    left behind (ORCH-3001); `SPT_NOENV` has the environments stay.
    """
    source = os.environ if base is None else base
    env = {name: value for name, value in source.items() if not name.startswith(("VLLM_", "PYTHON"))}
    env.update(
        VLLM_API_KEY=api_key,
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_STREAM="ext://sys.stderr",
        VLLM_HOST_IP="127.0.0.1",
        VLLM_RPC_BASE_PATH=str(folder),
        TMPDIR=str(folder),
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        NO_COLOR="1",
        PYTHONSAFEPATH="1",
        SPT_NOENV="1",
    )
    if spec.accelerator == "cpu-dev":
        # One thread: sums of several depend on how work was shared out.
        env.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
        if spec.workload != "completion":
            env["VLLM_CPU_KVCACHE_SPACE"] = "1"
    elif spec.gpu_uuids or spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids or spec.devices)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return env
