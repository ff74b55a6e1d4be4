"""How far predictions are trusted: ratios, biases, calibrated chances, and the arithmetic under them."""

import math
from random import Random

import pytest

from orchestrator.core.averages import Line, Ratio
from orchestrator.core.calibration import BINS, POWERS, Bias, Calibration
from orchestrator.core.chances import normal_at_most


def test_a_line_never_falls_and_never_starts_below_zero() -> None:
    falling, steep = Line(), Line()
    for x in range(1, 50):
        falling.learn(x, 1_000.0 - 10.0 * x)
        steep.learn(x, max(0.0, 10.0 * x - 200.0))
    assert (falling.slope, falling.start > 0.0) == (0.0, True)
    assert (steep.slope > 0.0, steep.start) == (True, 0.0)


def test_the_normal_distribution_is_near_enough() -> None:
    for n in range(-800, 801):
        z = n / 100
        assert normal_at_most(z) == pytest.approx(0.5 * (1.0 + math.erf(z / math.sqrt(2.0))), abs=2.6e-4)
    assert (normal_at_most(-1e30), normal_at_most(0.0), normal_at_most(1e30)) == (0.0, 0.5, 1.0)


@pytest.mark.req("ORCH-3081")
def test_a_bias_of_two_is_learnt_where_it_is() -> None:
    bias = Bias(classes=2)
    for _ in range(200):
        bias.of(1, 4_000).learn(100, 200)
        bias.of(1, 60_000).learn(100, 50)
    assert bias.of(1, 4_000).factor() == pytest.approx(2.0, rel=0.07)
    assert bias.of(1, 3_000).factor() == bias.of(1, 2_048).factor() == bias.of(1, 4_000).factor()
    assert bias.of(1, 60_000).factor() == pytest.approx(0.5, rel=0.1)
    assert bias.of(0, 4_000).factor() == 1.0
    for deadline_ms in (-1, 0, 1, 2**31, 2**62):
        assert bias.of(0, deadline_ms) is not bias.of(1, deadline_ms)
    assert len({id(bias.of(tier, 1 << n)) for tier in (0, 1) for n in range(40)}) == 2 * (POWERS - 1)


@pytest.mark.req("ORCH-3081")
def test_one_wild_sample_moves_a_ratio_little_and_nothing_teaches_nothing() -> None:
    ratio = Ratio()
    ratio.learn(0, 1_000)
    assert (ratio.factor(), ratio.spread()) == (1.0, 0.5)
    for _ in range(64):
        ratio.learn(100, 100)
    ratio.learn(100, 10**12)
    assert ratio.factor() < 1.2
    ratio.learn(100, 0)
    assert ratio.factor() > 0.9


@pytest.mark.req("ORCH-3081")
def test_spread_is_the_deviation_of_what_happened() -> None:
    ratio, chance = Ratio(), Random(11)
    for _ in range(1_000):
        ratio.learn(1_000, max(1.0, chance.gauss(2_000, 400)))
    assert ratio.spread() == pytest.approx(0.2, abs=0.08)


def calibration_error(stream: list[tuple[float, bool]]) -> float:
    """Expected calibration error: the mean distance of chances from frequencies, over tenths of chance."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for told, happened in stream:
        bins[min(9, int(told * 10))].append((told, happened))
    return sum(
        abs(sum(told for told, _ in part) - sum(happened for _, happened in part)) for part in bins if part
    ) / len(stream)


@pytest.mark.req("ORCH-3081")
@pytest.mark.parametrize("power", [0.4, 1.0, 2.5])
def test_calibration_mends_a_miscalibrated_stream(power: float) -> None:
    calibration, chance = Calibration(), Random(12)
    raw, mended = [], []
    for n in range(12_000):
        told = chance.random()
        happened = chance.random() < told**power
        if n >= 6_000:
            raw.append((told, happened))
            mended.append((calibration.corrected(told), happened))
        calibration.observe(told, happened)
    if power != 1.0:
        assert calibration_error(raw) > 0.1
    assert calibration_error(mended) < 0.05


@pytest.mark.req("ORCH-3081")
def test_calibration_begins_as_identity_and_needs_evidence() -> None:
    calibration = Calibration()
    for told in (-1.0, 0.0, 0.024, 0.5, 0.99, 1.0, 2.0):
        assert calibration.corrected(told) == pytest.approx(min(1.0, max(0.0, told)))
    for _ in range(32):
        calibration.observe(1.0, False)
    assert calibration.corrected(1.0) == pytest.approx(5 / 37, abs=0.02)
    assert calibration.corrected(0.4) <= calibration.corrected(1.0)
    assert calibration.corrected(0.0) == 0.0


@pytest.mark.req("ORCH-3081")
def test_calibration_does_not_fall_where_outcomes_do() -> None:
    calibration = Calibration()
    for _ in range(64):
        for n in range(BINS):
            calibration.observe((n + 0.5) / BINS, happened=n % 2 == 0)
    told = [calibration.corrected(n / 1_000) for n in range(1_001)]
    assert told == sorted(told)
    assert calibration.corrected(0.5) == pytest.approx(0.5, abs=0.06)
