"""What a vLLM server will take, reckoned before it is launched (ORCH-3003, OC-POOL-3002).

Weights and KV cache are exact but for models with sliding windows, for which the KV is an upper bound. Scratch and
host memory are estimates: the engine does not tell them before it has taken them.
"""

from typing import Final

from adapters.vllm.command import gpu_count
from adapters.vllm.model import TextConfig, checked_model, kv_token_bytes, read_config, weights_bytes
from contracts.engine import EngineSpec
from contracts.gpus import MemoryNeed

MIB: Final = 1024 * 1024
#: A CUDA context with torch's kernels, workspaces and the graphs of decode steps, on each GPU; an estimate.
_GPU_SCRATCH_BYTES: Final = 2048 * MIB
#: Server and engine process with torch in them (760 and 670 MB measured on the CPU).
_HOST_BYTES: Final = 1536 * MIB
#: Each worker process, without weights and KV.
_WORKER_BYTES: Final = 1024 * MIB
#: Tokens that one step computes at most by the engine's default, on GPUs.
_STEP_TOKENS: Final = 8192
#: KV blocks on the CPU and, at most, on GPUs; one more than the pool's tokens need is kept empty.
_BLOCK_TOKENS: Final = 128


def value_bytes(spec: EngineSpec, config: TextConfig) -> int:
    """Of a weight and of a KV value as the engine is run: 32 bits on the CPU, 16 where the model says nothing."""
    return 4 if spec.accelerator == "cpu-dev" else min(config.value_bytes, 2)


def kv_cache_bytes(spec: EngineSpec) -> int:
    """KV cache of one GPU in which all slots fit with full contexts; 0 where the model does not tell."""
    config = read_config(spec)
    blocks = spec.slots * -(-spec.ctx // _BLOCK_TOKENS) + 1
    shards = max(gpu_count(spec), 1)
    return blocks * _BLOCK_TOKENS * kv_token_bytes(config, value_bytes(spec, config), shards)


def memory_need(spec: EngineSpec) -> MemoryNeed:
    """What the engine takes. Reads files' headers, so it blocks. Raises EngineError (POOL_UNREADY, kind `model`)."""
    checked_model(spec)
    config = read_config(spec)
    size = value_bytes(spec, config)
    weights = weights_bytes(spec)
    ctx = -(-spec.ctx // _BLOCK_TOKENS) * _BLOCK_TOKENS
    kv_slot_bytes = ctx * kv_token_bytes(config, size)
    if spec.accelerator == "gpu":
        rows = 2 * (config.intermediate_size or 0) + 3 * (config.hidden_size or 0)
        return MemoryNeed(
            weights_bytes=weights,
            kv_slot_bytes=kv_slot_bytes,
            scratch_bytes=_GPU_SCRATCH_BYTES + _STEP_TOKENS * rows * size,
            host_bytes=_HOST_BYTES + _WORKER_BYTES * max(gpu_count(spec), 1),
            slots_max=spec.slots,
        )
    weights = weights * size // config.value_bytes
    return MemoryNeed(
        weights_bytes=weights,
        kv_slot_bytes=kv_slot_bytes,
        scratch_bytes=0,
        host_bytes=_HOST_BYTES + _WORKER_BYTES + weights + kv_slot_bytes * spec.slots,
        slots_max=spec.slots,
    )
