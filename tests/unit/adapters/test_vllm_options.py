"""What a pool's own arguments change of what vLLM takes."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.vllm.memory import kv_cache_bytes, memory_need
from adapters.vllm.model import read_config
from adapters.vllm.options import context_tokens, kv_value_bytes, value_bytes
from contracts.engine import EngineError, EngineSpec

CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "dtype": "bfloat16"}
#: Keys and values of two layers and four heads of 16.
VALUES = 2 * 2 * 4 * 16
DRAFT_VALUES = VALUES // 2


def model(folder: Path, layers: int, weights: int) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    (folder / "model.safetensors").write_bytes(b"w" * weights)
    return str(folder)


@pytest.fixture
def spec(tmp_path: Path) -> EngineSpec:
    folder = model(tmp_path / "model", 2, 1000)
    return EngineSpec("vllm", "p", "p-0", "m", folder, 256, 2, "gpu", devices=("0", "1"))


@pytest.fixture
def draft(tmp_path: Path) -> str:
    return model(tmp_path / "draft", 1, 100)


@pytest.mark.req("ORCH-3003")
@pytest.mark.parametrize(
    ("args", "weights", "kv_slot"),
    [
        ((), 1000, 256 * VALUES * 2),
        (("--dtype", "float32"), 2000, 256 * VALUES * 4),
        (("--dtype=half",), 1000, 256 * VALUES * 2),
        (("--dtype", "float32", "--kv-cache-dtype", "fp8"), 2000, 256 * VALUES),
        (("--kv_cache_dtype=fp8_e5m2",), 1000, 256 * VALUES),
        (("--kv-cache-dtype", "nvfp4"), 1000, 256 * VALUES * 2),
        (("--kv-cache-dtype", "auto"), 1000, 256 * VALUES * 2),
        (("--max-model-len", "1K"), 1000, 1024 * VALUES * 2),
        (("--max_model_len", "512", "--max-model-len=1024"), 1000, 1024 * VALUES * 2),
        # Of each of two GPUs, for two slots.
        (("--kv-cache-memory-bytes", "5000"), 1000, 5000),
    ],
)
def test_arguments_count(spec: EngineSpec, args: tuple[str, ...], weights: int, kv_slot: int) -> None:
    need = memory_need(replace(spec, args=args))
    assert (need.weights_bytes, need.kv_slot_bytes) == (weights, kv_slot)


@pytest.mark.req("ORCH-3003")
def test_the_cache_is_asked_for_as_it_is_reckoned(spec: EngineSpec) -> None:
    # Two slots of two blocks each, and the empty one; each GPU has half of the heads.
    assert kv_cache_bytes(spec) == 5 * 128 * VALUES // 2 * 2
    wide = replace(spec, args=("--max-model-len", "512", "--kv-cache-dtype", "fp8"))
    assert kv_cache_bytes(wide) == 9 * 128 * VALUES // 2


def test_on_the_cpu_arguments_go_before_32_bits(spec: EngineSpec) -> None:
    cpu = replace(spec, accelerator="cpu-dev", devices=())
    config = read_config(spec)
    assert (value_bytes(cpu, config), kv_value_bytes(cpu, config)) == (4, 4)
    assert value_bytes(replace(cpu, args=("--dtype", "bfloat16")), config) == 2
    assert kv_value_bytes(replace(cpu, args=("--dtype", "auto")), config) == 2
    assert context_tokens(replace(cpu, args=("--max-model-len", "2.5k"))) == 2500


@pytest.mark.req("ORCH-3020")
@pytest.mark.parametrize("flag", ["--speculative-config", "-sc", "--speculative_config"])
def test_a_draft_model_counts(spec: EngineSpec, draft: str, flag: str) -> None:
    told = json.dumps({"model": draft, "num_speculative_tokens": 3})
    drafting = replace(spec, args=(flag, told))
    need = memory_need(drafting)
    assert need.weights_bytes == 1100
    assert need.kv_slot_bytes == 256 * (VALUES + DRAFT_VALUES) * 2
    assert kv_cache_bytes(drafting) == 5 * 128 * (VALUES + DRAFT_VALUES) // 2 * 2


@pytest.mark.req("ORCH-3020")
@pytest.mark.parametrize("args", [("--spec-model", "{}"), ("--speculative-config.model={}",), ("-sc.model", "{}")])
def test_a_draft_model_may_be_named_on_its_own(spec: EngineSpec, draft: str, args: tuple[str, ...]) -> None:
    drafting = replace(spec, args=tuple(arg.format(draft) for arg in args))
    assert memory_need(drafting).weights_bytes == 1100


@pytest.mark.req("ORCH-3012", "ORCH-3020")
def test_a_draft_model_that_is_not_shared_is_on_each_gpu(spec: EngineSpec, draft: str) -> None:
    drafting = replace(spec, args=("-sc", json.dumps({"model": draft, "draft_tensor_parallel_size": 1})))
    need = memory_need(drafting)
    assert need.weights_bytes == 1200
    assert need.kv_slot_bytes == 256 * (VALUES + 2 * DRAFT_VALUES) * 2
    assert kv_cache_bytes(drafting) == 5 * 128 * (VALUES // 2 + DRAFT_VALUES) * 2


@pytest.mark.req("ORCH-3020")
def test_guesses_from_the_text_itself_take_nothing(spec: EngineSpec) -> None:
    told = json.dumps({"method": "ngram", "num_speculative_tokens": 3})
    assert memory_need(replace(spec, args=("-sc", told))) == memory_need(spec)


@pytest.mark.req("ORCH-3020")
@pytest.mark.parametrize(
    "args",
    [
        ("--speculative-config", '{"model": "somebody/draft"}'),
        ("--speculative-config", '{"method": "mtp"}'),
        ("--speculative-config", '{"model"'),
        ("--speculative-config", "[" * 100_000),
        ("--spec-method", "eagle3"),
        ("--max-model-len", "auto"),
        ("--max-model-len", "-1"),
        ("--kv-cache-memory-bytes", "0"),
        ("--dtype", "float8"),
    ],
)
def test_what_cannot_be_reckoned_is_refused(spec: EngineSpec, args: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="pool p gives vLLM") as refused:
        memory_need(replace(spec, args=args))
    assert (refused.value.info.code, refused.value.info.retriable) == ("INVALID_PARAMS", False)


@pytest.mark.req("ORCH-3020")
def test_a_draft_model_without_its_parts_is_no_model(spec: EngineSpec, draft: str) -> None:
    (Path(draft) / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="draft") as refused:
        memory_need(replace(spec, args=("--spec-model", draft)))
    assert (refused.value.info.code, refused.value.kind) == ("POOL_UNREADY", "model")
