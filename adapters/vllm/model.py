"""The folder of a model in the Hugging Face format: its files, its digest, what its configuration tells."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from adapters.answers import UNREADABLE
from adapters.digest import folder_digest
from adapters.errors import model_error
from contracts.engine import EngineSpec

#: What of a folder shapes a token: weights, configuration, tokenizer, chat template.
_PATTERNS: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_VALUE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}

Positive = Annotated[int, Meta(ge=1, le=2**31)]


class TextConfig(Struct, frozen=True):
    """What of a config.json says how large a model is. Latent attention has a `kv_lora_rank`."""

    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    hidden_size: Positive | None = None
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    intermediate_size: Positive | None = None
    vocab_size: Positive | None = None
    kv_lora_rank: Positive | None = None
    qk_rope_head_dim: Positive | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    text_config: "TextConfig | None" = None

    @property
    def value_bytes(self) -> int:
        """Of a weight as the configuration has it; vLLM's `--dtype auto` keeps it, or takes 16 bits for 32."""
        return _VALUE_BYTES.get(self.dtype or self.torch_dtype or "", 2)

    @property
    def start_token(self) -> int | None:
        """What stands for an empty prompt."""
        for told in (self.bos_token_id, self.eos_token_id):
            first = told[0] if isinstance(told, list) and told else told
            if isinstance(first, int):
                return first
        return None


def checked_model(spec: EngineSpec) -> Path:
    """The folder of the spec's model, which is there and has the digest that was asked for (ORCH-3037).

    Blocks while files are read. Raises EngineError (POOL_UNREADY, kind `model`).
    """
    folder = Path(spec.model_path)
    if not (folder / "config.json").is_file():
        reason = f"{spec.model_path!r} is no folder with a config.json"
        raise model_error(spec, reason, "point `model_path` at a model in the Hugging Face format")
    if not any(folder.glob("*.safetensors")):
        raise model_error(spec, f"{spec.model_path!r} has no *.safetensors", "put the weights there")
    if spec.model_digest:
        found = model_digest(spec)
        if found != spec.model_digest.lower():
            reason = f"{spec.model_path!r} has {found} and must have {spec.model_digest}"
            raise model_error(spec, reason, "put the right files there, or correct `model_digest`")
    return folder


def model_digest(spec: EngineSpec) -> str:
    """`sha256:<hex>` over names and contents of the files that shape a token (ORCH-3032). Blocks.

    Raises EngineError (POOL_UNREADY, kind `model`).
    """
    folder = Path(spec.model_path)
    try:
        return folder_digest({file.name: file for pattern in _PATTERNS for file in folder.glob(pattern)})
    except OSError as error:
        raise model_error(spec, f"{spec.model_path!r}: {error.strerror or error}", "make its files readable") from None


def read_config(spec: EngineSpec) -> TextConfig:
    """Raises EngineError (POOL_UNREADY, kind `model`)."""
    try:
        config = msgspec.json.decode((Path(spec.model_path) / "config.json").read_bytes(), type=TextConfig)
    except OSError as error:
        reason = f"{spec.model_path!r}: config.json: {error.strerror or error}"
        raise model_error(spec, reason, "make it readable") from None
    except UNREADABLE as error:
        reason = f"{spec.model_path!r}: config.json cannot be read ({error})"
        raise model_error(spec, reason, "put the right file there") from None
    return config.text_config or config


def weights_bytes(spec: EngineSpec) -> int:
    """Size of the weights' files. Raises EngineError (POOL_UNREADY, kind `model`)."""
    try:
        return sum(file.stat().st_size for file in Path(spec.model_path).glob("*.safetensors"))
    except OSError as error:
        raise model_error(spec, f"{spec.model_path!r}: {error.strerror or error}", "make its files readable") from None


def kv_token_bytes(config: TextConfig, value_bytes: int, shards: int = 1) -> int:
    """What a token takes in the KV cache of one of `shards` GPUs; 0 where the configuration does not tell.

    Keys and values of all layers: 2 x layers x KV heads x head width x bytes of a value; with latent attention one
    vector a layer, which every GPU keeps. Layers with a sliding window count in full: an upper bound.
    """
    layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
    if layers is None:
        return 0
    if config.kv_lora_rank is not None:
        return layers * (config.kv_lora_rank + (config.qk_rope_head_dim or 0)) * value_bytes
    head_dim = config.head_dim or (width // heads if width and heads else 0)
    kv_heads = config.num_key_value_heads or heads or 0
    return 2 * layers * max(kv_heads // shards, min(kv_heads, 1)) * head_dim * value_bytes
