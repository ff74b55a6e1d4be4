"""The preload check: what it accepts fits, and what it refuses says the numbers."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.gpus import GpuReading, MemoryNeed
from orchestrator.cluster.gpus.headroom import HeadroomError, check_host, margin_bytes, slots_that_fit

MIB = 2**20
GIB = 2**30
PLENTY = 2**50


def gpu(index: int, total_mib: int, used_mib: int = 0) -> GpuReading:
    return GpuReading(index, f"GPU-{index}", "Fake", total_mib * MIB, used_mib * MIB)


def need(weights_mib: int, kv_mib: int, scratch_mib: int = 0, host_mib: int = 0) -> MemoryNeed:
    return MemoryNeed(weights_mib * MIB, kv_mib * MIB, scratch_mib * MIB, host_mib * MIB)


def slots_named(refused: HeadroomError) -> int:
    """The number of slots that a refusal advises; 0 where it says that not one fits."""
    advice = re.search(r"(\d+) slots would fit: set `slots: (\d+)`", str(refused))
    if advice is None:
        assert "not one slot fits" in str(refused)
        return 0
    assert advice[1] == advice[2]
    return int(advice[1])


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_the_margin_is_5_percent_up_to_512_mib() -> None:
    assert margin_bytes(1000 * MIB) == 50 * MIB
    assert margin_bytes(80 * GIB) == 512 * MIB


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_one_gpu_fits_to_the_mib() -> None:
    # 5000 weights + 4 x 1000 KV + 300 scratch + 512 margin = 9812 MiB.
    asked = need(5000, 1000, 300)
    assert slots_that_fit(asked, [gpu(0, 16384, 16384 - 9812)], (), 4, PLENTY) == 4
    with pytest.raises(HeadroomError) as refused:
        slots_that_fit(asked, [gpu(0, 16384, 16384 - 9811)], (), 4, PLENTY)
    assert refused.value.kind == "headroom"
    assert slots_named(refused.value) == 3
    said = str(refused.value)
    assert "GPU 0 (GPU-0) needs 9812 MiB (weights 5000, KV of 4 slots 4000, scratch 300, margin 512)" in said
    assert "free 9811 MiB" in said


@pytest.mark.req("ORCH-3003")
def test_weights_that_do_not_fit_leave_no_slot() -> None:
    with pytest.raises(HeadroomError, match="not one slot fits"):
        slots_that_fit(need(20000, 10), [gpu(0, 16384)], (), 1, PLENTY)


@pytest.mark.req("ORCH-3052", "OC-POOL-3021")
def test_kv_of_an_unlike_split_is_capped_by_the_gpu_that_runs_out_first() -> None:
    """24 and 12 GiB at 2:1. Shares are weights 6000 and 3000 MiB, so that 4 slots of 3000 MiB fit on the small GPU:
    (12288 - 512 - 300) x 3 - 9000 = 25428 MiB of KV, 8 slots; with 4000 MiB in use there, 13428 MiB and 4 slots."""
    asked, ratios = need(9000, 3000, 300), (2 / 3, 1 / 3)
    assert slots_that_fit(asked, [gpu(0, 24576), gpu(1, 12288)], ratios, 16, PLENTY) == 8
    assert slots_that_fit(asked, [gpu(0, 24576), gpu(1, 12288, 4000)], ratios, 16, PLENTY) == 4
    assert slots_that_fit(asked, [gpu(0, 24576), gpu(1, 12288, 4000)], ratios, 3, PLENTY) == 3
    with pytest.raises(HeadroomError, match=r"GPU 1 \(GPU-1\) needs .* free 3288 MiB"):
        slots_that_fit(asked, [gpu(0, 24576), gpu(1, 12288, 9000)], ratios, 16, PLENTY)


@pytest.mark.req("ORCH-3003")
def test_equal_gpus_without_ratios_share_alike_and_hold_all_slots_or_none() -> None:
    gpus = [gpu(0, 8192), gpu(1, 8192, 2000)]
    assert slots_that_fit(need(8000, 1000), gpus, (), 3, PLENTY) == 3
    with pytest.raises(HeadroomError) as refused:
        slots_that_fit(need(8000, 1000), gpus, (), 4, PLENTY)
    assert slots_named(refused.value) == 3


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_the_host_is_checked_with_and_without_gpus() -> None:
    asked = need(100, 10, 0, host_mib=1000)
    free = 1053 * MIB
    check_host(asked, free)
    assert slots_that_fit(asked, [], (), 4, free) == 4
    for gpus in ([], [gpu(0, 8192)]):
        with pytest.raises(HeadroomError, match=r"host memory: needs 1000 MiB and 52 MiB to spare, free 1040 MiB"):
            slots_that_fit(asked, gpus, (), 4, 1040 * MIB)


sizes = st.integers(0, 64 * GIB)
cards = st.builds(
    lambda total, used: GpuReading(0, "GPU-x", "Fake", total, used * total // 100),
    st.integers(GIB, 96 * GIB),
    st.integers(0, 100),
)
needs = st.builds(MemoryNeed, sizes, st.integers(0, 4 * GIB), st.integers(0, 2 * GIB), st.integers(0, 16 * GIB))


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[GpuReading], tuple[float, ...]]:
    gpus = draw(st.lists(cards, min_size=1, max_size=4))
    parts = draw(st.lists(st.integers(1, 100), min_size=len(gpus), max_size=len(gpus)))
    ratios = tuple(part / sum(parts) for part in parts)
    return gpus, draw(st.sampled_from(((), ratios)))


def fit(need: MemoryNeed, split: tuple[list[GpuReading], tuple[float, ...]], slots: int, host: int = PLENTY) -> int:
    try:
        return slots_that_fit(need, *split, slots, host)
    except HeadroomError:
        return 0


@pytest.mark.req("ORCH-3003", "ORCH-3052", "OC-POOL-3021")
@given(needs, splits(), st.integers(1, 64), sizes)
@settings(max_examples=200)
def test_what_is_accepted_fits_on_every_gpu(
    need: MemoryNeed, split: tuple[list[GpuReading], tuple[float, ...]], slots: int, host: int
) -> None:
    accepted = fit(need, split, slots, host)
    if not accepted:
        return
    gpus, ratios = split
    assert 1 <= accepted <= slots
    assert need.host_bytes + margin_bytes(host) <= host
    for reading, share in zip(gpus, ratios or [1 / len(gpus)] * len(gpus), strict=True):
        taken = math.floor(share * (need.weights_bytes + accepted * need.kv_slot_bytes)) + need.scratch_bytes
        # The test's own sum is in floating point: allow it the last of 53 bits.
        assert taken + margin_bytes(reading.vram_total_bytes) <= reading.vram_free_bytes + 64


@pytest.mark.req("ORCH-3003", "ORCH-3052")
@given(needs, splits(), st.integers(1, 63), st.integers(0, 4 * GIB))
@settings(max_examples=200)
def test_more_memory_and_smaller_models_never_fit_fewer_slots(
    need: MemoryNeed, split: tuple[list[GpuReading], tuple[float, ...]], slots: int, less: int
) -> None:
    gpus, ratios = split
    fits = fit(need, split, slots)
    freer = [GpuReading(0, "", "", gpu.vram_total_bytes, max(0, gpu.vram_used_bytes - less)) for gpu in gpus]
    assert fit(need, (freer, ratios), slots) >= fits
    lighter = MemoryNeed(max(0, need.weights_bytes - less), need.kv_slot_bytes, need.scratch_bytes, need.host_bytes)
    assert fit(lighter, split, slots) >= fits
    if ratios:
        assert fit(need, split, slots + 1) >= fits


@pytest.mark.req("ORCH-3003")
@given(needs, splits(), st.integers(2, 64))
@settings(max_examples=200)
def test_the_number_that_a_refusal_names_does_fit(
    need: MemoryNeed, split: tuple[list[GpuReading], tuple[float, ...]], slots: int
) -> None:
    if fit(need, split, slots):
        return
    with pytest.raises(HeadroomError) as refused:
        slots_that_fit(need, *split, slots, PLENTY)
    named = slots_named(refused.value)
    assert named < slots
    assert named == 0 or slots_that_fit(need, *split, named, PLENTY) == named
