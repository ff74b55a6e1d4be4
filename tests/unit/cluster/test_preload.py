"""Before an engine is launched: its GPUs are there and its own, it fits, and it knows where it stands."""

from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from adapters.testing.fake_nvml import build_fake_nvml
from contracts.engine import EngineError, EngineProperties
from contracts.errors import ErrorInfo
from contracts.gpus import MemoryNeed
from orchestrator.cluster import preload
from orchestrator.cluster.preload import Preload, Prepared, replica_info
from orchestrator.cluster.self_test import Shown
from tests.unit.cluster import preload_scenes as scenes
from tests.unit.cluster.gpus.gpu_scenes import run_scene
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("preload-nvml"))


@pytest.fixture
def seen(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> Any:
    """What the scene named by the test saw."""
    return run_scene(request.param, library, tmp_path / "gpus")


def scene(function: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seen", [function], indirect=True, ids=[function.__name__])


def spec_of(prepared: Any) -> dict[str, Any]:
    return prepared["spec"]  # type: ignore[no-any-return]


@scene(scenes.prepares_with_gpus)
@pytest.mark.req("ORCH-3003", "ORCH-3011", "ORCH-3013", "OC-POOL-3002", "OC-POOL-3020")
def test_an_engine_is_given_exactly_the_gpus_of_its_mask_if_it_fits_there(seen: Any) -> None:
    one, both = seen["one"], seen["both"]
    assert (spec_of(one)["gpu_uuids"], spec_of(one)["slots"], one["distance"]) == (["GPU-n-1"], 2, 0)
    # Half of 600 MiB and of 10 slots is 800 MiB, with 10 of scratch and 50 to spare: 860 of 900.
    assert (spec_of(both)["gpu_uuids"], spec_of(both)["slots"], both["distance"]) == (["GPU-n-0", "GPU-n-1"], 10, 2)
    assert (one["logged"], both["logged"]) == ([], [])
    refused = seen["too many slots"]
    assert refused["kind"] == "headroom"
    assert (
        "needs 910 MiB (weights 300, KV of 11 slots 550, scratch 10, margin 50), free 900 MiB"
        in (refused["info"]["message"])
    )
    assert "set `slots: 10`" in refused["info"]["message"]
    assert seen["no room"]["kind"] == "headroom"
    assert "not one slot fits" in seen["no room"]["info"]["message"]


@scene(scenes.refuses_masks)
@pytest.mark.req("ORCH-3011", "ORCH-3012", "ORCH-3053", "OC-POOL-3010", "OC-POOL-3020")
def test_a_mask_that_cannot_be_had_is_told_by_its_kind(seen: Any) -> None:
    assert {name: told["kind"] for name, told in seen.items()} == {
        "absent": "mask",
        "foreign": "mask",
        "lost": "gpu_lost",
        "unlike": "mask",
        "no driver": "driver",
    }
    for told in seen.values():
        info = told["info"]
        assert (info["code"], info["pool_id"], info["engine"], info["retriable"]) == (
            "POOL_UNREADY",
            "pool",
            "llamacpp",
            True,
        )
    assert "this node has GPU 0 only" in seen["absent"]["info"]["message"]
    assert "pid 77" in seen["foreign"]["info"]["message"]
    assert "tensor_split" in seen["unlike"]["info"]["message"]


@scene(scenes.caps_slots_of_unlike_splits)
@pytest.mark.req("ORCH-3012", "ORCH-3052", "OC-POOL-3021")
def test_a_split_serves_as_many_slots_as_its_smallest_gpu_has_room_for(seen: Any) -> None:
    slots = {name: spec_of(seen[name])["slots"] for name in ("even", "third", "as asked")}
    # GPU 1: (500 - 25 - 10) MiB / share - 600 MiB, by 100 MiB a slot.
    assert slots == {"even": 3, "third": 8, "as asked": 3}
    capped = {"event": "slots.capped", "log_level": "warning", "replica_id": "pool-0"}
    assert seen["even"]["logged"] == [capped | {"asked": 4, "fit": 3}]
    assert seen["third"]["logged"] == [capped | {"asked": 9, "fit": 8}]
    assert seen["as asked"]["logged"] == []
    assert seen["not one"]["kind"] == "headroom"


@scene(scenes.binds_to_numa_nodes)
@pytest.mark.req("ORCH-3013")
def test_an_engine_is_bound_to_the_numa_node_of_its_gpus_where_that_is_allowed(seen: Any) -> None:
    assert seen["together"] == [seen["numactl"], "--cpunodebind=1", "--preferred=1"]
    assert (seen["across"], seen["switched off"], seen["forbidden"]) == ([], [], [])


@scene(scenes.reads_gauges_and_tells_of_faults)
@pytest.mark.req("ORCH-3038", "OC-POOL-3010", "OC-POOL-3030")
def test_gauges_show_the_gpus_of_the_mask_and_faults_are_told(seen: Any) -> None:
    gauges = seen["gauges"]
    assert seen["before"] == 0
    assert [(gpu["uuid"], gpu["utilization_percent"]) for gpu in gauges["gpus"]] == [("GPU-n-0", 0), ("GPU-n-1", 37)]
    assert (gauges["replica_id"], gauges["kv_cache_usage_ratio"], gauges["gpu_counts"]["xids"]) == ("pool-0", 0.5, 1)
    assert gauges["host_ram_used_bytes"] > 0
    assert seen["told"] == [["gpu_lost", 1]]


# --------------------------------------------------------------------------- cpu-dev


class NoDriver:
    """In place of NVML, which must not be asked."""

    def __init__(self) -> None:
        raise AssertionError("the driver was asked for a replica without GPUs")


class Needy(ScriptedAdapter):
    """An engine that takes much of the host's memory."""

    async def memory_need(self) -> MemoryNeed:
        return MemoryNeed(1, 1, 1, host_bytes=2**60)


@pytest.mark.req("ORCH-1101", "OC-POOL-3012")
async def test_a_replica_without_gpus_asks_no_driver_and_gives_its_engine_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preload, "Nvml", NoDriver)
    spec = replace(SPEC, devices=("0",), tensor_split=(0.5, 0.5))
    checks = Preload(spec, lambda _fault: None)
    checks.start()
    prepared = await checks.prepare(7, ScriptedAdapter(spec))
    assert prepared == Prepared(replace(spec, slots=7), 0)
    assert (prepared.spec.gpu_uuids, prepared.spec.command_prefix) == ((), ())
    gauges = checks.gauges(None)
    assert (gauges.gpus, gauges.kv_cache_usage_ratio) == ((), None)
    assert gauges.host_ram_used_bytes
    checks.stop()


class Serial(ScriptedAdapter):
    """An engine that runs one task at a time, whatever is asked for."""

    async def memory_need(self) -> MemoryNeed:
        return MemoryNeed(1, 1, 1, 1, slots_max=1)


@pytest.mark.req("ORCH-3045", "OC-POOL-3002")
async def test_slots_that_an_engine_never_has_are_not_told_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "Nvml", NoDriver)
    with structlog.testing.capture_logs() as logs:
        prepared = await Preload(SPEC, lambda _fault: None).prepare(4, Serial(SPEC))
    assert (prepared.spec.slots, logs) == (1, [])


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
async def test_a_host_that_is_too_small_is_refused_with_numbers() -> None:
    with pytest.raises(EngineError) as refused:
        await Preload(SPEC, lambda _fault: None).prepare(2, Needy(SPEC))
    assert refused.value.kind == "headroom"
    assert f"host memory: needs {2**40} MiB" in refused.value.info.message
    assert refused.value.info.pool_id == "pool"


class Unreadable(ScriptedAdapter):
    """An engine whose model cannot be read."""

    async def memory_need(self) -> MemoryNeed:
        raise EngineError(ErrorInfo("POOL_UNREADY", f"{self.spec.model} is missing", retriable=True), "model")


@pytest.mark.req("ORCH-3003", "OC-POOL-3001")
async def test_a_model_that_cannot_be_read_is_told_as_such() -> None:
    with pytest.raises(EngineError) as refused:
        await Preload(SPEC, lambda _fault: None).prepare(2, Unreadable(SPEC))
    assert (refused.value.kind, refused.value.info.message) == ("model", "scripted-model is missing")


@pytest.mark.req("ORCH-3032", "ORCH-3013", "ORCH-3011")
def test_a_ready_replica_tells_what_its_engine_and_its_checks_found() -> None:
    spec = replace(SPEC, accelerator="gpu", devices=("2", "3"), gpu_uuids=("GPU-c", "GPU-d"), slots=5)
    told = EngineProperties("b42", "sha256:1", slots=4, ctx=1024, kv_tokens=4096, kv_token_bytes=7, keeps_kv=True)
    info = replica_info(Prepared(spec, 3), told, Shown(1234, 99), "node-9")
    assert (info.replica_id, info.pool_id, info.engine, info.node_id) == ("pool-0", "pool", "llamacpp", "node-9")
    # What the engine says counts, not what it was asked for.
    assert (info.engine_version, info.model_digest, info.slots, info.ctx) == ("b42", "sha256:1", 4, 1024)
    assert (info.devices, info.gpu_uuids, info.distance) == (("2", "3"), ("GPU-c", "GPU-d"), 3)
    assert (info.token_ns, info.kv_tokens, info.kv_token_bytes, info.keeps_kv) == (1234, 4096, 7, True)
    assert (info.exact, info.result_bytes) == (False, 99)
    assert (info.zone, info.accelerator, info.interruptible_decode) == ("hall-2", "gpu", False)
