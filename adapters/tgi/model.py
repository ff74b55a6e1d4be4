"""The folder of a model in the Hugging Face format: its files, its digest and what serving it takes."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from adapters.answers import UNREADABLE
from adapters.arguments import last_value
from adapters.digest import folder_digest
from adapters.errors import model_error
from adapters.gpus import gpu_count
from adapters.tgi.protocol import invalid
from contracts.engine import EngineSpec
from contracts.gpus import MemoryNeed

MIB: Final = 1024 * 1024
#: A CUDA context with torch's and TGI's kernels and the graphs of its decode steps, on each GPU; an estimate.
_GPU_SCRATCH_BYTES: Final = 1536 * MIB
#: Launcher, router and a shard's Python with torch in it, and as much again of each further shard; an estimate.
_HOST_BYTES: Final = 2048 * MIB
#: Keys and values are kept in 16 bits, as the weights (`--dtype` knows two such types), or in 8.
_VALUE_BYTES: Final = 2
_KV_BYTE_TYPES: Final = ("fp8_e4m3fn", "fp8_e5m2")

Positive = Annotated[int, Meta(ge=1, le=2**31)]


class _TextConfig(Struct, frozen=True):
    """What of a config.json says how large a token is in the KV cache."""

    num_hidden_layers: Positive
    num_attention_heads: Positive
    hidden_size: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None

    @property
    def kv_token_values(self) -> int:
        """Keys and values of all layers: 2 x layers x KV heads x head width."""
        heads = self.num_key_value_heads or self.num_attention_heads
        width = self.head_dim or self.hidden_size // self.num_attention_heads
        return 2 * self.num_hidden_layers * heads * width


def checked_model(spec: EngineSpec) -> Path:
    """The folder of the spec's model, which is there and has the digest that was asked for (ORCH-3037).

    Blocks while files are read. Raises EngineError (POOL_UNREADY, kind `model`).
    """
    folder = Path(spec.model_path)
    if not spec.model_path or not (folder / "config.json").is_file():
        reason = f"{spec.model_path!r} is no folder with a config.json"
        raise model_error(spec, reason, "point `model_path` at a model in the Hugging Face format")
    if not _weights(folder):
        raise model_error(spec, f"{spec.model_path!r} has no *.safetensors", "put the weights there")
    if spec.model_digest:
        found = model_digest(spec)
        if found != spec.model_digest.lower():
            reason = f"{spec.model_path!r} has {found} and must have {spec.model_digest}"
            raise model_error(spec, reason, "put the right files there, or correct `model_digest`")
    return folder


def model_digest(spec: EngineSpec) -> str:
    """`sha256:<hex>` of all files of the folder, of their names and contents. Blocks. Raises as `checked_model`."""
    folder = Path(spec.model_path)
    try:
        return folder_digest({file.name: file for file in folder.iterdir() if file.is_file()})
    except OSError as error:
        reason = f"{spec.model_path!r}: {error.strerror or error}"
        raise model_error(spec, reason, "make its files readable") from None


def memory_need(spec: EngineSpec) -> MemoryNeed:
    """What TGI takes at least. What is left of its GPUs it takes as well, for its KV cache. Blocks.

    Raises EngineError: POOL_UNREADY of kind `model`, INVALID_PARAMS for arguments that cannot be reckoned with.
    """
    folder = checked_model(spec)
    weights_bytes = sum(file.stat().st_size for file in _weights(folder))
    kv_slot_bytes = _context_tokens(spec) * kv_token_bytes(spec)
    if spec.accelerator == "gpu":
        return MemoryNeed(
            weights_bytes=weights_bytes,
            kv_slot_bytes=kv_slot_bytes,
            scratch_bytes=_GPU_SCRATCH_BYTES,
            host_bytes=_HOST_BYTES * max(gpu_count(spec), 1),
            slots_max=spec.slots,
        )
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_slot_bytes=kv_slot_bytes,
        scratch_bytes=0,
        host_bytes=_HOST_BYTES + weights_bytes + kv_slot_bytes * spec.slots,
        slots_max=spec.slots,
    )


def kv_token_bytes(spec: EngineSpec) -> int:
    """What a token takes in the KV cache; 0 where the config does not tell."""
    try:
        config = msgspec.json.decode((Path(spec.model_path) / "config.json").read_bytes(), type=_TextConfig)
    except (OSError, *UNREADABLE):
        return 0
    told = last_value(spec.args, "--kv-cache-dtype") or dict(spec.env).get("KV_CACHE_DTYPE")
    return config.kv_token_values * (1 if told in _KV_BYTE_TYPES else _VALUE_BYTES)


def _context_tokens(spec: EngineSpec) -> int:
    """The longest context: the pool's, unless its arguments say another one."""
    told = last_value(spec.args, "--max-total-tokens")
    if told is None:
        return spec.ctx
    if not told.isdecimal() or not 0 < len(told) < 10:
        raise invalid(f"pool {spec.pool_id} gives TGI --max-total-tokens {told}; say a number of tokens")
    return int(told)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
