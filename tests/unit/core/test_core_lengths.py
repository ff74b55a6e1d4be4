"""What is learnt of the lengths of outputs."""

import math
from itertools import pairwise
from random import Random
from statistics import mean

import pytest

from orchestrator.core.chances import p_within
from orchestrator.core.lengths import BUCKETS, FAMILIES_MAX, LOW, Lengths, LengthTable, bucket_of

MAX_TOKENS = 4096


def lognormal(seed: int, count: int, middle: float = 150.0, sigma: float = 0.8) -> list[int]:
    chance = Random(seed)
    return [max(1, round(chance.lognormvariate(math.log(middle), sigma))) for _ in range(count)]


def lengths_of(samples: list[int]) -> Lengths:
    lengths = Lengths()
    for sample in samples:
        lengths.add(sample)
    return lengths


def test_buckets_follow_on_each_other() -> None:
    assert len(LOW) == BUCKETS + 1
    assert all(low < high for low, high in pairwise(LOW))
    for length in [*range(1, 3_000), 2**20 - 1, 2**20]:
        bucket = bucket_of(length)
        assert LOW[bucket] < length <= LOW[bucket + 1]
        assert LOW[bucket + 1] - LOW[bucket] <= max(1, length // 4)
    assert bucket_of(2**20) == BUCKETS - 2
    assert bucket_of(2**20 + 1) == bucket_of(2**40) == BUCKETS - 1


@pytest.mark.req("ORCH-3081")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.2, 0.8, 1.2])
def test_lognormal_lengths_are_learnt(seed: int, sigma: float) -> None:
    samples = lognormal(seed, 3_000, sigma=sigma)
    lengths, fresh = lengths_of(samples), lognormal(seed + 100, 20_000, sigma=sigma)
    for max_tokens in (16, 100, 300, MAX_TOKENS):
        assert lengths.mean(max_tokens) == pytest.approx(mean(min(n, max_tokens) for n in fresh), rel=0.1)
    for limit in (20, 75, 150, 300, 700):
        share = sum(n <= limit for n in fresh) / len(fresh)
        assert lengths.p_at_most(limit, MAX_TOKENS) == pytest.approx(share, abs=0.05)
    longer = [n for n in fresh if n > 100]
    share = sum(n <= 200 for n in longer) / len(longer)
    assert lengths.p_at_most(200, MAX_TOKENS, above=100) == pytest.approx(share, abs=0.05)
    for q in (0.1, 0.5, 0.9):
        within = sum(n <= lengths.quantile(q, MAX_TOKENS) for n in fresh) / len(fresh)
        assert within == pytest.approx(q, abs=0.05)


@pytest.mark.req("ORCH-3081")
def test_recent_lengths_weigh_more() -> None:
    lengths = lengths_of([1_000] * 2_000 + [10] * 500)
    assert lengths.p_at_most(500, MAX_TOKENS) == pytest.approx(0.5, abs=0.06)
    assert lengths.weight == pytest.approx(721, abs=30)
    lengths = lengths_of([1_000] * 5_000 + [10] * 5_000)
    assert lengths.p_at_most(500, MAX_TOKENS) > 0.99


@pytest.mark.req("ORCH-3081")
def test_counts_are_scaled_back_before_they_overflow() -> None:
    lengths = lengths_of([100] * 60_000)
    assert lengths.mean(MAX_TOKENS) == pytest.approx(100.0)
    assert lengths.weight == pytest.approx(721, abs=2)


@pytest.mark.req("ORCH-3081")
@pytest.mark.parametrize("limit", [1, 5, 8, 9, 64, 100, 112, 128, 2**20])
def test_outputs_that_hit_their_limit_are_known_to_be_longer(limit: int) -> None:
    lengths = Lengths()
    for _ in range(100):
        lengths.add(limit, hit_limit=True)
    assert lengths.mean(limit) == pytest.approx(limit)
    assert lengths.quantile(0.1, limit) == limit
    assert lengths.p_at_most(limit, limit) == 1.0
    if limit > 1:
        assert lengths.p_at_most(limit - 1, limit) <= 0.02
    assert lengths.mean(2 * limit) <= 2 * limit


@pytest.mark.req("ORCH-3081")
def test_nothing_known_is_taken_as_uniform() -> None:
    lengths = Lengths()
    assert lengths.mean(100) == 100.0
    assert lengths.p_at_most(25, 100) == pytest.approx(0.25)
    assert lengths.p_at_most(75, 100, above=50) == pytest.approx(0.5)
    assert (lengths.quantile(0.1, 100), lengths.quantile(0.1, 1)) == (10, 1)


@pytest.mark.req("ORCH-3081")
def test_an_output_longer_than_any_before_may_end_anywhere() -> None:
    lengths = lengths_of([50] * 200)
    assert lengths.p_at_most(550, 1_000, above=100) == pytest.approx(0.5, abs=0.01)
    assert lengths.p_at_most(100, 1_000, above=100) == 0.0


@pytest.mark.req("ORCH-3081")
def test_families_are_bounded_and_the_least_recently_learnt_of_go() -> None:
    table = LengthTable()
    for n in range(FAMILIES_MAX):
        for _ in range(8):
            table.add(f"t{n}", "w", 10, hit_limit=False)
    for _ in range(8):
        table.add("t0", "w", 10, hit_limit=False)
        table.add("new", "w", 1_000, hit_limit=False)
    assert len(table) == FAMILIES_MAX
    assert table.of("t1", "w") is table.whole
    assert table.of("t0", "w") is not table.whole
    assert table.of("new", "w").mean(MAX_TOKENS) == pytest.approx(1_000.0)


@pytest.mark.req("ORCH-3081")
def test_a_limit_cuts_the_lengths_that_share_its_bucket() -> None:
    lengths = lengths_of([112] * 50)
    assert (lengths.mean(100), lengths.mean(112), lengths.mean(200)) == pytest.approx((100.0, 112.0, 112.0))


@pytest.mark.req("ORCH-3081")
def test_the_chance_of_evenly_spread_lengths_grows_evenly() -> None:
    lengths = lengths_of([n * 617 % 1_000 + 1 for n in range(3_000)])
    for share in (0.03, 0.1, 0.3, 0.5, 0.6, 0.9):
        assert p_within(lengths, share * 1_000, 1.0, MAX_TOKENS, 1.0) == pytest.approx(share, abs=0.025)
