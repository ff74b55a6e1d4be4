"""What a llama-server will take, reckoned before it is launched (ORCH-3003, OC-POOL-3002).

Weights and KV cache are exact, but for models with sliding windows or latent attention, for which the KV is
an upper bound; the state of recurrent layers, which does not grow with the context, is not counted. Scratch and
host memory are estimates, high rather than low: the engine does not tell them before it has taken them.
"""

from pathlib import Path
from typing import Final

from adapters.arguments import last_value
from adapters.errors import engine_error, model_error
from adapters.gpus import gpu_count
from adapters.llamacpp.command import batch_rows
from adapters.llamacpp.files import model_files
from adapters.llamacpp.gguf import GgufError, ModelHeader, Value, read_header
from adapters.llamacpp.kv import CACHE_TYPE_DEFAULT, kv_bytes_at_most, largest
from contracts.engine import EngineError, EngineSpec
from contracts.gpus import MemoryNeed

MIB: Final = 1024 * 1024
#: A CUDA context with the kernels of one engine, on each GPU.
CUDA_CONTEXT_BYTES: Final = 300 * MIB
#: The process itself where a GPU computes: CUDA's host side, pinned staging buffers, the vocabulary.
_GPU_HOST_BYTES: Final = 512 * MIB
#: The process itself on the CPU: 33 MiB were measured of the build from source, 152 of the wheel with Vulkan in it.
_CPU_HOST_BYTES: Final = 192 * MIB
#: llama.cpp rounds the context of a slot up to a multiple of this.
_CTX_STEP_TOKENS: Final = 256
#: With several GPUs ggml keeps copies of a graph's inputs, so that the GPUs can work in turn.
_PIPELINE_COPIES: Final = 4
_KEY_TYPE: Final = ("-ctk", "--cache-type-k")
_VALUE_TYPE: Final = ("-ctv", "--cache-type-v")
_DRAFT: Final = ("-md", "--model-draft", "--spec-draft-model")
_DRAFT_KEY_TYPE: Final = ("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k")
_DRAFT_VALUE_TYPE: Final = ("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v")
_ROWS: Final = ("-ub", "--ubatch-size")
_PROMPT_CACHE: Final = ("-cram", "--cache-ram")


class _Model:
    """A model's header and what it takes under one spec."""

    def __init__(self, spec: EngineSpec, path: Path, cache_types: tuple[str, str]) -> None:
        headers = [_header(spec, file) for file in _files(spec, path)]
        first = headers[0]
        self.weights_bytes = sum(header.weights_bytes for header in headers)
        tensors = {name: size for header in headers for name, size in header.tensor_bytes.items()}
        # The input embeddings stay in host memory; a model without an output matrix has them on the GPU as well.
        self.embedding_bytes = tensors.get("token_embd.weight", 0)
        self.tied = "output.weight" not in tensors
        ctx = -(-spec.ctx // _CTX_STEP_TOKENS) * _CTX_STEP_TOKENS
        self.kv_slot_bytes = ctx * kv_bytes_at_most(first.facts, *cache_types)
        self.vocabulary = first.vocabulary or largest(first.facts.get("vocab_size"))
        self.compute_bytes = _compute_bytes(spec, first.facts, self.vocabulary, ctx)

    @property
    def gpu_weights_bytes(self) -> int:
        return self.weights_bytes if self.tied else self.weights_bytes - self.embedding_bytes


def cache_types(arguments: tuple[str, ...]) -> tuple[str, str]:
    """The types of keys and values in the KV cache."""
    return (
        last_value(arguments, *_KEY_TYPE) or CACHE_TYPE_DEFAULT,
        last_value(arguments, *_VALUE_TYPE) or CACHE_TYPE_DEFAULT,
    )


def memory_need(spec: EngineSpec) -> MemoryNeed:
    """What the engine takes, a draft model included (ORCH-3020). Reads files' headers, so it blocks a little.

    All layers count as on the GPUs: a GPU pool has no CPU share. Raises EngineError (POOL_UNREADY, kind `model`).
    """
    models = [_Model(spec, Path(spec.model_path), cache_types(spec.args))]
    draft = last_value(spec.args, *_DRAFT)
    if draft is not None:
        draft_types = (
            last_value(spec.args, *_DRAFT_KEY_TYPE) or CACHE_TYPE_DEFAULT,
            last_value(spec.args, *_DRAFT_VALUE_TYPE) or CACHE_TYPE_DEFAULT,
        )
        models.append(_Model(spec, Path(draft), draft_types))
    kv_slot_bytes = sum(model.kv_slot_bytes for model in models)
    compute_bytes = sum(model.compute_bytes for model in models)
    # Each slot's logits wait in host memory for the sampler.
    host_bytes = spec.slots * 4 * sum(model.vocabulary for model in models) + _prompt_cache_bytes(spec)
    if spec.accelerator == "gpu":
        return MemoryNeed(
            weights_bytes=sum(model.gpu_weights_bytes for model in models),
            kv_slot_bytes=kv_slot_bytes,
            scratch_bytes=compute_bytes + CUDA_CONTEXT_BYTES,
            host_bytes=host_bytes + sum(model.embedding_bytes for model in models) + _GPU_HOST_BYTES,
        )
    weights_bytes = sum(model.weights_bytes for model in models)
    kv_bytes = kv_slot_bytes * spec.slots
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_slot_bytes=kv_slot_bytes,
        scratch_bytes=compute_bytes,
        # Mapped weights count: an engine whose weights are read from the disk over and over serves nobody.
        host_bytes=host_bytes + weights_bytes + kv_bytes + compute_bytes + _CPU_HOST_BYTES,
    )


def _files(spec: EngineSpec, path: Path) -> list[Path]:
    try:
        return model_files(path)
    except ValueError as error:
        raise _unusable(spec, path, str(error)) from None


def _header(spec: EngineSpec, path: Path) -> ModelHeader:
    try:
        return read_header(path)
    except OSError as error:
        raise _unusable(spec, path, error.strerror or "it cannot be read") from None
    except GgufError as error:
        raise _unusable(spec, path, str(error)) from None


def _unusable(spec: EngineSpec, path: Path, reason: str) -> EngineError:
    return model_error(
        spec, f"model file {str(path)!r}: {reason}", "put a whole, readable GGUF file there, or correct `model_path`"
    )


def _compute_bytes(spec: EngineSpec, facts: dict[str, Value], vocabulary: int, ctx: int) -> int:
    """Estimate of the buffer in which ggml computes a batch.

    Per row in 32-bit floats: the logits, three vectors of the model's width (residual, norm, attention) and two
    of its feed-forward part (gate and up); and per row and cell of a slot's context the attention mask, as a
    32-bit float and its 16-bit copy.
    """
    told = last_value(spec.args, *_ROWS) or ""
    rows = int(told) if told.isdecimal() else batch_rows(spec)
    width, inner = largest(facts.get("embedding_length")), largest(facts.get("feed_forward_length"))
    copies = _PIPELINE_COPIES if gpu_count(spec) > 1 else 1
    return copies * rows * ((vocabulary + 3 * width + 2 * inner) * 4 + ctx * (4 + 2))


def _prompt_cache_bytes(spec: EngineSpec) -> int:
    """Host memory in which the engine keeps the KV of earlier prompts, where the pool's arguments ask for that."""
    told = last_value(spec.args, *_PROMPT_CACHE)
    if told is None:
        return 0
    if not told.isdecimal():
        raise engine_error(
            "INVALID_PARAMS",
            f"pool {spec.pool_id} asks for a prompt cache of {told!r}; give `--cache-ram` a bound in MiB",
            engine=spec.engine,
            retriable=False,
        )
    return int(told) * MIB
