"""From a scenario to what the scheduler is configured with."""

import math
from typing import Final

from contracts.errors import PolicyLabel
from contracts.policies import (
    BudgetPolicy,
    PoolPolicy,
    PreemptionPolicy,
    QueuePolicy,
    RatePolicy,
    ResultPolicy,
    SchedulerConfig,
    SessionPolicy,
    SetPolicy,
    TenantPolicy,
)
from orchestrator.simulation.scenario import Scenario, SchedulerSection, TenantSection
from orchestrator.simulation.workloads import ENGINE, MODEL, PROFILE

SET_ID: Final = "simulated"
RESULT_TTL_MS: Final = 600_000
RESULT_BYTES_MAX: Final = 1 << 40


def scheduler_config(scenario: Scenario) -> SchedulerConfig:
    """One replica set, with the scenario's pools, classes and tenants."""
    section = scenario.scheduler
    queues = _queues(section)
    # Without progress reports nothing would tell an attempt that works from one that hangs.
    idle_ms = section.idle_timeout_ms if scenario.progress_ms else section.wall_timeout_ms
    home = SetPolicy(
        set_id=SET_ID,
        engine=ENGINE,
        model_refs=(MODEL,),
        ctx=section.ctx,
        sampler_profile_version=PROFILE,
        pools=tuple(PoolPolicy(name, canary_percent=pool.canary_percent) for name, pool in scenario.pools.items()),
        capacity=section.capacity or sum(queue.capacity for queue in queues),
        queues=queues,
        wall_timeout_ms=section.wall_timeout_ms,
        idle_timeout_ms=idle_ms,
        fairness=section.fairness,
        ordering=section.ordering,
        eviction=section.eviction,
        on_time_percent_min=section.on_time_percent_min,
        preemption=PreemptionPolicy(
            section.preemption.mode,
            section.preemption.max_per_min,
            section.preemption.protect,
            section.preemption.per_task_max,
        ),
    )
    sessions = section.sessions
    budget = BudgetPolicy(tokens=sessions.budget_tokens, time_ms=sessions.budget_time_ms)
    return SchedulerConfig(
        sets=(home,),
        results=ResultPolicy(RESULT_TTL_MS, section.results_max, RESULT_BYTES_MAX),
        tenants=tuple(tenant_policy(name, tenant) for name, tenant in section.tenants.items()),
        default_tenant=tenant_policy("", section.default_tenant) if section.default_tenant else None,
        sessions=SessionPolicy(ttl_ms=sessions.ttl_ms, turns_max=sessions.turns_max, budget=budget),
    )


def tenant_policy(name: str, section: TenantSection) -> TenantPolicy:
    """A tenant's weight and quotas; a rate without a burst lets a second's worth through at once."""
    return TenantPolicy(
        name,
        section.weight,
        section.max_concurrent,
        _rate(section.rps, section.burst),
        section.tokens_per_min,
        section.kv_mb,
    )


def _rate(rps: float | None, burst: int | None) -> RatePolicy | None:
    return None if rps is None else RatePolicy(rps, burst or max(1, math.ceil(rps)))


def _queues(section: SchedulerSection) -> tuple[QueuePolicy, ...]:
    lowest = list(section.classes)[-1] if len(section.classes) > 1 else ""
    default: dict[bool, PolicyLabel] = {True: "drop-lru", False: "reject"}
    return tuple(
        QueuePolicy(
            priority=name,
            capacity=queue.capacity,
            full_policy=queue.full_policy or default[name == lowest],
            weight=queue.weight,
            rate=_rate(queue.rps, queue.burst),
            slo_first_token_ms=queue.slo_first_token_ms,
        )
        for name, queue in section.classes.items()
    )
