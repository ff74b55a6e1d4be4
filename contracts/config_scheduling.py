"""The configuration file's sections about scheduling: classes, tenants, order, preemption, breakers, sessions.

The translation into what the scheduler reads (`contracts/policies.py`) is `orchestrator/sets.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from contracts.api import Priority
from contracts.config_base import Cost, Identifier, Percent, PercentOfSome, PositiveInt, Price, Rate, Section, Weight
from contracts.policies import EvictionKind, FairnessKind, OrderingKind, PreemptionMode


class PriorityConfig(Section):
    """One priority class of a pool (ORCH-3004, ORCH-3075, ORCH-3041)."""

    name: Priority
    queue_capacity: PositiveInt | None = Field(None, description="bound of this class; left out: the pool's capacity")
    rate_limit_rps: Rate | None = Field(
        None, description="admissions of this class per second; the rates of a set's pools add up; left out: no bound"
    )
    weight: Weight | None = Field(
        None, description="share of the set while several classes wait; left out: interactive 8, batch 1"
    )
    slo_first_token_ms: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="objective from admission to the first token, 0: none; left out: interactive 900, batch none",
    )


class QuotaConfig(Section):
    """A tenant's weight and quotas, over all pools together; left out: no bound (ORCH-3036, ORCH-3077).

    A tenant at `max_concurrent` or `kv_mb` waits. Over `rps` or `tokens_per_min` it is refused, and told when to
    come again.
    """

    weight: Weight = 1
    max_concurrent: PositiveInt | None = Field(None, description="running tasks")
    rps: Rate | None = Field(None, description="requests per second on average")
    burst: PositiveInt | None = Field(None, description="requests at once; left out: `rps` rounded up")
    tokens_per_min: PositiveInt | None = Field(None, description="prompt and output tokens per minute")
    kv_mb: PositiveInt | None = Field(None, description="KV cache of the running tasks, in MiB")


class TenantConfig(QuotaConfig):
    """A tenant by name. Several pools may name it, with the same numbers; what is left out is not inherited."""

    id: Identifier


class FairnessConfig(Section):
    """How classes and tenants share a replica set (ORCH-3075), and what is known of the tenants.

    `unknown_tenants` and `default` are about tenants that no pool names; they hold for all pools.
    """

    kind: FairnessKind = "wfq"
    tenants: list[TenantConfig] = Field([])
    unknown_tenants: Literal["default", "refuse"] | None = Field(
        None, description="`default` gives them the numbers of `default`; left out: `default`"
    )
    default: QuotaConfig | None = Field(None, description="left out: weight 1, no quotas")


class BreakerConfig(Section):
    """When a pool counts as failing its objective for a class, and how it is tried again (ORCH-3040).

    Open when, of at least `samples_min` attempts within `window_ms`, `violations_percent` or more failed or
    missed the class's objective; after `open_ms`, `probes` tasks try whether it has recovered.
    """

    violations_percent: PercentOfSome = 50
    window_ms: PositiveInt = 30_000
    samples_min: PositiveInt = 20
    open_ms: PositiveInt = 10_000
    probes: PositiveInt = 3


class AdmissionConfig(Section):
    """Who gets in, in which order, and what gives way (ORCH-3075, ORCH-3079, ORCH-3080)."""

    priorities: list[PriorityConfig] = Field([])
    fairness: FairnessConfig = FairnessConfig()
    ordering: OrderingKind = Field("edf", description="within a tenant's line: earliest deadline or arrival first")
    on_time_percent_min: Percent = Field(
        85, description="a waiting task that is less likely to meet its deadline is refused; 0: never"
    )
    eviction: EvictionKind = Field(
        "eta", description="who gives way: `eta` looks at predicted completion, `lru` at arrival"
    )
    breaker: BreakerConfig | None = Field(None, description="left out: no breaker")


class HardRequirements(Section):
    """What must hold before running work is stopped (ORCH-3086); `protect_priorities` guards waiting work as well."""

    engine_capability: Literal["interruptible_decode"] = Field(
        "interruptible_decode", description="the replica's engine must have shown that a stop frees the slot at once"
    )
    max_preemptions_per_min: PositiveInt = 10
    protect_priorities: list[Priority] = Field([], description="classes that give way to no other")


class PreemptionConfig(Section):
    """`soft`: waiting work gives way to a higher class in a full queue; `hard`: running work too (ORCH-3085, 3086)."""

    mode: PreemptionMode = "soft"
    hard_requirements: HardRequirements = HardRequirements()
    per_task_max: PositiveInt = Field(2, description="how often one task may be stopped for others")


class PriceConfig(Section):
    """What tokens cost in the operator's currency; budgets of cost count with it (ORCH-3099)."""

    prompt_per_1k: Price = 0.0
    output_per_1k: Price = 0.0


class BudgetConfig(Section):
    """What one session may use up (ORCH-3099); left out: no bound."""

    tokens: PositiveInt | None = Field(None, description="prompt and output tokens")
    time_ms: PositiveInt | None = Field(None, description="slot time")
    cost: Cost | None = Field(None, description="in the currency of `price`")


class SessionsConfig(Section):
    """How long a session lives without a task, and after how many turns its KV is given up (ORCH-3021)."""

    ttl_ms: Annotated[int, Field(ge=1, le=600_000)] = 600_000
    turns_max: PositiveInt = 8
    sessions_max: PositiveInt = Field(100_000, description="sessions remembered; the oldest idle ones go first")
    budget: BudgetConfig = BudgetConfig()


class RateConfig(Section):
    """A request rate: `rps` on average, `burst` at once (left out: `rps` rounded up)."""

    rps: Rate
    burst: PositiveInt | None = None
