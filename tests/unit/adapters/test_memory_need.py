"""What an engine will take, reckoned from model files: exact where the file tells, bounded estimates elsewhere."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.memory import CUDA_CONTEXT_BYTES, MIB, memory_need
from adapters.testing.fake_model import write_fake_model
from contracts.engine import EngineError, EngineSpec
from tests.unit.adapters.test_gguf import PLAIN, U32, header, padded

#: SmolLM2-135M: 23040 bytes of KV per token; its widths, and a vocabulary that the file counts.
KV_TOKEN = 30 * 3 * 128 * 2
VOCABULARY = 1000
WIDTHS = (3 * 576 + 2 * 1536) * 4


@pytest.fixture
def plain(spec: EngineSpec, tmp_path: Path) -> EngineSpec:
    """A model with an output matrix: 96 bytes of embeddings among 4096 of weights."""
    return replace(spec, model_path=str(model(tmp_path / "plain.gguf", 4096)), ctx=2000, slots=4)


def model(path: Path, weights: int, output: bool = True) -> Path:
    pairs = dict(PLAIN) | {"llama.feed_forward_length": (U32, 1536), "llama.vocab_size": (U32, VOCABULARY)}
    del pairs["tokenizer.ggml.tokens"]
    offsets = {"token_embd.weight": 0, "output.weight" if output else "blk.0.weight": 96}
    path.write_bytes(padded(header(pairs, offsets=offsets)) + bytes(weights))
    return path


def on_gpus(spec: EngineSpec, count: int) -> EngineSpec:
    return replace(spec, accelerator="gpu", gpu_uuids=tuple(f"GPU-{index}" for index in range(count)))


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_on_a_gpu_embeddings_stay_with_the_host(plain: EngineSpec, tmp_path: Path) -> None:
    need = memory_need(on_gpus(plain, 1))
    assert need.weights_bytes == 4096 - 96
    # The engine rounds a slot's context up to a multiple of 256.
    assert need.kv_slot_bytes == 2048 * KV_TOKEN
    compute = 32 * (VOCABULARY * 4 + WIDTHS + 2048 * 6)
    assert need.scratch_bytes == CUDA_CONTEXT_BYTES + compute
    assert need.host_bytes == 512 * MIB + 96 + 4 * VOCABULARY * 4
    tied = memory_need(on_gpus(replace(plain, model_path=str(model(tmp_path / "tied.gguf", 4096, False))), 1))
    assert (tied.weights_bytes, tied.host_bytes) == (4096, need.host_bytes)
    # With several GPUs the inputs are kept four times over.
    assert memory_need(on_gpus(plain, 2)).scratch_bytes == CUDA_CONTEXT_BYTES + 4 * compute


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_on_the_cpu_all_is_host_memory(plain: EngineSpec) -> None:
    need = memory_need(plain)
    assert need.weights_bytes == 4096
    logits = 4 * VOCABULARY * 4
    assert need.host_bytes == 192 * MIB + 4096 + 4 * need.kv_slot_bytes + need.scratch_bytes + logits
    fewer = memory_need(replace(plain, slots=1))
    assert need.host_bytes - fewer.host_bytes == 3 * (need.kv_slot_bytes + VOCABULARY * 4)


@pytest.mark.req("ORCH-3020")
def test_arguments_that_take_memory_are_counted(plain: EngineSpec) -> None:
    base = memory_need(on_gpus(plain, 1))
    with_cache = memory_need(on_gpus(replace(plain, args=("--cache-ram", "100", "-cram", "300")), 1))
    assert with_cache.host_bytes == base.host_bytes + 300 * MIB
    assert memory_need(replace(plain, args=("-ub", "64"))).scratch_bytes == 2 * memory_need(plain).scratch_bytes
    packed = memory_need(on_gpus(replace(plain, args=("-ctk", "q8_0", "--cache-type-v=q4_0")), 1))
    assert packed.kv_slot_bytes == 2048 * 30 * 192 * (34 + 18) // 32
    with pytest.raises(EngineError, match="give `--cache-ram` a bound in MiB") as raised:
        memory_need(replace(plain, args=("--cache-ram", "-1")))
    assert raised.value.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3020")
@pytest.mark.parametrize("flag", ["-md", "--model-draft", "--spec-draft-model"])
def test_a_draft_model_is_counted(plain: EngineSpec, tmp_path: Path, flag: str) -> None:
    base = memory_need(on_gpus(plain, 1))
    draft = model(tmp_path / "draft.gguf", 1000)
    need = memory_need(on_gpus(replace(plain, args=(flag, str(draft))), 1))
    assert need.weights_bytes == base.weights_bytes + 1000 - 96
    assert need.kv_slot_bytes == 2 * base.kv_slot_bytes
    assert need.scratch_bytes - CUDA_CONTEXT_BYTES == 2 * (base.scratch_bytes - CUDA_CONTEXT_BYTES)
    packed = memory_need(on_gpus(replace(plain, args=(flag, str(draft), "-ctkd", "q8_0", "-ctvd", "q8_0")), 1))
    assert packed.kv_slot_bytes == base.kv_slot_bytes + 2048 * 30 * 192 * 2 * 34 // 32
    with pytest.raises(EngineError, match=r"nowhere\.gguf"):
        memory_need(replace(plain, args=(flag, str(tmp_path / "nowhere.gguf"))))


@pytest.mark.req("ORCH-3003")
def test_all_shards_count_and_all_must_be_there(plain: EngineSpec, tmp_path: Path) -> None:
    first = model(tmp_path / "m-00001-of-00002.gguf", 2000)
    sharded = replace(plain, model_path=str(first))
    with pytest.raises(EngineError, match=r"m-00002-of-00002\.gguf"):
        memory_need(sharded)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(padded(header({}, offsets={"blk.1.weight": 0})) + bytes(500))
    assert memory_need(sharded).weights_bytes == 2500


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
@pytest.mark.parametrize(
    ("content", "reason"), [(None, "does not exist"), (b"a fake model\n", "it is no GGUF file"), (b"", "ends early")]
)
async def test_what_is_no_model_is_refused_by_path_with_a_remedy(
    spec: EngineSpec, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=reason) as raised:
        await LlamaCppAdapter(replace(spec, model_path=str(path))).memory_need()
    error = raised.value
    assert (error.info.code, error.info.retriable, error.kind) == ("POOL_UNREADY", True, "model")
    assert f"pool p cannot load its model on this node: model file '{path}'" in error.info.message
    assert "put" in error.info.message


async def test_a_folder_is_no_model_and_another_shard_is_not_the_first(spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        await LlamaCppAdapter(replace(spec, model_path=str(tmp_path))).memory_need()
    second = model(tmp_path / "m-00002-of-00002.gguf", 2000)
    with pytest.raises(EngineError, match="it is not the first of 2 shards") as raised:
        await LlamaCppAdapter(replace(spec, model_path=str(second))).memory_need()
    assert raised.value.kind == "model"


async def test_models_of_any_size_can_be_faked(spec: EngineSpec, tmp_path: Path) -> None:
    large = write_fake_model(tmp_path / "large.gguf", layers=10**6)
    need = await LlamaCppAdapter(replace(spec, model_path=str(large))).memory_need()
    assert need.kv_slot_bytes == 256 * 128 * 10**6
