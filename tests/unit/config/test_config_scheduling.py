"""The sections about scheduling: what one pool, key or session section must satisfy by itself."""

import pytest

from contracts.policies import BreakerPolicy, PreemptionPolicy
from tests.unit.config.config_kit import POOL, good, only, place, scheduled, warned

HASH = "ab" * 32


def in_pool(line: str) -> str:
    return f"{POOL}    {line}\n"


@pytest.mark.req("OC-CONFIG-6001", "ORCH-3075", "ORCH-3077")
@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("admission: {priorities: [{name: batch, weight: 0}]}", 52, "`weight` should be greater than or equal to 1"),
        (
            "admission: {priorities: [{name: batch, weight: 1000001}]}",
            52,
            "`weight` should be less than or equal to 1000000",
        ),
        (
            "admission: {priorities: [{name: batch, rate_limit_rps: 0}]}",
            60,
            "`rate_limit_rps` should be greater than or equal to 0.001",
        ),
        (
            "admission: {priorities: [{name: batch, slo_first_token_ms: -1}]}",
            64,
            "`slo_first_token_ms` should be greater than or equal to 0",
        ),
        ("admission: {priorities: [{name: bulk}]}", 37, "`name` must be 'interactive' or 'batch', not `bulk`"),
        ("admission: {fairness: {kind: fair}}", 34, "`kind` must be 'wfq', 'strict' or 'fifo', not `fair`"),
        ("admission: {fairness: {tenants: [{id: t, weight: -1}]}}", 54, "`weight` should be greater"),
        ("admission: {fairness: {tenants: [{id: t, max_concurrent: 0}]}}", 62, "`max_concurrent` should be greater"),
        ("admission: {fairness: {tenants: [{id: t, rps: 1e400}]}}", 51, "`rps` should be less than or equal"),
        ("admission: {fairness: {tenants: [{id: t, tokens_per_min: 0}]}}", 62, "`tokens_per_min` should be greater"),
        ("admission: {fairness: {tenants: [{id: t, kv_mb: 0}]}}", 53, "`kv_mb` should be greater"),
        ("admission: {fairness: {tenants: [{id: Team A}]}}", 43, "`id` should match pattern"),
        ("admission: {fairness: {tenants: [{weight: 1}]}}", 38, "`id` is missing"),
        ("admission: {fairness: {default: {id: t}}}", 38, "unknown field `id`"),
        ("admission: {fairness: {unknown_tenants: drop}}", 45, "`unknown_tenants` must be 'default' or 'refuse'"),
        ("admission: {ordering: sjf}", 27, "`ordering` must be 'edf' or 'fifo', not `sjf`"),
        ("admission: {eviction: random}", 27, "`eviction` must be 'eta' or 'lru', not `random`"),
        ("admission: {on_time_percent_min: 101}", 38, "`on_time_percent_min` should be less than or equal to 100"),
        ("admission: {on_time_percent_min: -1}", 38, "`on_time_percent_min` should be greater than or equal to 0"),
        ("admission: {on_time_percent_min: 0.5}", 38, "`on_time_percent_min` should be a valid integer"),
        ("admission: {breaker: {violations_percent: 0}}", 47, "`violations_percent` should be greater"),
        ("admission: {breaker: {violations_percent: 101}}", 47, "`violations_percent` should be less"),
        ("admission: {breaker: {probes: 0}}", 35, "`probes` should be greater"),
        ("canary_percent: 0", 21, "`canary_percent` should be greater than or equal to 1"),
        ("canary_percent: 101", 21, "`canary_percent` should be less than or equal to 100"),
        ("price: {prompt_per_1k: -0.1}", 28, "`prompt_per_1k` should be greater than or equal to 0"),
        ("zone: Zone 1", 11, "`zone` should match pattern"),
    ],
)
def test_numbers_out_of_range_are_told_in_their_place(line: str, column: int, message: str) -> None:
    problem = only(in_pool(line))
    assert place(problem) == (6, column)
    assert message in problem.message


@pytest.mark.req("ORCH-3021", "ORCH-3099")
@pytest.mark.parametrize(
    ("section", "column", "message"),
    [
        ("{ttl_ms: 600001}", 20, "`ttl_ms` should be less than or equal to 600000"),
        ("{ttl_ms: 0}", 20, "`ttl_ms` should be greater"),
        ("{turns_max: 0}", 23, "`turns_max` should be greater"),
        ("{sessions_max: 0}", 26, "`sessions_max` should be greater"),
        ("{budget: {tokens: 0}}", 29, "`tokens` should be greater"),
        ("{budget: {time_ms: -5}}", 30, "`time_ms` should be greater"),
        ("{budget: {cost: 0}}", 27, "`cost` should be greater"),
    ],
)
def test_sessions_are_short_and_budgets_are_something(section: str, column: int, message: str) -> None:
    problem = only(f"{POOL}sessions: {section}\n")
    assert place(problem) == (6, column)
    assert message in problem.message


@pytest.mark.req("ORCH-3086")
def test_hard_preemption_needs_an_engine_that_can_be_interrupted() -> None:
    problem = only(in_pool("preemption: {mode: hard, hard_requirements: {engine_capability: cancel}}"))
    assert place(problem) == (6, 69)
    assert problem.message == "`engine_capability` must be 'interruptible_decode', not `cancel`"


@pytest.mark.req("ORCH-3086")
def test_only_known_classes_can_be_protected() -> None:
    problem = only(in_pool("preemption: {mode: hard, hard_requirements: {protect_priorities: [batch, bath]}}"))
    assert place(problem) == (6, 78)
    assert problem.message == "`protect_priorities[1]` must be 'interactive' or 'batch', not `bath`"
    assert problem.hint == "did you mean `batch`?"


@pytest.mark.req("ORCH-3085", "ORCH-3086")
@pytest.mark.parametrize(
    ("preemption", "message"),
    [
        ("{per_task_max: 3}", "`per_task_max` means nothing with `mode: soft`"),
        ("{mode: off, per_task_max: 3}", "`per_task_max` means nothing with `mode: off`"),
        (
            "{hard_requirements: {max_preemptions_per_min: 3}}",
            "`max_preemptions_per_min` means nothing with `mode: soft`",
        ),
        (
            "{hard_requirements: {engine_capability: interruptible_decode}}",
            "`engine_capability` means nothing with `mode: soft`",
        ),
        (
            "{mode: hard, hard_requirements: {protect_priorities: [batch]}}",
            "every class below `interactive` is protected: preemption has nothing to take",
        ),
        (
            "{hard_requirements: {protect_priorities: [batch, interactive]}}",
            "every class below `interactive` is protected: preemption has nothing to take",
        ),
    ],
)
def test_preemption_that_is_set_and_does_nothing_is_told_of(preemption: str, message: str) -> None:
    assert message in warned(in_pool(f"preemption: {preemption}"))


@pytest.mark.req("ORCH-3085", "ORCH-3086")
def test_preemption_that_does_something_is_not_warned_of() -> None:
    for preemption in (
        "{mode: hard, per_task_max: 1, hard_requirements: {protect_priorities: [interactive]}}",
        "{mode: soft, hard_requirements: {protect_priorities: [interactive]}}",
        "{mode: off, hard_requirements: {protect_priorities: [batch]}}",
    ):
        told = warned(in_pool(f"preemption: {preemption}"))
        assert not any("preempt" in message or "means nothing" in message for message in told)


@pytest.mark.req("ORCH-3006")
@pytest.mark.parametrize(
    ("text", "position"),
    [
        (in_pool("admission: {fairness: {tenants: [{id: t, burst: 4}]}}"), (6, 53)),
        (in_pool("admission: {fairness: {default: {burst: 4}}}"), (6, 45)),
        (f"{POOL}auth: {{keys: [{{name: k, tenant: t, sha256: {HASH}, burst: 4}}]}}\n", (6, 117)),
    ],
)
def test_a_burst_without_a_rate_is_refused(text: str, position: tuple[int, int]) -> None:
    problem = only(text)
    assert place(problem) == position
    assert problem.message == "`burst` without `rps` bounds nothing"


@pytest.mark.req("ORCH-3006")
def test_the_rate_of_all_keys_needs_a_number() -> None:
    assert only(f"{POOL}auth: {{rate: {{burst: 4}}}}\n").message == "`rps` is missing"


@pytest.mark.req("ORCH-3099")
def test_a_budget_of_cost_without_prices_is_told_of() -> None:
    told = "no pool has a price, so a budget of cost is never used up"
    assert told in warned(f"{POOL}sessions: {{budget: {{cost: 2.5}}}}\n")
    assert told not in warned(f"{POOL}sessions: {{budget: {{tokens: 2}}}}\n")
    assert told not in warned(f"{POOL}    price: {{output_per_1k: 0.1}}\nsessions: {{budget: {{cost: 2.5}}}}\n")


@pytest.mark.req("ORCH-3077")
def test_callers_whose_tenant_is_refused_are_told_of() -> None:
    refusing = in_pool("admission: {fairness: {unknown_tenants: refuse, tenants: [{id: t}]}}")
    keys = f"auth: {{keys: [{{name: k, tenant: t, sha256: {HASH}}}, {{name: l, tenant: u, sha256: {'cd' * 32}}}]}}\n"
    refused = [
        warning for warning in good(refusing + keys).warnings if "unknown tenants are refused" in warning.message
    ]
    assert [(place(warning), "`u`" in warning.message) for warning in refused] == [((7, 129), True)]
    for text in (refusing, refusing + "auth: {enabled: false}\n"):
        assert any("tenant `default` is named in no pool" in message for message in warned(text))
    named = refusing.replace("id: t", "id: default")
    assert not any("named in no pool" in message for message in warned(named))


@pytest.mark.req("ORCH-3040", "ORCH-3085")
def test_sections_left_empty_mean_what_the_scheduler_takes_for_granted() -> None:
    """But for preemption: the scheduler alone preempts nothing, the service preempts softly."""
    (home,) = scheduled(in_pool("admission: {breaker: {}}")).sets
    assert home.breaker == BreakerPolicy()
    assert home.preemption == PreemptionPolicy(mode="soft")
