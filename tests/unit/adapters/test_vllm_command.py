"""How vLLM is started: for the CPU and for GPUs, and what its environment may hold."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.vllm.command import server_arguments, server_environment
from adapters.vllm.preflight import check_environment, is_batch_invariant
from contracts.engine import EngineError, EngineSpec

SPEC = EngineSpec("vllm", "p", "p-0", "m", "/models/m", 256, 3, "cpu-dev", binary="/venv/bin/python")
GPU = replace(SPEC, accelerator="gpu", devices=("0", "2"), gpu_uuids=("GPU-a", "GPU-b"))
SOCKET = Path("/run/x/vllm.sock")


def options(spec: EngineSpec, kv_cache_bytes: int = 1000) -> dict[str, str]:
    """Each option with the word after it."""
    arguments = server_arguments(spec, SOCKET, kv_cache_bytes)
    return {name: value for name, value in zip(arguments, [*arguments[1:], ""], strict=True) if name[:2] == "--"}


@pytest.mark.req("OC-ADAPT-5002", "OC-ADAPT-5010")
def test_it_listens_on_a_socket_alone_and_takes_no_defaults_of_the_model() -> None:
    told = options(SPEC)
    assert server_arguments(SPEC, SOCKET, 0)[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert (told["--uds"], told["--model"], told["--served-model-name"]) == (str(SOCKET), "/models/m", "m")
    assert (told["--max-model-len"], told["--max-num-seqs"], told["--generation-config"]) == ("256", "3", "vllm")
    assert told["--load-format"] == "safetensors"
    assert not {"--host", "--port", "--api-key"} & set(told)


@pytest.mark.req("ORCH-3045")
def test_a_strict_pool_has_no_prefix_cache() -> None:
    assert "--no-enable-prefix-caching" in options(SPEC)
    assert "--no-enable-prefix-caching" not in options(replace(SPEC, determinism="best_effort"))


@pytest.mark.req("ORCH-3001", "ORCH-3012")
def test_gpus_share_the_model() -> None:
    told = options(GPU)
    assert (told["--tensor-parallel-size"], told["--kv-cache-memory-bytes"]) == ("2", "1000")
    assert "--dtype" not in told
    assert "--kv-cache-memory-bytes" not in options(GPU, 0)


@pytest.mark.req("ORCH-1101")
def test_on_the_cpu_a_prompt_is_one_step_and_numbers_are_32_bits_wide() -> None:
    told = options(SPEC)
    assert (told["--dtype"], told["--max-num-batched-tokens"]) == ("float32", "256")
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(told)
    assert "--no-enable-chunked-prefill" not in options(GPU)


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
def test_a_pooling_pool_asks_for_pooling(workload: str) -> None:
    told = options(replace(SPEC, workload=workload))
    assert told["--runner"] == "pooling"
    assert "--kv-cache-memory-bytes" not in told


def test_a_step_on_the_cpu_holds_the_context_that_the_arguments_ask_for() -> None:
    assert options(replace(SPEC, args=("--max-model-len", "1k")))["--max-num-batched-tokens"] == "1000"


def test_the_pools_own_arguments_come_last() -> None:
    assert server_arguments(replace(SPEC, args=("--dtype", "half")), SOCKET, 0)[-2:] == ["--dtype", "half"]


@pytest.mark.req("ORCH-3011", "OC-CTRL-2041")
def test_the_environment_is_the_masks_and_ours() -> None:
    base = {"PATH": "/bin", "VLLM_BATCH_INVARIANT": "1", "VLLM_API_KEY": "theirs", "PYTHONPATH": "/x"}
    env = server_environment(GPU, Path("/run/x"), "key", base)
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("GPU-a,GPU-b", "PCI_BUS_ID")
    assert (env["VLLM_API_KEY"], env["PATH"], env["TMPDIR"]) == ("key", "/bin", "/run/x")
    assert not {"VLLM_BATCH_INVARIANT", "PYTHONPATH"} & set(env)
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    # Its processes rename themselves, and must still be found by their environment.
    assert env["SPT_NOENV"] == "1"
    assert server_environment(SPEC, Path("/run/x"), "key", base)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.req("ORCH-3045")
def test_batch_invariance_is_known_of_gpus_alone() -> None:
    asked = (("VLLM_BATCH_INVARIANT", "1"),)
    assert is_batch_invariant(replace(GPU, env=asked))
    assert not is_batch_invariant(replace(GPU, env=(("VLLM_BATCH_INVARIANT", "0"),)))
    assert not is_batch_invariant(GPU)
    with pytest.raises(EngineError, match="VLLM_BATCH_INVARIANT") as refused:
        check_environment(replace(SPEC, env=asked))
    assert refused.value.info.code == "INVALID_PARAMS"
    check_environment(SPEC)
