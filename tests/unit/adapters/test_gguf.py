"""What a model file's header tells: its tensors, its vocabulary, and the size of a token in the KV cache."""

import struct
from pathlib import Path

import pytest

from adapters.llamacpp.gguf import GgufError, read_header
from adapters.llamacpp.kv import kv_token_bytes
from adapters.testing.fake_model import write_fake_model

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


def header(
    pairs: dict[str, tuple[int, object]],
    version: int = 3,
    magic: bytes = b"GGUF",
    offsets: dict[str, int] | None = None,
) -> bytes:
    tensors = offsets or {}
    parts = [magic, struct.pack("<IQQ", version, len(tensors), len(pairs))]
    for name, (kind, value) in pairs.items():
        parts += [text(name), struct.pack("<I", kind)]
        if kind == ARRAY:
            assert isinstance(value, tuple)
            inner, items = value
            parts.append(struct.pack("<IQ", inner, len(items)))
            parts += [scalar(inner, item) for item in items]
        else:
            parts.append(scalar(kind, value))
    parts += [text(name) + struct.pack("<IQQIQ", 2, 64, 64, 0, offset) for name, offset in tensors.items()]
    return b"".join(parts)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


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
        # Heads of queries per layer: the largest tells the width of one.
        ({"llama.attention.head_count": (ARRAY, (U32, [0, 9, 9]))}, 30 * 3 * (64 + 64) * 2),
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


@pytest.mark.req("ORCH-3022")
@pytest.mark.parametrize(
    ("types", "expected"),
    [
        # As llama-server reports them for 512 cells in 4 slots: 45 MiB; 11.95 and 6.33 MiB.
        (("f16", "f16"), 45 * 2**20 / 2048),
        (("q8_0", "q4_0"), 30 * 192 * (34 + 18) / 32),
        (("f32", "bf16"), 30 * 192 * (4 + 2)),
        (("q5_1", "q5_0"), 30 * 192 * (24 + 22) / 32),
        (("iq4_nl", "q4_1"), 30 * 192 * (18 + 20) / 32),
        # What ggml does not know counts as the largest.
        (("q99", "f16"), 30 * 192 * (4 + 2)),
    ],
)
def test_packed_caches_take_less(tmp_path: Path, types: tuple[str, str], expected: float) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(PLAIN))
    assert kv_token_bytes(path, *types) == expected


@pytest.mark.req("ORCH-3003")
@pytest.mark.parametrize("alignment", [None, 32, 64])
def test_tensors_reach_to_the_next_one(tmp_path: Path, alignment: int | None) -> None:
    pairs = dict(PLAIN)
    if alignment:
        pairs["general.alignment"] = (U32, alignment)
    pairs["tokenizer.ggml.scores"] = (ARRAY, (F32, [0.5] * 70_000))
    pairs["tokenizer.ggml.tokens"] = (ARRAY, (STRING, ["<s>", "a", "b"]))
    start = padded(header(pairs, offsets={"b": 4096, "a": 0, "c": 4128}), alignment or 32)
    path = tmp_path / "model.gguf"
    path.write_bytes(start + bytes(5000))
    found = read_header(path)
    assert found.tensor_bytes == {"a": 4096, "b": 32, "c": 5000 - 4128}
    assert (found.weights_bytes, found.vocabulary, found.name) == (5000, 3, "a model")
    assert found.facts["block_count"] == 30
    assert "ggml.scores" not in found.facts
    path.write_bytes(start + bytes(4128))
    with pytest.raises(GgufError, match="ends before its tensor c: it was not copied in full"):
        read_header(path)


@pytest.mark.req("ORCH-3003")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header ends early"),
        (b"weights", "no GGUF file"),
        (header(PLAIN, version=9), "version is 9"),
        (header(PLAIN)[:-2], "header ends early"),
        (header({"general.alignment": (U32, 0)}), "alignment"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "more than 1048576 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "more than 65536 key-value pairs"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 999), "999 dimensions"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=reason):
        read_header(path)


def test_the_fake_model_is_a_whole_one(tmp_path: Path) -> None:
    found = read_header(write_fake_model(tmp_path / "model.gguf", "some name", layers=3))
    assert (found.name, found.tensor_bytes) == ("some name", {"token_embd.weight": 256})
    assert kv_token_bytes(tmp_path / "model.gguf") == 3 * 128
