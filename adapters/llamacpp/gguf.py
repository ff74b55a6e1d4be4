"""How much KV cache a token takes, from the header of a GGUF model file (ORCH-3022).

llama-server does not tell it over HTTP. The layout is that of the GGUF specification, versions 2 and 3:
magic, version, number of tensors, number of key-value pairs, then the pairs; integers are little-endian.
"""

import struct
from pathlib import Path
from typing import BinaryIO, Final

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_PAIRS_MAX: Final = 65_536
_TEXT_BYTES_MAX: Final = 65_536
_ARRAY_MAX: Final = 65_536
_STRING, _ARRAY = 8, 9
#: Type number to format and size of the scalar types.
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
#: llama-server keeps keys and values as 16-bit floats unless it is told otherwise.
_VALUE_BYTES: Final = 2

Value = int | float | str | list[int | float]


def kv_token_bytes(path: Path) -> int:
    """Bytes of KV cache for one token of context, over all layers; 0 where the file does not say.

    Layers with a sliding window count in full, so for models with such layers this is an upper bound.
    """
    try:
        with path.open("rb") as file:
            facts = _attention_facts(file)
    except (OSError, ValueError, struct.error, UnicodeDecodeError):
        return 0
    return _bytes_of(facts)


def _bytes_of(facts: dict[str, Value]) -> int:
    layers, heads, width = (facts.get(name) for name in ("block_count", "attention.head_count", "embedding_length"))
    kv_heads = facts.get("attention.head_count_kv", heads)
    # Latent attention keeps something smaller than keys and values of all heads.
    if "attention.kv_lora_rank" in facts or not isinstance(layers, int):
        return 0
    default = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else 0
    key, value = facts.get("attention.key_length", default), facts.get("attention.value_length", default)
    total = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads
    if not (isinstance(total, int) and isinstance(key, int) and isinstance(value, int)) or min(key, value) <= 0:
        return 0
    return total * (1 if isinstance(kv_heads, list) else layers) * (key + value) * _VALUE_BYTES


def _attention_facts(file: BinaryIO) -> dict[str, Value]:
    """The pairs of the model's architecture, without its prefix. They come before those of the tokenizer."""
    if file.read(4) != _MAGIC or _number(file, "<I") not in _VERSIONS:
        raise ValueError("not a GGUF file of a known version")
    _number(file, "<Q")  # tensors
    pairs = min(_number(file, "<Q"), _PAIRS_MAX)
    prefix = "?"
    facts: dict[str, Value] = {}
    for _ in range(pairs):
        key = _text(file)
        if key.startswith("tokenizer."):
            break
        value = _value(file, _number(file, "<I"))
        if key == "general.architecture":
            prefix = f"{value}."
        elif key.startswith(prefix):
            facts[key.removeprefix(prefix)] = value
    return facts


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if count > _ARRAY_MAX:
            raise ValueError("an array before the tokenizer's is too long")
        if inner == _STRING:
            for _ in range(count):
                _text(file)
            return []
        return [_scalar(file, inner) for _ in range(count)]
    return _scalar(file, kind)


def _scalar(file: BinaryIO, kind: int) -> int | float:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise ValueError(f"unknown value type {kind}")
    value: int | float = layout.unpack(file.read(layout.size))[0]
    return value


def _number(file: BinaryIO, layout: str) -> int:
    number: int = struct.unpack(layout, file.read(struct.calcsize(layout)))[0]
    return number


def _text(file: BinaryIO) -> str:
    size = _number(file, "<Q")
    if size > _TEXT_BYTES_MAX:
        raise ValueError("a text in the header is too long")
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the header ends early")
    return data.decode()
