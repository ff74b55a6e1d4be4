"""What the scheduler is configured with: sets, classes, tenants, quotas, sessions and their budgets.

The config file is translated into these; the core reads nothing else. Rates are per second of the
shell's clock, durations are `_ms`, cost is counted in millionths of the operator's currency.
"""

from typing import Literal

from msgspec import Struct

from contracts.errors import PolicyLabel

FairnessKind = Literal["wfq", "strict", "fifo"]
OrderingKind = Literal["edf", "fifo"]
EvictionKind = Literal["eta", "lru"]
PreemptionMode = Literal["off", "soft", "hard"]


class RatePolicy(Struct, frozen=True):
    """`rps` requests a second on average, `burst` at once."""

    rps: float
    burst: int


class QueuePolicy(Struct, frozen=True):
    """One priority class within a replica set (ORCH-3004, 3005, 3075).

    `weight` is its share of the set while several classes wait; `rate` bounds admissions of the class.
    `slo_first_token_ms` is what a first token may take from admission (ORCH-3041).
    """

    priority: str
    capacity: int
    full_policy: PolicyLabel
    weight: int = 1
    rate: RatePolicy | None = None
    slo_first_token_ms: int | None = None


class ScalingPolicy(Struct, frozen=True):
    """How many replicas a pool keeps; fixed where both bounds are equal.

    One more is wanted when the predicted wait has been over `target_wait_ms` for `up_after_ms`, one fewer when
    the rest would have done for `down_after_ms`. With `replicas_min` 0 an idle pool gives up all of them after
    `down_after_ms`, and its queue is the waiting room.
    """

    replicas_min: int
    replicas_max: int
    replicas: int
    target_wait_ms: int = 2_000
    up_after_ms: int = 3_000
    down_after_ms: int = 120_000


class RestartPolicy(Struct, frozen=True):
    """How a failed launch is tried again (ORCH-3053).

    The wait doubles from `backoff_min_ms` to `backoff_max_ms`, plus up to `jitter_percent` of it; it starts over
    once a replica served for `stable_after_ms`. After `breaker_failures` failures of the pool in a row without
    any success, only one of its replicas is tried at a time, at the longest wait.
    """

    backoff_min_ms: int = 500
    backoff_max_ms: int = 60_000
    jitter_percent: int = 20
    stable_after_ms: int = 60_000
    breaker_failures: int = 5


class PoolPolicy(Struct, frozen=True):
    """One pool of a replica set. `devices` is its mask: a replica on any other device is refused (ORCH-3011).

    `canary_percent` is the share of sessions that this pool serves; None: it takes what the others leave.
    `scaling` None: nobody orders its replicas, whichever registers is taken. `model_ref` is the model it starts
    with, `slots` what each replica serves at once, `zone` the only zone it may stand in.
    `drain_ms` is how long replicas that a reload or a fault replaces may finish their work, `reload_timeout_ms`
    how long new ones may take to be Ready.
    """

    pool_id: str
    devices: tuple[str, ...] = ()
    canary_percent: int | None = None
    scaling: ScalingPolicy | None = None
    restart: RestartPolicy = RestartPolicy()
    model_ref: str = ""
    slots: int = 1
    accelerator: str = "gpu"
    zone: str = ""
    drain_ms: int = 300_000
    reload_timeout_ms: int = 600_000


class PreemptionPolicy(Struct, frozen=True):
    """`soft` drops waiting work of lower classes for higher ones, `hard` also stops running work (ORCH-3085, 3086)."""

    mode: PreemptionMode = "off"
    max_per_min: int = 10
    protect: tuple[str, ...] = ()
    per_task_max: int = 2


class BreakerPolicy(Struct, frozen=True):
    """When a pool counts as failing its SLO for a class, and how it is tried again (ORCH-3040).

    Open when, of at least `samples_min` attempts within `window_ms`, `violations_percent` or more missed the
    SLO or failed; half-open after `open_ms`, when `probes` tasks are let through.
    """

    violations_percent: int = 50
    window_ms: int = 30_000
    samples_min: int = 20
    open_ms: int = 10_000
    probes: int = 3


class SetPolicy(Struct, frozen=True):
    """One replica set as configured: pools of the same engine, model, quant, ctx and profile.

    `capacity` bounds the waiting tasks of all classes together. `model_refs` are the names under which clients
    may ask for the model, `workloads` what its engines were started for, `determinism` what they promise.
    `on_time_percent_min` is the chance of meeting its deadline under which a task is
    refused (0: never). `first_token_timeout_ms` bounds the time from an attempt's start to its first token,
    `queue_timeout_ms` the time that a task may wait (None: its deadline alone does). Prices are in millionths of the
    currency per 1000 tokens.
    """

    set_id: str
    engine: str
    model_refs: tuple[str, ...]
    ctx: int
    sampler_profile_version: str
    pools: tuple[PoolPolicy, ...]
    capacity: int
    queues: tuple[QueuePolicy, ...]
    wall_timeout_ms: int
    idle_timeout_ms: int
    first_token_timeout_ms: int | None = None
    queue_timeout_ms: int | None = None
    workloads: tuple[str, ...] = ("completion",)
    determinism: str = "strict"
    fairness: FairnessKind = "wfq"
    ordering: OrderingKind = "edf"
    eviction: EvictionKind = "eta"
    on_time_percent_min: int = 85
    preemption: PreemptionPolicy = PreemptionPolicy()
    breaker: BreakerPolicy | None = None
    price_in_micros: int = 0
    price_out_micros: int = 0

    @property
    def pool_ids(self) -> tuple[str, ...]:
        return tuple(pool.pool_id for pool in self.pools)


class TenantPolicy(Struct, frozen=True):
    """Weight and quotas of a tenant; None: no bound (ORCH-3036, 3075, 3077).

    `max_concurrent` and `kv_mb` bound what runs: a tenant at its bound waits, it is not refused. `rate` and
    `tokens_per_min` (prompt + asked-for output, corrected to what was made) bound what is admitted.
    """

    tenant: str
    weight: int = 1
    max_concurrent: int | None = None
    rate: RatePolicy | None = None
    tokens_per_min: int | None = None
    kv_mb: int | None = None


class BudgetPolicy(Struct, frozen=True):
    """What one session may use up (ORCH-3099); None: no bound. Time is slot time."""

    tokens: int | None = None
    time_ms: int | None = None
    cost_micros: int | None = None


class SessionPolicy(Struct, frozen=True):
    """How long a session lives without a task, and after how many turns its KV is given up (ORCH-3021)."""

    ttl_ms: int = 600_000
    turns_max: int = 8
    sessions_max: int = 100_000
    budget: BudgetPolicy = BudgetPolicy()


class ResultPolicy(Struct, frozen=True):
    """How long and how much of finished tasks is kept for re-attaching and idempotency."""

    ttl_ms: int
    tasks_max: int
    bytes_max: int


class LeasePolicy(Struct, frozen=True):
    """A replica that was not heard of for `ttl_ms` is sent nothing more; after `lost_ms` it counts as gone."""

    ttl_ms: int = 2_500
    lost_ms: int = 15_000


class SchedulerConfig(Struct, frozen=True):
    """All of it. `tenants` without an entry get `default_tenant`, or are refused where that is None.

    `clients` are the rates of API keys by name; a key without an entry has `default_client`.
    `models` names, per engine, what pools may be reloaded to. Without `lease` replicas need none.
    `jitter_seed` spreads the restarts of this service (the core draws no random numbers).
    """

    sets: tuple[SetPolicy, ...]
    results: ResultPolicy
    tenants: tuple[TenantPolicy, ...] = ()
    default_tenant: TenantPolicy | None = TenantPolicy("")
    clients: dict[str, RatePolicy] = {}
    default_client: RatePolicy | None = None
    sessions: SessionPolicy = SessionPolicy()
    models: dict[str, tuple[str, ...]] = {}
    lease: LeasePolicy | None = None
    jitter_seed: int = 0
