"""From pools to replica sets, from keys and tenants to rates and quotas, from sessions to budgets."""

import pytest

from contracts.policies import (
    BudgetPolicy,
    LeasePolicy,
    PoolPolicy,
    PreemptionPolicy,
    QueuePolicy,
    RatePolicy,
    RestartPolicy,
    ResultPolicy,
    ScalingPolicy,
    SessionPolicy,
    TenantPolicy,
)
from orchestrator.configfile import development_config
from orchestrator.sets import scheduler_config
from tests.unit.config.config_kit import POOL, pair, pool, scheduled

TEXT = """\
pools:
  - &first {id: a, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, queue: {capacity: 10}}
  - {id: b, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, ctx: 4096,
     queue: {capacity: 5, full_policy: shed-low-priority},
     timeouts: {wall_ms: 7, idle_ms: 3, first_token_ms: 4, queue_ms: 5}}
  - {id: c, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, queue: {capacity: 20},
     admission: {priorities: [{name: interactive, queue_capacity: 4}]}}
results: {ttl_ms: 1, tasks_max: 2, bytes_max: 3}
"""

SCHEDULING = """\
admission:
      ordering: fifo
      eviction: lru
      on_time_percent_min: 75
      breaker: {violations_percent: 20, window_ms: 2, samples_min: 3, open_ms: 4, probes: 5}
      fairness: {kind: strict}
      priorities:
        - {name: batch, queue_capacity: 6, weight: 3, rate_limit_rps: 0.5, slo_first_token_ms: 60000}
        - {name: interactive, weight: 5, slo_first_token_ms: 0}
    preemption:
      mode: hard
      per_task_max: 1
      hard_requirements: {max_preemptions_per_min: 4, protect_priorities: [interactive]}
    price: {prompt_per_1k: 0.25, output_per_1k: 1.000001}"""


KEY_RATES = {"a": "", "b": ", rps: 0.2", "c": ", rps: 7.5, burst: 2"}


@pytest.mark.req("ORCH-3007", "ORCH-3004", "ORCH-3005", "ORCH-3075", "ORCH-3041")
def test_like_pools_form_one_set_and_their_capacities_add_up() -> None:
    built = scheduled(TEXT)
    assert [s.set_id for s in built.sets] == [
        "llamacpp/smollm2-135m-instruct/-/2048/v1",
        "llamacpp/smollm2-135m-instruct/-/4096/v1",
    ]
    pair, single = built.sets
    assert pair.pool_ids == ("a", "c")
    assert pair.model_refs == ("smollm2-135m-instruct",)
    assert pair.capacity == 30
    assert pair.queues == (
        QueuePolicy("interactive", 14, "reject", weight=8, slo_first_token_ms=900),
        QueuePolicy("batch", 30, "drop-lru", weight=1),
    )
    assert {queue.full_policy for queue in single.queues} == {"shed-low-priority"}
    assert (single.ctx, single.wall_timeout_ms, single.idle_timeout_ms) == (4096, 7, 3)
    assert (single.first_token_timeout_ms, single.queue_timeout_ms) == (4, 5)
    assert built.results == ResultPolicy(ttl_ms=1, tasks_max=2, bytes_max=3)


@pytest.mark.req("ORCH-3075", "ORCH-3079", "ORCH-3080", "ORCH-3085")
def test_a_small_file_is_scheduled_fairly_by_deadline_and_preempts_softly() -> None:
    built = scheduler_config(development_config().config)
    (home,) = built.sets
    assert (home.fairness, home.ordering, home.eviction, home.on_time_percent_min) == ("wfq", "edf", "eta", 85)
    assert home.preemption == PreemptionPolicy(mode="soft", max_per_min=10, protect=(), per_task_max=2)
    assert (home.breaker, home.price_in_micros, home.price_out_micros) == (None, 0, 0)
    assert (built.tenants, built.default_tenant) == ((), TenantPolicy(""))
    assert (built.clients, built.default_client) == ({}, None)
    assert built.sessions == SessionPolicy(ttl_ms=600_000, turns_max=8, sessions_max=100_000, budget=BudgetPolicy())


@pytest.mark.req("ORCH-3075", "ORCH-3006", "ORCH-3040", "ORCH-3041", "ORCH-3086", "ORCH-3099")
def test_what_the_file_says_of_scheduling_is_what_the_scheduler_is_told() -> None:
    (home,) = scheduled(pair(SCHEDULING, SCHEDULING)).sets
    assert home.queues == (
        QueuePolicy("interactive", 512, "reject", weight=5, slo_first_token_ms=None),
        QueuePolicy("batch", 12, "drop-lru", weight=3, rate=RatePolicy(1.0, 1), slo_first_token_ms=60_000),
    )
    assert (home.fairness, home.ordering, home.eviction, home.on_time_percent_min) == ("strict", "fifo", "lru", 75)
    assert home.preemption == PreemptionPolicy("hard", max_per_min=4, protect=("interactive",), per_task_max=1)
    breaker = home.breaker
    assert breaker is not None
    assert (breaker.violations_percent, breaker.window_ms, breaker.samples_min) == (20, 2, 3)
    assert (breaker.open_ms, breaker.probes) == (4, 5)
    assert (home.price_in_micros, home.price_out_micros) == (250_000, 1_000_001)


@pytest.mark.req("ORCH-3011", "ORCH-3033")
def test_masks_and_canaries_stay_with_their_pools() -> None:
    gpus = pool("a", "devices: [0, 2]").replace("cpu-dev", "gpu")
    canary = pool("b", "devices: [1]", "canary_percent: 10").replace("cpu-dev", "gpu")
    (home,) = scheduled("pools:\n" + gpus + canary).sets
    told = [(each.pool_id, each.devices, each.canary_percent) for each in home.pools]
    assert told == [("a", ("0", "2"), None), ("b", ("1",), 10)]


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
def test_a_small_pool_keeps_its_number_and_what_the_scheduler_takes_for_granted() -> None:
    """The defaults of the file and of the scheduler are the same, so that neither has to say them."""
    built = scheduled(POOL + "    replicas: 3\n")
    ((pool,),) = [home.pools for home in built.sets]
    assert pool == PoolPolicy(
        "a",
        scaling=ScalingPolicy(3, 3, 3),
        model_ref="smollm2-135m-instruct",
        slots=4,
        accelerator="cpu-dev",
    )
    assert (built.lease, built.jitter_seed) == (LeasePolicy(), 0)


@pytest.mark.req("ORCH-3053", "ORCH-3031", "OC-POOL-3011")
def test_what_the_file_says_of_a_pool_is_what_the_scheduler_is_told() -> None:
    text = (
        POOL.replace("cpu-dev", "gpu")
        + """\
    devices: [1, 3]
    zone: hall-1
    slots: 6
    replicas: 2
    scaling: {min: 0, max: 5, target_wait_ms: 7, up_after_ms: 8, down_after_ms: 9}
    restart: {backoff_min_ms: 1, backoff_max_ms: 2, jitter_percent: 3, stable_after_ms: 4, breaker_failures: 5}
    drain_ms: 0
    reload_timeout_ms: 11
lease: {ttl_ms: 1000, lost_ms: 1001}
"""
    )
    built = scheduled(text)
    assert built.sets[0].pools == (
        PoolPolicy(
            "a",
            devices=("1", "3"),
            scaling=ScalingPolicy(0, 5, 2, target_wait_ms=7, up_after_ms=8, down_after_ms=9),
            restart=RestartPolicy(1, 2, 3, 4, 5),
            model_ref="smollm2-135m-instruct",
            slots=6,
            accelerator="gpu",
            zone="hall-1",
            drain_ms=0,
            reload_timeout_ms=11,
        ),
    )
    assert built.lease == LeasePolicy(ttl_ms=1000, lost_ms=1001)


@pytest.mark.parametrize(("scaling", "bounds"), [("{min: 1}", (1, 2)), ("{max: 4}", (2, 4)), ("{}", (2, 2))])
def test_a_bound_that_is_left_out_is_the_number_that_a_pool_starts_with(scaling: str, bounds: tuple[int, int]) -> None:
    ((pool,),) = [home.pools for home in scheduled(POOL + f"    replicas: 2\n    scaling: {scaling}\n").sets]
    assert pool.scaling is not None
    assert (pool.scaling.replicas_min, pool.scaling.replicas_max) == bounds


def test_a_pool_may_start_with_nothing() -> None:
    ((pool,),) = [home.pools for home in scheduled(POOL + "    replicas: 0\n    scaling: {max: 3}\n").sets]
    assert pool.scaling == ScalingPolicy(0, 3, 0)


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_tenants_are_merged_over_all_pools_and_inherit_nothing() -> None:
    first = "{id: u, weight: 3, max_concurrent: 4, rps: 2.5, tokens_per_min: 600, kv_mb: 512}"
    built = scheduled(
        pair(
            f"admission: {{fairness: {{tenants: [{first}], default: {{weight: 2, rps: 0.5}}}}}}",
            f"admission: {{fairness: {{tenants: [{{id: s, rps: 1, burst: 9}}, {first}]}}}}\n    ctx: 4096",
        )
    )
    assert built.tenants == (
        TenantPolicy("u", weight=3, max_concurrent=4, rate=RatePolicy(rps=2.5, burst=3), tokens_per_min=600, kv_mb=512),
        TenantPolicy("s", rate=RatePolicy(rps=1, burst=9)),
    )
    assert built.default_tenant == TenantPolicy("", weight=2, rate=RatePolicy(rps=0.5, burst=1))


@pytest.mark.req("ORCH-3077")
def test_tenants_that_no_pool_names_can_be_refused() -> None:
    refusing = pair("admission: {fairness: {tenants: [{id: t}]}}", "admission: {fairness: {unknown_tenants: refuse}}")
    assert scheduled(refusing).default_tenant is None
    assert scheduled(refusing.replace("refuse", "default")).default_tenant == TenantPolicy("")


@pytest.mark.req("ORCH-3006")
def test_keys_have_rates_of_their_own_or_that_of_all() -> None:
    keys = [f"{{name: {name}, tenant: t, sha256: {name * 64}{rate}}}" for name, rate in KEY_RATES.items()]
    built = scheduled(f"{POOL}auth: {{rate: {{rps: 20, burst: 30}}, keys: [{', '.join(keys)}]}}\n")
    assert built.clients == {"b": RatePolicy(rps=0.2, burst=1), "c": RatePolicy(rps=7.5, burst=2)}
    assert built.default_client == RatePolicy(rps=20, burst=30)


@pytest.mark.req("ORCH-3021", "ORCH-3099")
def test_sessions_and_their_budgets() -> None:
    text = "sessions: {ttl_ms: 5, turns_max: 3, sessions_max: 2, budget: {tokens: 7, time_ms: 8, cost: 0.000001}}\n"
    assert scheduled(POOL + text).sessions == SessionPolicy(
        ttl_ms=5, turns_max=3, sessions_max=2, budget=BudgetPolicy(tokens=7, time_ms=8, cost_micros=1)
    )
