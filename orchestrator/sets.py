"""From pools as configured to replica sets, tenants and sessions as scheduled (ORCH-3007, ORCH-3075).

Expects a checked file: pools of one set agree in what they share, and pools that name one tenant in its numbers.
"""

from math import ceil
from typing import Final

from msgspec.structs import replace

from contracts.api import PRIORITIES, Priority
from contracts.config import Config, PoolConfig
from contracts.config_pools import ScalingConfig
from contracts.config_scheduling import (
    BreakerConfig,
    PreemptionConfig,
    PriorityConfig,
    QuotaConfig,
    SessionsConfig,
)
from contracts.errors import PolicyLabel
from contracts.policies import (
    BreakerPolicy,
    BudgetPolicy,
    LeasePolicy,
    PoolPolicy,
    PreemptionPolicy,
    QueuePolicy,
    RatePolicy,
    RestartPolicy,
    ResultPolicy,
    ScalingPolicy,
    SchedulerConfig,
    SessionPolicy,
    SetPolicy,
    TenantPolicy,
)
from orchestrator.specs import known_models

#: What a full queue does where the file does not say (ORCH-3005).
FULL_POLICY_DEFAULT: Final[dict[Priority, PolicyLabel]] = {"interactive": "reject", "batch": "drop-lru"}

#: Shares of the classes where the file does not say (ORCH-3075).
WEIGHT_DEFAULT: Final[dict[Priority, int]] = {"interactive": 8, "batch": 1}

#: Objectives for the first token where the file does not say; 0: none (ORCH-3041).
SLO_FIRST_TOKEN_MS_DEFAULT: Final[dict[Priority, int]] = {"interactive": 900, "batch": 0}

#: The scheduler counts cost in millionths of the currency.
MICROS: Final = 1_000_000


def set_key(pool: PoolConfig) -> str:
    """Id of the replica set a pool belongs to: `engine/model/quant/ctx/sampler profile`.

    The engine's version joins at run time: replicas that report another one are refused (ORCH-3046).
    """
    return f"{pool.engine}/{pool.model}/{pool.quant or '-'}/{pool.ctx}/{pool.sampler_profile_version}"


def queue_policy(pool: PoolConfig, priority: Priority) -> QueuePolicy:
    """One class of one pool, with the defaults of the class where the file does not say."""
    entries = pool.admission.priorities
    given = next((entry for entry in entries if entry.name == priority), PriorityConfig(name=priority))
    slo_ms = given.slo_first_token_ms
    return QueuePolicy(
        priority=priority,
        capacity=given.queue_capacity or pool.queue.capacity,
        full_policy=pool.queue.full_policy or FULL_POLICY_DEFAULT[priority],
        weight=given.weight or WEIGHT_DEFAULT[priority],
        rate=_rate(given.rate_limit_rps),
        slo_first_token_ms=(SLO_FIRST_TOKEN_MS_DEFAULT[priority] if slo_ms is None else slo_ms) or None,
    )


def scheduler_config(config: Config) -> SchedulerConfig:
    """The scheduler's view of the file; replica sets come in the order of their first pools."""
    auth = config.auth
    members: dict[str, list[PoolConfig]] = {}
    for pool in config.pools:
        members.setdefault(set_key(pool), []).append(pool)
    return SchedulerConfig(
        sets=tuple(_set_policy(set_id, pools) for set_id, pools in members.items()),
        results=ResultPolicy(
            ttl_ms=config.results.ttl_ms,
            tasks_max=config.results.tasks_max,
            bytes_max=config.results.bytes_max,
        ),
        tenants=_tenants(config.pools),
        default_tenant=_default_tenant(config.pools),
        clients={key.name: rate for key in auth.keys if (rate := _rate(key.rps, key.burst)) is not None},
        default_client=None if auth.rate is None else _rate(auth.rate.rps, auth.rate.burst),
        sessions=_session_policy(config.sessions),
        models=known_models(config),
        lease=LeasePolicy(ttl_ms=config.lease.ttl_ms, lost_ms=config.lease.lost_ms),
    )


def _set_policy(set_id: str, pools: list[PoolConfig]) -> SetPolicy:
    """One queue for the pools together: their capacities and class rates add up, all else they share."""
    first = pools[0]
    return SetPolicy(
        set_id=set_id,
        engine=first.engine,
        model_refs=(first.model,),
        ctx=first.ctx,
        sampler_profile_version=first.sampler_profile_version,
        workloads=(first.workload,),
        determinism=first.determinism,
        pools=tuple(_pool_policy(pool) for pool in pools),
        capacity=sum(pool.queue.capacity for pool in pools),
        queues=tuple(_class_of_set(priority, pools) for priority in PRIORITIES),
        wall_timeout_ms=first.timeouts.wall_ms,
        idle_timeout_ms=first.timeouts.idle_ms,
        first_token_timeout_ms=first.timeouts.first_token_ms,
        queue_timeout_ms=first.timeouts.queue_ms,
        fairness=first.admission.fairness.kind,
        ordering=first.admission.ordering,
        eviction=first.admission.eviction,
        on_time_percent_min=first.admission.on_time_percent_min,
        preemption=_preemption_policy(first.preemption),
        breaker=_breaker_policy(first.admission.breaker),
        price_in_micros=_micros(first.price.prompt_per_1k),
        price_out_micros=_micros(first.price.output_per_1k),
    )


def _pool_policy(pool: PoolConfig) -> PoolPolicy:
    """Devices by the names under which a pool's replicas report them (ORCH-3011)."""
    restart = pool.restart
    return PoolPolicy(
        pool_id=pool.id,
        devices=tuple(str(device) for device in pool.devices),
        canary_percent=pool.canary_percent,
        scaling=_scaling_policy(pool),
        restart=RestartPolicy(
            backoff_min_ms=restart.backoff_min_ms,
            backoff_max_ms=restart.backoff_max_ms,
            jitter_percent=restart.jitter_percent,
            stable_after_ms=restart.stable_after_ms,
            breaker_failures=restart.breaker_failures,
        ),
        model_ref=pool.model,
        slots=pool.slots,
        accelerator=pool.accelerator,
        zone=pool.zone or "",
        drain_ms=pool.drain_ms,
        reload_timeout_ms=pool.reload_timeout_ms,
    )


def _scaling_policy(pool: PoolConfig) -> ScalingPolicy:
    """Always there: the service orders the replicas of all its pools, also of those that keep their number."""
    given = pool.scaling or ScalingConfig()
    return ScalingPolicy(
        replicas_min=pool.replicas if given.min is None else given.min,
        replicas_max=pool.replicas if given.max is None else given.max,
        replicas=pool.replicas,
        target_wait_ms=given.target_wait_ms,
        up_after_ms=given.up_after_ms,
        down_after_ms=given.down_after_ms,
    )


def _class_of_set(priority: Priority, pools: list[PoolConfig]) -> QueuePolicy:
    parts = [queue_policy(pool, priority) for pool in pools]
    rates = [part.rate.rps for part in parts if part.rate is not None]
    return replace(
        parts[0],
        capacity=sum(part.capacity for part in parts),
        rate=_rate(sum(rates) if rates else None),
    )


def _preemption_policy(preemption: PreemptionConfig) -> PreemptionPolicy:
    hard = preemption.hard_requirements
    return PreemptionPolicy(
        mode=preemption.mode,
        max_per_min=hard.max_preemptions_per_min,
        protect=tuple(hard.protect_priorities),
        per_task_max=preemption.per_task_max,
    )


def _breaker_policy(breaker: BreakerConfig | None) -> BreakerPolicy | None:
    if breaker is None:
        return None
    return BreakerPolicy(
        violations_percent=breaker.violations_percent,
        window_ms=breaker.window_ms,
        samples_min=breaker.samples_min,
        open_ms=breaker.open_ms,
        probes=breaker.probes,
    )


def _tenants(pools: list[PoolConfig]) -> tuple[TenantPolicy, ...]:
    """Each tenant once, in the order in which the file first names them: quotas hold over all pools (ORCH-3077)."""
    merged: dict[str, TenantPolicy] = {}
    for pool in pools:
        for tenant in pool.admission.fairness.tenants:
            merged.setdefault(tenant.id, _tenant_policy(tenant.id, tenant))
    return tuple(merged.values())


def _default_tenant(pools: list[PoolConfig]) -> TenantPolicy | None:
    """The numbers of tenants that no pool names; None: they are refused."""
    sections = [pool.admission.fairness for pool in pools]
    if any(section.unknown_tenants == "refuse" for section in sections):
        return None
    given = next((section.default for section in sections if section.default is not None), QuotaConfig())
    return _tenant_policy("", given)


def _tenant_policy(tenant: str, quota: QuotaConfig) -> TenantPolicy:
    return TenantPolicy(
        tenant=tenant,
        weight=quota.weight,
        max_concurrent=quota.max_concurrent,
        rate=_rate(quota.rps, quota.burst),
        tokens_per_min=quota.tokens_per_min,
        kv_mb=quota.kv_mb,
    )


def _rate(rps: float | None, burst: int | None = None) -> RatePolicy | None:
    """A rate (ORCH-3006); without a `burst` it lets a second's worth through at once, and at least one."""
    return None if rps is None else RatePolicy(rps=rps, burst=burst or max(1, ceil(rps)))


def _session_policy(sessions: SessionsConfig) -> SessionPolicy:
    budget = sessions.budget
    return SessionPolicy(
        ttl_ms=sessions.ttl_ms,
        turns_max=sessions.turns_max,
        sessions_max=sessions.sessions_max,
        budget=BudgetPolicy(
            tokens=budget.tokens,
            time_ms=budget.time_ms,
            cost_micros=None if budget.cost is None else _micros(budget.cost),
        ),
    )


def _micros(amount: float) -> int:
    return round(amount * MICROS)
