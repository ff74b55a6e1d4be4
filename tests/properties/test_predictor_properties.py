"""Whatever the predictor is taught: bounded answers that move the right way, and reads that change nothing."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.averages import Ratio
from orchestrator.core.calibration import Calibration
from orchestrator.core.lengths import Lengths
from orchestrator.core.predictor import Predictor

HUGE = 2**62
TENANTS = ("a", "b")

sizes = st.one_of(st.integers(0, 3), st.integers(0, 5_000), st.integers(0, HUGE))
limits = st.one_of(st.integers(1, 10), st.integers(1, 5_000), st.integers(1, 2**22))
outputs = st.lists(st.tuples(st.one_of(st.integers(1, 12), st.integers(1, 3_000), limits), st.booleans()), max_size=80)
served = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "workload": st.just("completion"),
        "prompt_bytes": sizes,
        "tokens_in": sizes,
        "tokens_cached": sizes,
        "tokens_out": sizes,
        "max_tokens": limits,
        "first_token_ns": sizes,
        "decode_ns": sizes,
        "slot_ns": sizes,
        "hit_limit": st.booleans(),
        "hint": st.none() | sizes,
    }
)
lessons = st.lists(served, max_size=25)


def taught(samples: list[dict[str, Any]]) -> Predictor:
    predictor = Predictor()
    for sample in samples:
        predictor.served(**sample)
    return predictor


def answers(predictor: Predictor, tenant: str, max_tokens: int, hint: int | None) -> list[float]:
    expected = predictor.expected_output(tenant, "completion", max_tokens, hint)
    return [
        expected,
        predictor.low_output(tenant, "completion", max_tokens),
        predictor.outputs_by(tenant, "completion", max_tokens, expected // 2, expected // 4),
        predictor.service_ns(100, expected),
        predictor.prompt_tokens(1_000),
        predictor.decode_ns,
        predictor.cost_ns,
        predictor.mean_cost,
        predictor.on_time(tenant, "completion", max_tokens, hint, 10**10, 10**9, 0.5, 10**8),
    ]


def learnt(samples: list[tuple[int, bool]]) -> Lengths:
    lengths = Lengths()
    for length, hit_limit in samples:
        lengths.add(length, hit_limit)
    return lengths


@pytest.mark.req("ORCH-3029")
@given(lessons, st.sampled_from((*TENANTS, "stranger")), limits, st.none() | sizes)
def test_answers_stay_within_bounds_whatever_was_served(
    samples: list[dict[str, Any]], tenant: str, max_tokens: int, hint: int | None
) -> None:
    predictor = taught(samples)
    assert 1 <= predictor.expected_output(tenant, "completion", max_tokens, hint) <= max_tokens
    assert 1 <= predictor.low_output(tenant, "completion", max_tokens) <= max_tokens
    assert predictor.prompt_tokens(0) >= 1
    assert predictor.service_ns(1, 1) >= 1
    assert predictor.prefill_ns(1) >= 0
    assert predictor.decode_ns >= 1
    assert predictor.cost_ns >= 1
    assert predictor.mean_cost >= 1
    for answer in answers(predictor, tenant, max_tokens, hint):
        assert answer == answer
        assert answer < float("inf")


@pytest.mark.req("ORCH-3029")
@given(lessons, limits, st.none() | sizes)
def test_reading_changes_no_later_answer(samples: list[dict[str, Any]], max_tokens: int, hint: int | None) -> None:
    read = Predictor()
    for sample in samples:
        read.served(**sample)
        for tenant in TENANTS:
            answers(read, tenant, max_tokens, hint)
    unread = taught(samples)
    for tenant in TENANTS:
        assert answers(read, tenant, max_tokens, hint) == answers(unread, tenant, max_tokens, hint)


@pytest.mark.req("ORCH-3081")
@settings(max_examples=20)
@given(st.integers(30, 200), st.integers(1, 40))
def test_reading_lengths_changes_no_later_answer(count: int, every: int) -> None:
    read, unread = Lengths(), Lengths()
    for n in range(count):
        read.add(1 + n * 37 % 500)
        unread.add(1 + n * 37 % 500)
        if n % every == 0:
            read.mean(100)
            read.edges()
    assert (read.mean(400), read.edges(), read.quantile(0.3, 400)) == (
        unread.mean(400),
        unread.edges(),
        unread.quantile(0.3, 400),
    )


@pytest.mark.req("ORCH-3079", "ORCH-3081")
@given(
    lessons,
    limits,
    st.none() | sizes,
    st.lists(st.integers(-10, 10**12), min_size=2, max_size=20),
    st.integers(0, 10**11),
    st.floats(0.0, 8.0),
)
def test_more_slack_is_never_a_smaller_chance(
    samples: list[dict[str, Any]], max_tokens: int, hint: int | None, slacks: list[int], wait_ns: int, spread: float
) -> None:
    predictor = taught(samples)
    told = [
        predictor.on_time("a", "completion", max_tokens, hint, slack_ns, wait_ns, spread, 10**8)
        for slack_ns in sorted(slacks)
    ]
    assert told == sorted(told)
    assert all(0.0 <= chance <= 1.0 for chance in told)


@pytest.mark.req("ORCH-3081")
@given(outputs, limits, st.lists(limits, min_size=2, max_size=20), st.integers(0, 4_000))
def test_a_bigger_limit_is_never_a_smaller_chance(
    samples: list[tuple[int, bool]], max_tokens: int, asked: list[int], above: int
) -> None:
    lengths = learnt(samples)
    told = [lengths.p_at_most(limit, max_tokens, above) for limit in sorted(asked)]
    assert all(before <= after + 1e-12 for before, after in pairwise(told))
    assert all(0.0 <= chance <= 1.0 for chance in told)


@pytest.mark.req("ORCH-3081")
@given(outputs, st.lists(limits, min_size=2, max_size=10))
def test_means_and_quantiles_grow_with_what_is_allowed(samples: list[tuple[int, bool]], asked: list[int]) -> None:
    lengths = learnt(samples)
    asked.sort()
    means = [lengths.mean(max_tokens) for max_tokens in asked]
    assert all(before <= after * (1 + 1e-9) for before, after in pairwise(means))
    assert all(0.0 < found <= most * (1 + 1e-9) for found, most in zip(means, asked, strict=True))
    lows = [lengths.quantile(0.1, max_tokens) for max_tokens in asked]
    assert lows == sorted(lows)
    parts = [lengths.quantile(n / 10, asked[-1]) for n in range(11)]
    assert parts == sorted(parts)


@pytest.mark.req("ORCH-3081")
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=200), st.lists(st.floats(0.0, 1.0)))
def test_corrected_chances_keep_their_order(stream: list[tuple[float, bool]], asked: list[float]) -> None:
    calibration = Calibration()
    for told, happened in stream:
        calibration.observe(told, happened)
    corrected = [calibration.corrected(told) for told in sorted(asked)]
    assert all(before <= after + 1e-12 for before, after in pairwise(corrected))
    assert all(0.0 <= chance <= 1.0 for chance in corrected)


@pytest.mark.req("ORCH-3081")
@given(st.lists(st.tuples(sizes, sizes), max_size=100))
def test_a_ratio_stays_within_what_one_sample_may_say(samples: list[tuple[int, int]]) -> None:
    ratio = Ratio()
    for predicted, actual in samples:
        ratio.learn(predicted, actual)
    assert ratio.factor() * (1 + 1e-9) >= 1 / 8
    assert ratio.factor() <= 8 * (1 + 1e-9)
    assert 0.0 <= ratio.spread() < 100.0
