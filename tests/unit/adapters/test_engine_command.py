"""The command line and the environment of a llama-server: which GPUs it sees and what goes onto them."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llamacpp.command import server_arguments, server_environment
from contracts.engine import EngineSpec

SOCKET = Path("/run/engine.sock")


def flags(spec: EngineSpec) -> dict[str, str]:
    """Each flag with the word after it."""
    words = server_arguments(spec, SOCKET)
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("-")}


@pytest.mark.req("ORCH-3012", "ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize(
    ("gpus", "split", "expected"),
    [
        (1, (), {"--split-mode": "none", "--main-gpu": "0"}),
        (2, (), {"--split-mode": "layer", "--tensor-split": "1,1"}),
        (2, (0.67, 0.33), {"--split-mode": "layer", "--tensor-split": "0.67,0.33"}),
    ],
)
def test_a_model_is_shared_out_as_the_pool_says(
    spec: EngineSpec, gpus: int, split: tuple[float, ...], expected: dict[str, str]
) -> None:
    uuids = tuple(f"GPU-{index}" for index in range(gpus))
    found = flags(replace(spec, accelerator="gpu", gpu_uuids=uuids, tensor_split=split))
    split_flags = ("--split-mode", "--main-gpu", "--tensor-split")
    assert {name: value for name, value in found.items() if name in split_flags} == expected
    assert found["-ngl"] == "999"
    assert "--device" not in found


@pytest.mark.req("ORCH-3018", "OC-POOL-3012")
def test_development_on_the_cpu_never_touches_a_gpu(spec: EngineSpec) -> None:
    found = flags(spec)
    assert (found["-ngl"], found["--device"]) == ("0", "none")
    assert "--split-mode" not in found
    env = server_environment(replace(spec, devices=("0",), gpu_uuids=("GPU-0",)), "key", {"CUDA_VISIBLE_DEVICES": "3"})
    assert (env["CUDA_VISIBLE_DEVICES"], env["GGML_VK_VISIBLE_DEVICES"]) == ("", "")


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_the_mask_reaches_the_engine_as_uuids(spec: EngineSpec) -> None:
    gpu = replace(spec, accelerator="gpu", devices=("2", "3"))
    base = {"CUDA_VISIBLE_DEVICES": "0,1", "LLAMA_ARG_CTX_SIZE": "1", "HOME": "/h"}
    assert server_environment(gpu, "key", base) == {
        "HOME": "/h",
        "LLAMA_API_KEY": "key",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "GGML_VK_VISIBLE_DEVICES": "2,3",
    }
    env = server_environment(replace(gpu, gpu_uuids=("GPU-b", "GPU-a")), "key", base)
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"


def test_the_pools_own_arguments_come_last(spec: EngineSpec) -> None:
    words = server_arguments(replace(spec, args=("-ub", "16")), SOCKET)
    assert words[-2:] == ["-ub", "16"]
