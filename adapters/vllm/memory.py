"""What a vLLM server will take, reckoned before it is launched (ORCH-3003, OC-POOL-3002).

Weights and KV cache are exact but for models with sliding windows and narrow types of the KV cache, for which the KV is
an upper bound. Scratch and host memory are estimates: the engine does not tell them before it has taken them.
"""

from typing import Final

from msgspec.structs import replace

from adapters.gpus import gpu_count
from adapters.vllm.model import checked_model, kv_token_bytes, read_config, weights_bytes
from adapters.vllm.options import context_tokens, draft, kv_value_bytes, told_kv_cache_bytes, value_bytes
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


def kv_cache_bytes(spec: EngineSpec) -> int:
    """KV cache of one GPU in which all slots fit with full contexts; 0 where the model does not tell.

    Raises EngineError.
    """
    shards = _shards(spec)
    token_bytes = _kv_token_bytes(spec, shards)
    drafting = draft(spec)
    if drafting is not None and token_bytes:
        token_bytes += _kv_token_bytes(_of_draft(spec, drafting.folder), 1 if drafting.is_on_each_gpu else shards)
    blocks = spec.slots * -(-context_tokens(spec) // _BLOCK_TOKENS) + 1
    return blocks * _BLOCK_TOKENS * token_bytes


def memory_need(spec: EngineSpec) -> MemoryNeed:
    """What the engine takes, a draft model included (ORCH-3020). Reads files' headers, so it blocks.

    Raises EngineError: POOL_UNREADY of kind `model`, INVALID_PARAMS for arguments that cannot be reckoned with.
    """
    checked_model(spec)
    config, shards = read_config(spec), _shards(spec)
    size = value_bytes(spec, config)
    weights, token_bytes = _weights_bytes(spec), _kv_token_bytes(spec)
    drafting = draft(spec)
    if drafting is not None:
        model = _of_draft(spec, drafting.folder)
        checked_model(model)
        copies = shards if drafting.is_on_each_gpu else 1
        weights += copies * _weights_bytes(model)
        token_bytes += copies * _kv_token_bytes(model)
    told = told_kv_cache_bytes(spec)
    ctx = -(-context_tokens(spec) // _BLOCK_TOKENS) * _BLOCK_TOKENS
    kv_slot_bytes = ctx * token_bytes if told is None else -(-told * shards // spec.slots)
    if spec.accelerator == "gpu":
        rows = 2 * (config.intermediate_size or 0) + 3 * (config.hidden_size or 0)
        return MemoryNeed(
            weights_bytes=weights,
            kv_slot_bytes=kv_slot_bytes,
            scratch_bytes=_GPU_SCRATCH_BYTES + _STEP_TOKENS * rows * size,
            host_bytes=_HOST_BYTES + _WORKER_BYTES * shards,
            slots_max=spec.slots,
        )
    return MemoryNeed(
        weights_bytes=weights,
        kv_slot_bytes=kv_slot_bytes,
        scratch_bytes=0,
        host_bytes=_HOST_BYTES + _WORKER_BYTES + weights + kv_slot_bytes * spec.slots,
        slots_max=spec.slots,
    )


def _shards(spec: EngineSpec) -> int:
    return max(gpu_count(spec), 1)


def _of_draft(spec: EngineSpec, folder: str) -> EngineSpec:
    """The spec as it would be if the draft model were served."""
    return replace(spec, model_path=folder, model_digest="")


def _weights_bytes(spec: EngineSpec) -> int:
    """As the engine keeps them; where it makes them narrower than the files, as the files are."""
    config = read_config(spec)
    return weights_bytes(spec) * max(value_bytes(spec, config), config.value_bytes) // config.value_bytes


def _kv_token_bytes(spec: EngineSpec, shards: int = 1) -> int:
    config = read_config(spec)
    return kv_token_bytes(config, kv_value_bytes(spec, config), shards)
