"""What pools must agree in: those of one replica set in how it behaves, all of them in the tenants."""

import pytest

from contracts.policies import RatePolicy
from tests.unit.config.config_kit import good, only, pair, place, pool, problems, scheduled


@pytest.mark.req("ORCH-3075", "ORCH-3079", "ORCH-3080", "ORCH-3085", "ORCH-3040", "ORCH-3041", "ORCH-3099")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("admission: {fairness: {kind: fifo}}", "slots: 4", "admission.fairness.kind (fifo and wfq)"),
        ("admission: {ordering: fifo}", "slots: 4", "admission.ordering (fifo and edf)"),
        ("slots: 4", "admission: {eviction: lru}", "admission.eviction (eta and lru)"),
        ("slots: 4", "admission: {on_time_percent_min: 0}", "admission.on_time_percent_min (85 and 0)"),
        (
            "admission: {breaker: {probes: 1}}",
            "slots: 4",
            "admission.breaker (violations_percent 50, window_ms 30000, samples_min 20, open_ms 10000, probes 1"
            " and not set)",
        ),
        ("preemption: {mode: off}", "preemption: {mode: hard}", "preemption.mode (off and hard)"),
        ("preemption: {per_task_max: 9}", "slots: 4", "preemption.per_task_max (9 and 2)"),
        (
            "preemption: {hard_requirements: {max_preemptions_per_min: 1}}",
            "slots: 4",
            "preemption.hard_requirements.max_preemptions_per_min (1 and 10)",
        ),
        (
            "preemption: {hard_requirements: {protect_priorities: [batch]}}",
            "slots: 4",
            "preemption.hard_requirements.protect_priorities ([batch] and [])",
        ),
        ("price: {prompt_per_1k: 0.5}", "slots: 4", "price.prompt_per_1k (0.5 and 0.0)"),
        ("slots: 4", "price: {output_per_1k: 2}", "price.output_per_1k (0.0 and 2.0)"),
        ("slots: 4", "admission: {priorities: [{name: batch, weight: 2}]}", "weight of batch (1 and 2)"),
        (
            "admission: {priorities: [{name: interactive, slo_first_token_ms: 500}]}",
            "slots: 4",
            "slo_first_token_ms of interactive (500 and 900)",
        ),
    ],
)
def test_pools_of_one_set_must_agree_and_both_are_named(first: str, second: str, told: str) -> None:
    problem = only(pair(first, second))
    assert problem.message == f"pools `a` and `b` form one replica set but differ in {told}"
    assert problem.line >= 7
    good(pair(first, f"{second}\n    quant: q8_0"))


@pytest.mark.req("ORCH-3075", "ORCH-3041")
def test_saying_the_default_is_no_difference() -> None:
    default = """\
admission:
      ordering: edf
      eviction: eta
      on_time_percent_min: 85
      fairness: {kind: wfq}
      priorities:
        - {name: interactive, weight: 8, slo_first_token_ms: 900}
        - {name: batch, weight: 1, slo_first_token_ms: 0}
    preemption: {mode: soft}
    price: {prompt_per_1k: 0, output_per_1k: 0}"""
    good(pair(default, "slots: 4"))


@pytest.mark.req("ORCH-3006")
def test_the_rates_of_a_sets_pools_add_up_so_all_of_them_are_given() -> None:
    limited = "admission: {priorities: [{name: batch, rate_limit_rps: 2.5}]}"
    (home,) = scheduled(pair(limited, limited)).sets
    assert [queue.rate for queue in home.queues] == [None, RatePolicy(rps=5.0, burst=5)]
    for text in (pair(limited, "slots: 4"), pair("slots: 4", limited)):
        problem = only(text)
        assert "form one replica set but only" in problem.message
        assert problem.message.endswith("bounds rate_limit_rps of batch")


@pytest.mark.req("ORCH-3033")
def test_canaries_leave_something_to_the_others() -> None:
    three = "pools:\n" + pool("a") + pool("b", "canary_percent: 60") + pool("c", "canary_percent: {}")
    assert [p.canary_percent for p in scheduled(three.format(40)).sets[0].pools] == [None, 60, 40]
    problem = only(three.format(41))
    assert problem.message == "the canaries of one replica set take 101 percent of its sessions (`b` 60, `c` 41)"
    assert place(problem) == (15, 21)


@pytest.mark.req("ORCH-3033")
def test_not_all_pools_of_a_set_are_canaries() -> None:
    assert only(pair("canary_percent: 5", "canary_percent: 5")).message == (
        "all pools of one replica set are canaries (`a`, `b`)"
    )
    alone = only(pair("slots: 4", "canary_percent: 5\n    quant: q8_0"))
    assert alone.message == "all pools of one replica set are canaries (`b`)"
    assert "shares engine, model, quant, ctx and sampler profile" in alone.hint


def tenants(entries: str) -> str:
    return f"admission: {{fairness: {{tenants: [{entries}]}}}}"


@pytest.mark.req("ORCH-3036", "ORCH-3077")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("weight: 3", "weight: 4", "weight 3 in pool `a` and 4 in pool `b`"),
        ("weight: 3", "max_concurrent: 4, weight: 3", "max_concurrent not set in pool `a` and 4 in pool `b`"),
        ("rps: 5", "rps: 5.5", "rps 5.0 in pool `a` and 5.5 in pool `b`"),
        ("rps: 5, burst: 7", "rps: 5, burst: 8", "burst 7 in pool `a` and 8 in pool `b`"),
        ("tokens_per_min: 9", "weight: 1", "tokens_per_min 9 in pool `a` and not set in pool `b`"),
        ("kv_mb: 9", "kv_mb: 8", "kv_mb 9 in pool `a` and 8 in pool `b`"),
    ],
)
def test_pools_that_name_a_tenant_say_the_same_of_it(first: str, second: str, told: str) -> None:
    """Whether or not they are of one set: quotas hold over all pools."""
    ctx = "\n    ctx: 4096"
    problem = only(pair(tenants(f"{{id: t, {first}}}"), tenants(f"{{id: u}}, {{id: t, {second}}}") + ctx))
    assert problem.message == f"tenant `t` has {told}"
    assert problem.line == 11
    good(pair(tenants(f"{{id: t, {first}}}"), tenants(f"{{id: t, {first}}}") + ctx))


@pytest.mark.req("ORCH-3077")
def test_a_tenant_stands_once_in_a_pool() -> None:
    problem = only("pools:\n" + pool("a", tenants("{id: t}, {id: u}, {id: t}")))
    assert problem.message == "tenant `t` is given twice in pool `a`"
    assert place(problem) == (6, 61)


@pytest.mark.req("ORCH-3077")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("unknown_tenants: default", "unknown_tenants: refuse", "unknown_tenants (default and refuse)"),
        (
            "default: {weight: 2}",
            "default: {weight: 2, rps: 4}",
            "default (weight 2 and weight 2, rps 4.0)",
        ),
    ],
)
def test_there_is_one_answer_to_unknown_tenants(first: str, second: str, told: str) -> None:
    text = pair(
        f"admission: {{fairness: {{tenants: [{{id: t}}], {first}}}}}",
        f"admission: {{fairness: {{{second}}}}}\n    ctx: 4096",
    )
    assert only(text).message == f"pools `a` and `b` differ in {told}"
    good(text.replace(second, first))


@pytest.mark.req("ORCH-3077")
def test_refused_tenants_have_no_numbers() -> None:
    text = pair(
        "admission: {fairness: {unknown_tenants: refuse, tenants: [{id: t}]}}",
        "admission: {fairness: {default: {weight: 2}}}",
    )
    problem = only(text)
    assert problem.message == "`default` is for unknown tenants, and these are refused"
    assert place(problem) == (11, 37)


@pytest.mark.req("ORCH-3077")
def test_refusing_everyone_is_refused() -> None:
    problem = only("pools:\n" + pool("a", "admission: {fairness: {unknown_tenants: refuse}}"))
    assert "every task would be refused" in problem.message
    assert place(problem) == (6, 45)


@pytest.mark.req("OC-CONFIG-6001")
def test_contradictions_are_found_beside_other_problems() -> None:
    text = pair(tenants("{id: t, weight: 2}, {id: s, burst: 2}"), tenants("{id: t}") + "\n    replcas: 1")
    assert [problem.message for problem in problems(text)] == [
        "`burst` without `rps` bounds nothing",
        "tenant `t` has weight 2 in pool `a` and 1 in pool `b`",
        "unknown field `replcas`",
    ]
