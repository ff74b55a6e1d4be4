"""The size of a token in the KV cache, read from a model file's header."""

import struct
from pathlib import Path

import pytest

from adapters.llamacpp.gguf import kv_token_bytes

U32, STRING, ARRAY, U64, F32 = 4, 8, 9, 10, 6
PLAIN: dict[str, tuple[int, object]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "a model"),
    "general.tags": (ARRAY, (STRING, ["chat", "small"])),
    "llama.block_count": (U32, 30),
    "llama.embedding_length": (U32, 576),
    "llama.attention.head_count": (U32, 9),
    "llama.attention.head_count_kv": (U32, 3),
    "llama.attention.layer_norm_rms_epsilon": (F32, 0.5),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["<s>"])),
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def scalar(kind: int, value: object) -> bytes:
    if kind == STRING:
        return text(str(value))
    return struct.pack({U32: "<I", U64: "<Q", F32: "<f"}[kind], value)


def header(pairs: dict[str, tuple[int, object]], version: int = 3, magic: bytes = b"GGUF") -> bytes:
    parts = [magic, struct.pack("<IQQ", version, 0, len(pairs))]
    for name, (kind, value) in pairs.items():
        parts += [text(name), struct.pack("<I", kind)]
        if kind == ARRAY:
            assert isinstance(value, tuple)
            inner, items = value
            parts.append(struct.pack("<IQ", inner, len(items)))
            parts += [scalar(inner, item) for item in items]
        else:
            parts.append(scalar(kind, value))
    return b"".join(parts)


def size(tmp_path: Path, data: bytes) -> int:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return kv_token_bytes(path)


@pytest.mark.req("ORCH-3022")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # 30 layers, 3 heads of keys and values of 576 / 9 = 64 each, 2 bytes a value: the numbers of SmolLM2-135M,
        # of which llama-server saved a slot of 308 tokens in 7.1 MB.
        ({}, 30 * 3 * (64 + 64) * 2),
        ({"llama.attention.key_length": (U32, 128), "llama.attention.value_length": (U32, 32)}, 30 * 3 * 160 * 2),
        # Per layer: one layer of four keeps keys and values.
        ({"llama.attention.head_count_kv": (ARRAY, (U32, [0, 0, 0, 8]))}, 8 * 128 * 2),
        # Latent attention and layers without heads are another matter.
        ({"llama.attention.kv_lora_rank": (U32, 512)}, 0),
        ({"llama.attention.head_count_kv": (U32, 0)}, 0),
        ({"general.architecture": (STRING, "other")}, 0),
    ],
)
def test_layers_heads_and_lengths_make_the_size(
    tmp_path: Path, changes: dict[str, tuple[int, object]], expected: int
) -> None:
    tokens = {"tokenizer.ggml.tokens": PLAIN["tokenizer.ggml.tokens"]}
    pairs = {name: value for name, value in (PLAIN | changes).items() if name not in tokens} | tokens
    assert size(tmp_path, header(pairs)) == expected


def test_without_grouped_heads_every_head_counts(tmp_path: Path) -> None:
    pairs = {name: value for name, value in PLAIN.items() if not name.endswith("head_count_kv")}
    assert size(tmp_path, header(pairs, version=2)) == 30 * 9 * 128 * 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"weights",
        header(PLAIN, magic=b"GGML"),
        header(PLAIN, version=1),
        header(PLAIN)[:200],
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.x") + struct.pack("<IIQ", ARRAY, U32, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.x") + struct.pack("<I", 99),
    ],
)
def test_a_file_that_does_not_say_gives_zero(tmp_path: Path, data: bytes) -> None:
    assert size(tmp_path, data) == 0
    assert kv_token_bytes(tmp_path / "absent") == 0
