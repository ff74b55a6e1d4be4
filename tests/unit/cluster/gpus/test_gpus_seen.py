"""Readings, masks, topology and faults of GPUs, by the real NVML binding on top of a scripted library."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.testing import fake_nvml
from orchestrator.cluster.gpus.watch import QUIET_NS, FaultLog, GpuFault
from tests.unit.cluster.gpus import gpu_scenes as scenes


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def seen(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> Any:
    """What the scene named by the test saw."""
    return scenes.run_scene(request.param, library, tmp_path / "gpus")


def scene(function: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seen", [function], indirect=True, ids=[function.__name__])


@scene(scenes.reads_every_fact)
@pytest.mark.req("OC-POOL-3030", "ORCH-3053")
def test_readings_hold_what_the_driver_tells_and_none_where_it_does_not(seen: Any) -> None:
    assert seen["readings"] == [
        {
            "index": 0,
            "uuid": "GPU-node-a-0",
            "name": "Fake A 1 GB",
            "vram_total_bytes": 1000 << 20,
            "vram_used_bytes": 250 << 20,
            "utilization_percent": 37,
            "ecc_uncorrected": 1,
        },
        {
            "index": 1,
            "uuid": "GPU-node-a-1",
            "name": "Fake GPU 80GB",
            "vram_total_bytes": 81920 << 20,
            "vram_used_bytes": 100 << 20,
            "utilization_percent": None,
            "ecc_uncorrected": None,
        },
    ]
    assert (seen["count"], seen["free"]) == (2, 750 << 20)
    assert seen["pids"] == [[30, 31], []]
    assert seen["bus"] == ["0001:65:00.0", "0000:11:00.0"]
    assert seen["link"] == [30, True]


@scene(scenes.goes_on_with_a_lost_gpu)
@pytest.mark.req("OC-POOL-3010", "ORCH-3038")
def test_a_broken_gpu_is_reported_beside_the_others(seen: Any) -> None:
    assert seen["gpus"] == [0]
    (lost, kind, fatal, text), (mute, *_) = seen["broken"]
    assert (lost, kind, fatal, mute) == (1, "gpu_lost", True, 2)
    assert text.startswith("GPU 1: GPU is lost")


@scene(scenes.opens_without_a_driver)
@pytest.mark.req("OC-POOL-3010")
def test_a_driver_that_does_not_open_says_why(seen: Any) -> None:
    assert {code: told[:3] for code, told in seen.items()} == {
        "9": ["driver", True, True],
        "18": ["driver", True, True],
        "999": ["driver", True, False],
    }
    assert "modprobe nvidia" in seen["9"][3]
    assert "different versions" in seen["18"][3]
    assert "NVML error 999" in seen["999"][3]


def test_a_library_that_does_not_load_is_a_missing_driver(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    # Newer than the source, so that nothing is compiled in its place.
    (broken / fake_nvml.LIBRARY).write_text("not a library")
    kind, driver_gone, text = scenes.run_scene(scenes.opens_without_a_library, broken, tmp_path / "gpus")
    assert (kind, driver_gone) == ("driver", True)
    assert "install the NVIDIA driver" in text


@scene(scenes.closes_when_the_driver_is_gone)
def test_nvml_closes_without_a_driver_and_opens_again(seen: Any) -> None:
    assert seen == ["driver", True, 0]


@scene(scenes.resolves_masks)
@pytest.mark.req("ORCH-3011", "ORCH-3053", "OC-POOL-3020")
def test_a_mask_is_had_whole_or_not_at_all(seen: Any) -> None:
    assert seen["whole"] == ["GPU-n-1", "GPU-n-0"]
    assert seen["none"] == []
    assert {name: told[0] for name, told in seen.items() if name not in ("whole", "none")} == {
        "foreign": "mask",
        "absent": "mask",
        "only one": "mask",
        "nothing": "mask",
        "lost": "gpu_lost",
        "reset": "driver",
        "unknown": "driver",
        "driver": "driver",
    }
    assert "GPU 1 (GPU-n-1)" in seen["foreign"][1]
    assert "pid 77" in seen["foreign"][1]
    assert "GPU 2, which does not work: GPU is lost" in seen["lost"][1]
    assert "GPU 3, which does not work: GPU needs a reset" in seen["reset"][1]
    assert "GPU 4, which does not work: NVML error 999" in seen["unknown"][1]
    assert "GPU 5, and this node has GPUs 0 to 4" in seen["absent"][1]
    assert "GPU 1, and this node has GPU 0 only" in seen["only one"][1]
    assert "no GPUs" in seen["nothing"][1]


@scene(scenes.checks_splits)
@pytest.mark.req("ORCH-3012", "OC-POOL-3021")
def test_unlike_gpus_need_a_ratio_for_each(seen: Any) -> None:
    good = {name for name, told in seen.items() if told is None}
    assert good == {"one", "equal", "equal with ratios", "unlike with ratios"}
    assert "tensor_split: [0.67, 0.33]" in seen["unlike sizes"][1]
    assert "3: Other 1000 MiB" in seen["unlike names"][1]
    assert "1 ratios for 2 GPUs" in seen["too few"][1]
    assert "sums to 0.900" in seen["sum"][1]
    assert "above 0" in seen["zero"][1]
    assert "above 0" in seen["not a number"][1]


@scene(scenes.measures_distances)
@pytest.mark.req("ORCH-3013", "ORCH-3052")
def test_distance_is_that_of_the_worst_link(seen: Any) -> None:
    assert seen == {
        "none": 0,
        "alone": 0,
        "levels": [2, 2, 3, 4, 5],
        "internal": 1,
        "nvlink": 1,
        "worst": 5,
        "lost": 5,
    }


@scene(scenes.finds_numa_nodes)
@pytest.mark.req("ORCH-3013")
def test_numa_nodes_come_from_the_kernel(seen: Any) -> None:
    assert seen["nodes"] == [1, 1, 0, None, None, None]
    assert (seen["together"], seen["apart"], seen["unknown"]) == (1, None, None)
    assert seen["distances"] == [4, 5, 5]


@scene(scenes.tells_of_events)
@pytest.mark.req("ORCH-3038", "ORCH-3053", "OC-POOL-3010", "OC-POOL-3030")
def test_events_of_the_mask_are_told_once_and_again_when_worse(seen: Any) -> None:
    assert [told[:3] for told in seen["faults"]] == [
        ["xid", False, 0],
        ["ecc", False, 0],
        ["ecc", True, 0],
        ["driver", True, 1],
        ["ecc", True, 1],
        ["driver", True, 1],
    ]
    assert seen["faults"][0][3] == "GPU 0 (GPU-n-0): XID 31: GPU memory page fault"
    assert seen["counts"] == {"ecc_corrected": 1, "ecc_uncorrected": 0, "xids": 8}
    assert seen["threads"] == ["MainThread"]


@scene(scenes.tells_of_a_lost_gpu)
@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
def test_a_lost_gpu_is_told_once_until_it_is_back(seen: Any) -> None:
    assert [told[:3] for told in seen["lost"]] == [["gpu_lost", True, 1]] * 2
    assert "GPU 1 (GPU-n-1)" in seen["lost"][0][3]
    assert seen["left"] == [0]


@scene(scenes.tells_of_a_driver_reset)
@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
def test_a_driver_reset_is_one_fault_whatever_fails(seen: Any) -> None:
    assert [told[:3] for told in seen] == [["driver", True, None]]


@scene(scenes.tells_of_growing_ecc_counts)
@pytest.mark.req("ORCH-3053")
def test_uncorrected_errors_are_found_without_events(seen: Any) -> None:
    assert [told[:3] for told in seen] == [["ecc", False, 0]]
    assert "2 uncorrected ECC errors, 4 since the driver was loaded" in seen[0][3]


@scene(scenes.tells_once_when_waiting_fails)
@pytest.mark.req("ORCH-3038")
def test_a_fault_that_no_reading_shows_is_told_once(seen: Any) -> None:
    assert [told[:3] for told in seen] == [["gpu_lost", True, None]]


@scene(scenes.watches_without_a_driver)
def test_a_watch_without_a_driver_tells_so(seen: Any) -> None:
    assert [told[:3] for told in seen] == [["driver", True, None]]


@scene(scenes.stops)
def test_nothing_is_told_after_stop(seen: Any) -> None:
    assert seen == {"found": True, "told": [], "running": [], "idle": 0}


@scene(scenes.outlives_its_loop)
def test_a_closed_loop_does_not_end_the_watch(seen: Any) -> None:
    assert seen == {"xids": 2, "told": 0}


# --------------------------------------------------------------------- the fault log


def fault(*, fatal: bool = False, gpu: int = 0) -> GpuFault:
    return GpuFault("ecc", fatal, "", gpu)


@pytest.mark.req("ORCH-3053")
def test_an_event_is_news_again_after_a_quiet_time_only() -> None:
    log = FaultLog()
    assert log.is_news(fault(), 0, lasts=False)
    assert not log.is_news(fault(), QUIET_NS, lasts=False)
    assert not log.is_news(fault(), 2 * QUIET_NS, lasts=False)
    assert log.is_news(fault(gpu=1), 2 * QUIET_NS, lasts=False)
    assert log.is_news(fault(), 3 * QUIET_NS + 1, lasts=False)


@pytest.mark.req("ORCH-3053")
def test_a_lasting_fault_is_news_again_when_its_gpu_was_back() -> None:
    log = FaultLog()
    assert log.is_news(fault(), 0, lasts=False)
    log.answers(0)
    assert not log.is_news(fault(), 1, lasts=True)
    assert not log.is_news(fault(), 9 * QUIET_NS, lasts=True)
    log.answers(1)
    assert not log.is_news(fault(), 9 * QUIET_NS, lasts=True)
    assert log.is_news(fault(fatal=True), 9 * QUIET_NS, lasts=True)
    assert not log.is_news(fault(), 9 * QUIET_NS, lasts=True)
    log.answers(0)
    assert log.is_news(fault(), 9 * QUIET_NS, lasts=True)


# ------------------------------------------------------------------------- the fake


def test_no_compiler_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(fake_nvml.BuildError, match=r"install gcc or clang, or point \$CC at one"):
        fake_nvml.build_fake_nvml(tmp_path)


def test_a_failing_compiler_is_said_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(fake_nvml.BuildError, match="no room"):
        fake_nvml.build_fake_nvml(tmp_path)


def test_a_library_is_compiled_once(library: Path) -> None:
    before = (library / fake_nvml.LIBRARY).stat().st_mtime_ns
    fake_nvml.build_fake_nvml(library)
    assert (library / fake_nvml.LIBRARY).stat().st_mtime_ns == before
    assert [path.name for path in library.iterdir()] == [fake_nvml.LIBRARY]


def test_importing_the_gpu_package_needs_no_driver() -> None:
    code = "import orchestrator.cluster.gpus.watch, orchestrator.cluster.gpus.mask, orchestrator.cluster.gpus.topology"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=scenes.ROOT, check=True, timeout=60)
