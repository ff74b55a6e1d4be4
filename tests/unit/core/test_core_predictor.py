"""What the predictor learns: times, sizes, outputs, and what chance that gives a deadline."""

import math
from random import Random

import pytest

from orchestrator.core.predictor import HINTERS_MAX, JITTER_NS, LOAD_NS_GUESS, TOKEN_NS_GUESS, Predictor

MS = 1_000_000
DECODE_NS = 20 * MS
MAX_TOKENS = 4096


def lognormal(seed: int, count: int, middle: float = 150.0, sigma: float = 0.8) -> list[int]:
    chance = Random(seed)
    return [max(1, round(chance.lognormvariate(math.log(middle), sigma))) for _ in range(count)]


def serve(
    predictor: Predictor,
    tokens_out: int = 100,
    tokens_in: int = 50,
    tenant: str = "a",
    workload: str = "completion",
    max_tokens: int = MAX_TOKENS,
    tokens_cached: int = 0,
    hint: int | None = None,
) -> None:
    """One served task: 1 ms a prompt token, 5 ms to begin with, 20 ms an output token, 4.5 bytes a token."""
    first_ns = 5 * MS + (tokens_in - tokens_cached) * MS
    decode_ns = (tokens_out - 1) * DECODE_NS
    predictor.served(
        tenant,
        workload,
        prompt_bytes=tokens_in * 9 // 2,
        tokens_in=tokens_in,
        tokens_cached=tokens_cached,
        tokens_out=tokens_out,
        max_tokens=max_tokens,
        first_token_ns=first_ns,
        decode_ns=decode_ns,
        slot_ns=first_ns + decode_ns,
        hit_limit=tokens_out == max_tokens,
        hint=hint,
    )


# ------------------------------------------------------------------------ times and sizes


@pytest.mark.req("ORCH-3029")
def test_it_moves_from_guess_over_self_test_to_measurement() -> None:
    predictor = Predictor()
    assert (predictor.decode_ns, predictor.cost_ns) == (TOKEN_NS_GUESS, TOKEN_NS_GUESS)
    predictor.self_tested(7 * MS)
    predictor.self_tested(0)
    assert (predictor.decode_ns, predictor.cost_ns) == (7 * MS, 7 * MS)
    assert predictor.prefill_ns(160) == 77 * MS
    assert predictor.service_ns(160, 11) == 147 * MS
    serve(predictor, tokens_out=100, tokens_in=50)
    assert predictor.decode_ns == DECODE_NS
    assert predictor.prefill_ns(50) == 55 * MS
    assert predictor.service_ns(50, 100) == 55 * MS + 99 * DECODE_NS
    assert predictor.cost_ns == (55 * MS + 99 * DECODE_NS) / 150
    assert predictor.mean_cost == 150.0
    predictor.self_tested(1)
    assert predictor.decode_ns == DECODE_NS


@pytest.mark.req("ORCH-3029")
def test_load_time_moves_by_an_eighth() -> None:
    predictor = Predictor()
    assert predictor.load_ns == LOAD_NS_GUESS
    predictor.loaded(8_000)
    assert predictor.load_ns == 8_000
    predictor.loaded(16_000)
    assert predictor.load_ns == 9_000


@pytest.mark.req("ORCH-3029")
def test_prefill_time_is_told_apart_from_what_every_task_takes() -> None:
    predictor = Predictor()
    chance = Random(3)
    for _ in range(300):
        serve(predictor, tokens_in=chance.randrange(10, 2_000))
    assert predictor.prefill_ns(1_000) == pytest.approx(1_005 * MS, rel=0.05)
    assert predictor.prefill_ns(4_000) == pytest.approx(4_005 * MS, rel=0.20)


@pytest.mark.req("ORCH-3029")
def test_cached_prompt_tokens_do_not_make_prefill_look_cheap() -> None:
    predictor = Predictor()
    for _ in range(50):
        serve(predictor, tokens_in=1_000, tokens_cached=900)
    assert predictor.prefill_ns(100) == pytest.approx(105 * MS, rel=0.01)
    assert predictor.prefill_ns(200) == pytest.approx(210 * MS, rel=0.01)
    serve(predictor, tokens_in=10, tokens_cached=20)
    assert predictor.prefill_ns(100) > 0


@pytest.mark.req("ORCH-3029")
def test_changed_speed_is_learnt_within_some_hundred_tasks() -> None:
    predictor = Predictor()
    for _ in range(500):
        predictor.served("a", "w", 100, 25, 0, 101, 500, MS, 100 * MS, 101 * MS, hit_limit=False)
    for _ in range(200):
        predictor.served("a", "w", 100, 25, 0, 101, 500, MS, 300 * MS, 301 * MS, hit_limit=False)
    assert predictor.decode_ns == pytest.approx(3 * MS, rel=0.1)


@pytest.mark.req("ORCH-3029")
def test_bytes_per_token_are_learnt() -> None:
    predictor = Predictor()
    assert predictor.prompt_tokens(400) == 100
    assert predictor.prompt_tokens(0) == 1
    for n in range(200):
        serve(predictor, tokens_in=100, tokens_out=50 if n % 2 else 150)
    assert predictor.prompt_tokens(900) == 200


# ------------------------------------------------------------------------ outputs of tasks


@pytest.mark.req("ORCH-3029")
def test_expected_output_is_the_hint_or_the_familys_or_the_sets_or_the_most() -> None:
    predictor = Predictor()
    assert predictor.expected_output("a", "completion", 50, None) == 50
    assert predictor.expected_output("a", "completion", 50, 20) == 20
    assert predictor.expected_output("a", "completion", 50, 80) == 50
    for _ in range(7):
        serve(predictor, tokens_out=100, tenant="a")
    for _ in range(21):
        serve(predictor, tokens_out=20, tenant="b")
    assert predictor.expected_output("a", "completion", MAX_TOKENS, None) == 40
    for _ in range(2):
        serve(predictor, tokens_out=100, tenant="a")
    assert predictor.expected_output("a", "completion", MAX_TOKENS, None) == 100
    assert predictor.expected_output("a", "completion", 30, None) == 30
    assert predictor.expected_output("b", "completion", MAX_TOKENS, None) == 20
    assert predictor.expected_output("b", "chat", MAX_TOKENS, None) == pytest.approx(44, abs=2)


@pytest.mark.req("ORCH-3029")
@pytest.mark.parametrize(("tokens_out", "expected"), [(200, 200), (100, 100), (50, 50), (1_000, 400), (5, 25)], ids=str)
def test_wrong_hints_are_corrected_within_bounds(tokens_out: int, expected: int) -> None:
    predictor = Predictor()
    for _ in range(300):
        serve(predictor, tokens_out=tokens_out, hint=100, tenant="liar")
    assert predictor.expected_output("liar", "completion", MAX_TOKENS, 100) == pytest.approx(expected, rel=0.07)
    assert predictor.expected_output("honest", "completion", MAX_TOKENS, 100) == 100


@pytest.mark.req("ORCH-3029")
def test_one_wrong_hint_says_little_and_a_limit_excuses_a_hint() -> None:
    predictor = Predictor()
    serve(predictor, tokens_out=200, hint=100)
    assert predictor.expected_output("a", "completion", MAX_TOKENS, 100) == 120
    for _ in range(100):
        serve(predictor, tokens_out=50, max_tokens=50, hint=100, tenant="capped")
    assert predictor.expected_output("capped", "completion", MAX_TOKENS, 100) == 100


@pytest.mark.req("ORCH-3029")
def test_what_is_kept_of_hints_is_bounded() -> None:
    predictor = Predictor()
    for n in (*range(HINTERS_MAX), 0, HINTERS_MAX):
        for _ in range(5):
            serve(predictor, tokens_out=200, hint=100, tenant=f"t{n}")
    assert predictor.expected_output("t1", "completion", MAX_TOKENS, 100) == 100
    assert predictor.expected_output("t0", "completion", MAX_TOKENS, 100) > 140


@pytest.mark.req("ORCH-3081")
def test_outputs_by_and_low_output_are_the_familys() -> None:
    predictor = Predictor()
    for tokens_out in lognormal(5, 1_000):
        serve(predictor, tokens_out=tokens_out)
    fresh = lognormal(6, 10_000)
    assert predictor.outputs_by("a", "completion", MAX_TOKENS, 150) == pytest.approx(0.5, abs=0.05)
    share = sum(150 < n <= 300 for n in fresh) / sum(n > 150 for n in fresh)
    assert predictor.outputs_by("a", "completion", MAX_TOKENS, 300, 150) == pytest.approx(share, abs=0.06)
    low = predictor.low_output("a", "completion", MAX_TOKENS)
    assert sum(n < low for n in fresh) / len(fresh) == pytest.approx(0.1, abs=0.05)


# ------------------------------------------------------------------------ chances


@pytest.mark.req("ORCH-3079", "ORCH-3081")
@pytest.mark.parametrize("wait_ms", [0, 500, 5_000])
@pytest.mark.parametrize("max_tokens", [64, 200, MAX_TOKENS])
def test_the_chance_to_be_on_time_is_that_of_many_trials(wait_ms: int, max_tokens: int) -> None:
    predictor = Predictor()
    for tokens_out in lognormal(7, 2_000):
        serve(predictor, tokens_out=tokens_out)
    chance, spread, prefill_ns = Random(8), 0.3, 50 * MS
    deviation_ns = spread * wait_ms * MS + JITTER_NS
    trials = sorted(
        chance.gauss(wait_ms * MS, deviation_ns) + prefill_ns + (min(n, max_tokens) - 1) * DECODE_NS
        for n in lognormal(9, 10_000)
    )
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        slack_ns = int(trials[int(share * len(trials))])
        told = predictor.on_time("a", "completion", max_tokens, None, slack_ns, wait_ms * MS, spread, prefill_ns)
        happened = sum(trial <= slack_ns for trial in trials) / len(trials)
        assert told == pytest.approx(happened, abs=0.06)


@pytest.mark.req("ORCH-3079")
def test_certain_and_impossible_are_told_as_such() -> None:
    predictor = Predictor()
    assert predictor.on_time("a", "w", 100, None, 10_000 * MS, 0, 0.5, 100 * MS) == 1.0
    assert predictor.on_time("a", "w", 100, None, 50 * MS, 0, 0.5, 200 * MS) == 0.0
    assert predictor.on_time("a", "w", 100, None, 0, 0, 0.5, 0) == 0.0
    assert predictor.on_time("a", "w", 100, None, -5, 0, 0.5, 0) == 0.0


@pytest.mark.req("ORCH-3079")
def test_without_experience_the_output_may_have_any_length() -> None:
    predictor = Predictor()
    worst_ns = 999 * TOKEN_NS_GUESS
    for share in (0.25, 0.5, 0.75):
        told = predictor.on_time("a", "w", 1_000, None, int(share * worst_ns), 0, 0.5, 0)
        assert told == pytest.approx(share, abs=0.07)
    told = predictor.on_time("a", "w", 1_000, None, worst_ns + int(2 * JITTER_NS), 0, 0.5, 0)
    assert told == pytest.approx(0.977, abs=0.002)


@pytest.mark.req("ORCH-3079")
def test_a_hint_counts_as_much_as_hints_came_true() -> None:
    def told(predictor: Predictor, tenant: str) -> float:
        return predictor.on_time(tenant, "completion", MAX_TOKENS, 100, 110 * DECODE_NS, 0, 0.0, 0)

    predictor = Predictor()
    unknown = told(predictor, "new")
    for _ in range(200):
        serve(predictor, tokens_out=100, hint=100, tenant="exact")
        serve(predictor, tokens_out=300, hint=100, tenant="low")
    assert 0.5 < unknown < 0.7
    assert told(predictor, "exact") > 0.95
    assert told(predictor, "low") < 0.05


@pytest.mark.req("ORCH-3079")
def test_a_hint_of_more_than_allowed_does_not_make_a_task_late() -> None:
    slack_ns = 99 * TOKEN_NS_GUESS + int(2 * JITTER_NS)
    assert Predictor().on_time("a", "w", 100, 1_000, slack_ns, 0, 0.0, 0) == pytest.approx(0.977, abs=0.002)
