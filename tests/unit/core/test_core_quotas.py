"""Rates of clients, rates and quotas of tenants, and how many of them are remembered."""

import pytest

from contracts.policies import RatePolicy, ResultPolicy, SchedulerConfig, TenantPolicy
from orchestrator.core.quotas import BYTES_PER_MB, ENTRIES_MAX, NS_PER_MIN, NS_PER_S, Gcra, Quotas, TenantQuota

DAY_NS = 86_400 * NS_PER_S


def quotas(
    *tenants: TenantPolicy,
    default: TenantPolicy | None = None,
    clients: dict[str, RatePolicy] | None = None,
    default_client: RatePolicy | None = None,
) -> Quotas:
    results = ResultPolicy(ttl_ms=1, tasks_max=1, bytes_max=1)
    return Quotas(SchedulerConfig((), results, tenants, default, clients or {}, default_client))


def tenant(policy: TenantPolicy) -> TenantQuota:
    return TenantQuota(policy.tenant, policy)


@pytest.mark.req("ORCH-3006")
def test_a_burst_passes_at_once_and_then_one_per_interval() -> None:
    bucket = Gcra(interval_ns=100, burst=3)
    for _ in range(3):
        assert bucket.wait_ns(1000) == 0
        bucket.take(1000)
    assert bucket.wait_ns(1000) == 100
    assert bucket.wait_ns(1099) == 1
    bucket.take(1100)
    assert bucket.wait_ns(1100) == 100
    assert bucket.wait_ns(1100, 2) == 200
    assert bucket.wait_ns(1100 + DAY_NS, 3) == 0


@pytest.mark.req("ORCH-3006")
def test_idle_time_saves_up_no_more_than_the_burst() -> None:
    bucket = Gcra(interval_ns=100, burst=2)
    bucket.take(0)
    bucket.take(DAY_NS, 2)
    assert bucket.wait_ns(DAY_NS) == 100


@pytest.mark.req("ORCH-3006", "ORCH-3077")
def test_more_than_the_burst_waits_for_a_full_bucket_and_is_owed_whole() -> None:
    bucket = Gcra(interval_ns=100, burst=4)
    assert bucket.wait_ns(0, 10) == 0
    bucket.take(0, 1)
    assert bucket.wait_ns(0, 10) == 100
    bucket.take(100, 10)
    assert bucket.wait_ns(100, 1) == 700
    assert bucket.wait_ns(100, 10) == 1000


def test_what_is_given_back_may_be_taken_again_but_overfills_nothing() -> None:
    bucket = Gcra(interval_ns=100, burst=4)
    bucket.take(0, 4)
    bucket.give_back(0, 3)
    assert bucket.wait_ns(0, 3) == 0
    assert bucket.wait_ns(0, 4) == 100
    bucket.give_back(0, 50)
    bucket.take(0, 4)
    assert bucket.wait_ns(0) == 100
    bucket.give_back(DAY_NS, 50)
    bucket.take(DAY_NS, 4)
    assert bucket.wait_ns(DAY_NS) == 100


@pytest.mark.parametrize(
    ("rps", "interval_ns"), [(50.0, 20_000_000), (3.0, 333_333_334), (0.1, 10 * NS_PER_S), (1e12, 1)]
)
def test_intervals_are_rounded_up_so_that_a_rate_is_never_exceeded(rps: float, interval_ns: int) -> None:
    assert Gcra.from_rate(RatePolicy(rps, 1)).interval_ns == interval_ns


@pytest.mark.req("ORCH-3077")
def test_tokens_per_minute_hold_a_whole_minutes_tokens() -> None:
    bucket = Gcra.per_minute(600)
    bucket.take(0, 600)
    assert bucket.wait_ns(0, 1) == NS_PER_MIN // 600
    assert bucket.wait_ns(0, 600) == NS_PER_MIN
    assert Gcra.per_minute(7).interval_ns * 7 >= NS_PER_MIN


@pytest.mark.req("ORCH-3077")
def test_a_tenant_is_told_which_bound_it_meets_and_for_how_long() -> None:
    acme = tenant(TenantPolicy("acme", rate=RatePolicy(50, 1), tokens_per_min=600))
    assert acme.wait_ns(0, 100) == (0, "")
    acme.admit(0, 500)
    assert acme.wait_ns(0, 1) == (20_000_000, "50 requests/s of tenant acme")
    assert acme.wait_ns(0, 101) == (NS_PER_MIN // 600, "600 tokens/min of tenant acme")
    assert acme.wait_ns(20_000_000, 100) == (0, "")


@pytest.mark.req("ORCH-3077")
def test_tokens_are_corrected_to_what_was_used() -> None:
    acme = tenant(TenantPolicy("acme", tokens_per_min=600))
    acme.admit(0, 600)
    acme.settle(0, 600, 100)
    assert acme.wait_ns(0, 500) == (0, "")
    acme.admit(0, 100)
    acme.settle(0, 100, 300)
    assert acme.wait_ns(0, 200) == (0, "")
    assert acme.wait_ns(0, 201)[0] == NS_PER_MIN // 600


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_a_tenant_at_its_concurrency_may_not_start_until_one_ends() -> None:
    acme = tenant(TenantPolicy("acme", max_concurrent=2))
    for _ in range(2):
        assert acme.may_start(0)
        acme.started(0)
    assert not acme.may_start(0)
    assert acme.wait_ns(0, 10**9) == (0, "")
    acme.ended(0)
    assert acme.may_start(0)


@pytest.mark.req("ORCH-3036")
def test_kv_memory_is_bounded_over_all_that_runs() -> None:
    acme = tenant(TenantPolicy("acme", kv_mb=2))
    assert acme.fits(2 * BYTES_PER_MB)
    assert not acme.fits(2 * BYTES_PER_MB + 1)
    acme.started(BYTES_PER_MB + 1)
    assert not acme.may_start(BYTES_PER_MB)
    assert acme.may_start(BYTES_PER_MB - 1)
    acme.ended(BYTES_PER_MB + 1)
    assert acme.may_start(2 * BYTES_PER_MB)
    assert (acme.running, acme.kv_bytes) == (0, 0)


def test_without_bounds_nothing_waits() -> None:
    free = tenant(TenantPolicy("free"))
    for _ in range(1000):
        free.admit(0, 10**9)
        free.started(10**12)
    assert free.wait_ns(0, 10**9) == (0, "")
    assert free.may_start(10**12)


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_tenants_have_their_own_numbers_the_defaults_or_are_refused() -> None:
    book = quotas(TenantPolicy("acme", weight=3), default=TenantPolicy("", weight=2, max_concurrent=1))
    acme, one, two = book.tenant("acme"), book.tenant("one"), book.tenant("two")
    assert acme is not None
    assert one is not None
    assert two is not None
    assert (acme.weight, one.weight, two.weight) == (3, 2, 2)
    one.started(0)
    assert book.tenant("one") is one
    assert not one.may_start(0)
    assert two.may_start(0)
    assert quotas(TenantPolicy("acme")).tenant("other") is None


@pytest.mark.req("ORCH-3006")
def test_clients_have_their_own_rate_the_default_or_none() -> None:
    book = quotas(clients={"ci": RatePolicy(1, 5)}, default_client=RatePolicy(1, 2))
    ci, one, two = book.client("ci"), book.client("one"), book.client("two")
    assert ci is not None
    assert one is not None
    assert two is not None
    assert (ci.burst, one.burst, two.burst) == (5, 2, 2)
    one.take(0, 2)
    assert book.client("one") is one
    assert (one.wait_ns(0), two.wait_ns(0)) == (NS_PER_S, 0)
    assert quotas().client("anyone") is None


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (TenantPolicy("acme", weight=0), "tenant acme: weight must be at least 1, got 0"),
        (TenantPolicy("acme", max_concurrent=0), "tenant acme: max_concurrent must be at least 1, got 0"),
        (TenantPolicy("acme", kv_mb=-1), "tenant acme: kv_mb must be at least 1, got -1"),
        (TenantPolicy("acme", rate=RatePolicy(0.0, 1)), "tenant acme: rps must be .* got 0.0"),
        (TenantPolicy("acme", rate=RatePolicy(float("nan"), 1)), "tenant acme: rps must be .* got nan"),
        (TenantPolicy("acme", rate=RatePolicy(float("inf"), 1)), "tenant acme: rps must be .* got inf"),
        (TenantPolicy("acme", rate=RatePolicy(1.0, 0)), "tenant acme: burst must be at least 1, got 0"),
        (TenantPolicy("acme", tokens_per_min=0), "tenant acme: tokens_per_min must be at least 1, got 0"),
    ],
)
def test_a_tenants_bad_number_is_refused_by_name_and_value(policy: TenantPolicy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quotas(policy)
    with pytest.raises(ValueError, match=words.replace("acme", r"\(default\)")):
        quotas(default=policy)


def test_other_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"client ci: rps must be .* got -1"):
        quotas(clients={"ci": RatePolicy(-1, 1)})
    with pytest.raises(ValueError, match=r"client \(default\): burst must be at least 1, got 0"):
        quotas(default_client=RatePolicy(1, 0))
    with pytest.raises(ValueError, match="tenant acme is configured twice"):
        quotas(TenantPolicy("acme"), TenantPolicy("acme"))
    with pytest.raises(ValueError, match="the interval must be at least 1 ns, got 0"):
        Gcra(0, 1)


@pytest.mark.req("ORCH-3006", "ORCH-3036")
def test_idle_tenants_and_clients_are_dropped_and_busy_ones_kept() -> None:
    book = quotas(default=TenantPolicy("", rate=RatePolicy(1, 1)), default_client=RatePolicy(1, 1))
    busy = [book.tenant(f"busy {n}") for n in range(10)]
    for quota in busy:
        assert quota is not None
        quota.admit(0, 1)
    owing = book.client("owing")
    assert owing is not None
    owing.take(0, 10**6)
    now_ns = 2 * NS_PER_S
    for n in range(5 * ENTRIES_MAX):
        book.tenant(f"t{n}")
        book.client(f"c{n}")
        book.sweep(now_ns)
    assert len(book) <= 2 * ENTRIES_MAX
    assert [book.tenant(f"busy {n}") for n in range(10)] == busy
    assert book.client("owing") is owing


@pytest.mark.req("ORCH-3036")
def test_a_tenant_is_kept_while_anything_of_it_lives_or_is_owed() -> None:
    quota = tenant(TenantPolicy("acme", rate=RatePolicy(1, 1), tokens_per_min=60))
    assert quota.idle(0)
    quota.admit(0, 120)
    quota.started(0)
    quota.settle(DAY_NS, 120, 120)
    assert not quota.idle(DAY_NS)
    quota.ended(0)
    assert quota.idle(DAY_NS)
    quota.admit(DAY_NS, 1)
    quota.settle(DAY_NS, 1, 1)
    assert not quota.idle(DAY_NS + NS_PER_S - 1)
    assert quota.idle(DAY_NS + NS_PER_S)
