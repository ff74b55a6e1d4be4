"""How much KV cache a token takes, from what a model file says of its attention (ORCH-3022)."""

from pathlib import Path
from typing import Final

from adapters.llamacpp.gguf import GgufError, Value, read_facts

#: llama-server keeps keys and values as 16-bit floats unless it is told otherwise.
CACHE_TYPE_DEFAULT: Final = "f16"
#: Cache type to the bytes that a number of values take, as ggml packs them.
_CACHE_TYPES: Final[dict[str, tuple[int, int]]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}


def kv_token_bytes(path: Path, key_type: str = CACHE_TYPE_DEFAULT, value_type: str = CACHE_TYPE_DEFAULT) -> int:
    """Bytes of KV cache for one token of context, over all layers; 0 where the file does not say.

    Layers with a sliding window count in full, so for models with such layers this is an upper bound.
    """
    try:
        facts = read_facts(path)
    except (OSError, GgufError):
        return 0
    # Latent attention keeps something smaller than keys and values of all heads.
    return 0 if "attention.kv_lora_rank" in facts else kv_bytes_at_most(facts, key_type, value_type)


def kv_bytes_at_most(facts: dict[str, Value], key_type: str, value_type: str) -> int:
    """Bytes of KV cache that a token takes at most; 0 for a model without attention, which keeps none per token.

    A cache type that ggml does not know counts as 32-bit floats: the engine itself will refuse it.
    """
    layers, width = facts.get("block_count"), facts.get("embedding_length")
    heads = largest(facts.get("attention.head_count"))
    kv_heads = facts.get("attention.head_count_kv", facts.get("attention.head_count"))
    if not isinstance(layers, int):
        return 0
    default = width // heads if isinstance(width, int) and heads > 0 else 0
    key, value = facts.get("attention.key_length", default), facts.get("attention.value_length", default)
    total = sum(kv_heads) if isinstance(kv_heads, list) else largest(kv_heads) * layers
    if not (isinstance(total, int) and isinstance(key, int) and isinstance(value, int)) or min(key, value) <= 0:
        return 0
    return _packed(total * key, key_type) + _packed(total * value, value_type)


def largest(fact: Value | None) -> int:
    """A whole number, or the largest where there is one per layer; 0 where there is none."""
    most = max(fact, default=0) if isinstance(fact, list) else fact
    return most if isinstance(most, int) else 0


def _packed(values: int, cache_type: str) -> int:
    size, of = _CACHE_TYPES.get(cache_type, _CACHE_TYPES["f32"])
    return -(-values * size // of)
