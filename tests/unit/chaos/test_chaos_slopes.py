"""The soak's arithmetic: slopes, and what counts as flat."""

import pytest

from tests.chaos.slopes import Sample, growth, slope

MB = 1024 * 1024


def samples(rss_mb_a_minute: float = 0.0, fds_a_minute: float = 0.0, minutes: int = 20) -> list[Sample]:
    """One look every ten seconds."""
    made = []
    for n in range(minutes * 6):
        rss = int((100 + rss_mb_a_minute * n / 6) * MB)
        made.append(Sample(n * 10.0, rss, rss // 2, int(20 + fds_a_minute * n / 6)))
    return made


def test_the_slope_of_a_line_is_its_slope() -> None:
    assert slope([(x, 3 * x + 1) for x in (0.0, 1.0, 5.0)]) == pytest.approx(3)
    assert slope([(0, 1), (1, 3), (2, 2)]) == pytest.approx(0.5)
    assert slope([]) == slope([(1, 5)]) == slope([(1, 5), (1, 6)]) == 0


def test_what_stays_is_flat() -> None:
    flat = growth(samples(), 300)
    assert flat.faults == ()
    assert flat.rss_slope_mb == pytest.approx(0)
    assert flat.samples == 90


@pytest.mark.parametrize(("rate", "good"), [(0.9, True), (1.1, False)])
def test_memory_may_grow_by_less_than_a_megabyte_a_minute(rate: float, good: bool) -> None:
    grown = growth(samples(rss_mb_a_minute=rate), 300)
    assert (grown.faults == ()) is good
    assert grown.rss_slope_mb == pytest.approx(rate, abs=0.01)
    assert grown.pss_slope_mb == pytest.approx(rate / 2, abs=0.01)


def test_file_descriptors_that_grow_are_found() -> None:
    assert growth(samples(fds_a_minute=0.3), 300).faults == ()
    assert len(growth(samples(fds_a_minute=2), 300).faults) == 2


def test_growth_while_warming_up_is_not_counted() -> None:
    warm = samples(rss_mb_a_minute=50, minutes=5) + [Sample(300.0 + n * 10, 350 * MB, 0, 20) for n in range(60)]
    assert growth(warm, 300).faults == ()


def test_too_few_samples_are_no_proof() -> None:
    assert growth(samples()[:2], 0).faults != ()
    assert growth([], 0).faults != ()
