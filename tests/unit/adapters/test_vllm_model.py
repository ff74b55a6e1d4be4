"""A model's folder: what must be in it, its digest, and what serving it takes."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.vllm.memory import kv_cache_bytes, memory_need
from adapters.vllm.model import TextConfig, checked_model, kv_token_bytes, model_digest, read_config
from contracts.engine import EngineError, EngineSpec

CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "dtype": "bfloat16",
    "eos_token_id": [7, 8],
    "vocab_size": 100,
}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    return EngineSpec("vllm", "p", "p-0", "m", str(folder), 256, 2, "cpu-dev")


def folder_of(spec: EngineSpec) -> Path:
    return Path(spec.model_path)


@pytest.mark.req("ORCH-3037")
@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
def test_a_folder_without_its_parts_is_no_model(spec: EngineSpec, lacking: str) -> None:
    (folder_of(spec) / lacking).unlink()
    with pytest.raises(EngineError) as refused:
        checked_model(spec)
    assert (refused.value.info.code, refused.value.kind) == ("POOL_UNREADY", "model")
    assert spec.model_path in refused.value.info.message


@pytest.mark.req("ORCH-3032", "ORCH-3037")
def test_the_digest_is_of_what_shapes_a_token(spec: EngineSpec) -> None:
    before = model_digest(spec)
    assert before.startswith("sha256:")
    assert len(before) == 71
    (folder_of(spec) / "README.md").write_text("hello")
    assert model_digest(spec) == before
    (folder_of(spec) / "tokenizer.json").write_text("{ }")
    assert model_digest(spec) != before
    with pytest.raises(EngineError, match="must have"):
        checked_model(replace(spec, model_digest=before))
    assert checked_model(replace(spec, model_digest=model_digest(spec))) == folder_of(spec)


@pytest.mark.req("ORCH-3003", "ORCH-3022")
def test_memory_on_the_cpu_is_in_32_bits(spec: EngineSpec) -> None:
    need = memory_need(spec)
    # 2 for keys and values, 2 layers, 2 KV heads of 16, 4 bytes each.
    assert need.kv_slot_bytes == 256 * 2 * 2 * 2 * 16 * 4
    assert need.weights_bytes == 2000
    assert need.host_bytes > need.weights_bytes + 2 * need.kv_slot_bytes
    assert need.slots_max == 2


@pytest.mark.req("ORCH-3003", "ORCH-3012")
def test_gpus_share_the_kv_cache(spec: EngineSpec) -> None:
    gpu = replace(spec, accelerator="gpu", devices=("0", "1"))
    need = memory_need(gpu)
    assert (need.weights_bytes, need.kv_slot_bytes) == (1000, 256 * 2 * 2 * 2 * 16 * 2)
    # Two slots of two blocks each, and the empty one; each GPU has half of the heads.
    assert kv_cache_bytes(gpu) == 5 * 128 * 2 * 2 * 1 * 16 * 2
    # More GPUs than heads: each keeps one.
    assert kv_cache_bytes(replace(gpu, devices=("0", "1", "2", "3"))) == kv_cache_bytes(gpu)


def test_a_token_in_a_cache_of_latent_attention() -> None:
    config = TextConfig(num_hidden_layers=3, kv_lora_rank=512, qk_rope_head_dim=64)
    assert kv_token_bytes(config, 2) == 3 * 576 * 2


def test_a_model_that_does_not_tell_its_shape_has_no_known_cache(spec: EngineSpec) -> None:
    (folder_of(spec) / "config.json").write_text("{}")
    assert kv_cache_bytes(spec) == 0


def test_the_text_part_of_a_larger_model_counts(spec: EngineSpec) -> None:
    (folder_of(spec) / "config.json").write_text(json.dumps({"text_config": CONFIG}))
    config = read_config(spec)
    assert (config.num_hidden_layers, config.start_token) == (2, 7)


@pytest.mark.parametrize("content", ["{", '{"num_hidden_layers": "two"}', '{"hidden_size": -1}'])
def test_a_broken_configuration_is_the_models_fault(spec: EngineSpec, content: str) -> None:
    (folder_of(spec) / "config.json").write_text(content)
    with pytest.raises(EngineError, match=r"config\.json cannot be read") as refused:
        memory_need(spec)
    assert refused.value.kind == "model"
