"""A tiny model file for the fake engine: a true GGUF header, and weights that mean nothing."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NAME_DEFAULT: Final = "fake"
_WIDTH: Final = 64
_HEADS: Final = 4
_KV_HEADS: Final = 2
_CONTEXT_TOKENS: Final = 131_072
_VOCABULARY: Final = 4096
_ALIGNMENT: Final = 32
_U32, _STRING, _F32 = 4, 8, 0


def write_fake_model(
    path: Path, name: str = NAME_DEFAULT, layers: int = 2, facts: Mapping[str, int | str] | None = None
) -> Path:
    """Write a model of the architecture `llama` and return its path.

    The fake engine's text follows from `name`, and so does the file's digest. Each of the `layers` takes 128 bytes
    of KV cache per token: many of them make a model that no host has room for. `facts` are written as well.
    """
    told: dict[str, int | str] = {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": layers,
        "llama.context_length": _CONTEXT_TOKENS,
        "llama.embedding_length": _WIDTH,
        "llama.feed_forward_length": 2 * _WIDTH,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _KV_HEADS,
        "llama.vocab_size": _VOCABULARY,
        **(facts or {}),
    }
    pairs = b"".join(_pair(key, value) for key, value in told.items())
    tensor = _text("token_embd.weight") + struct.pack("<IQQIQ", 2, _WIDTH, 1, _F32, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(told)) + pairs + tensor
    path.write_bytes(header + bytes(-len(header) % _ALIGNMENT) + bytes(4 * _WIDTH))
    return path


def _pair(key: str, value: int | str) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    return _text(key) + struct.pack("<II", _U32, value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
