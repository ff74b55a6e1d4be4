"""What a scenario file says: replicas, scheduling, who sends what, and what breaks.

Only `workloads` must be given; everything else has a default. Unknown fields are refused. Durations are
`_ms` or `_s`, speeds are tokens a second, sizes are tokens. Times count from the start of the run.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts.config_base import Section
from contracts.errors import PolicyLabel
from contracts.policies import EvictionKind, FairnessKind, OrderingKind, PreemptionMode
from orchestrator.simulation.faultkinds import Fault
from orchestrator.simulation.sizes import Size

Positive = Annotated[int, Field(ge=1)]
Speed = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$")]
Shares = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]


class PoolSection(Section):
    """Replicas of one kind. Take the speeds from a benchmark of the real engine with one busy slot.

    Decoding gets slower by `slowdown_percent` for each other slot that is busy when an attempt starts.
    `start_ms` is what an attempt costs before its prompt is read, `stop_ms` how long a stop takes.
    """

    replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    slots: Positive = 8
    prefill_tokens_per_s: Speed = 4000
    decode_tokens_per_s: Speed = 40
    slowdown_percent: Percent = 0
    start_ms: Annotated[int, Field(ge=0)] = 2
    stop_ms: Annotated[int, Field(ge=0)] = 5
    release_ms: Annotated[int, Field(ge=0)] = 0
    load_ms: Annotated[int, Field(ge=0)] = 5000
    kv_tokens: Annotated[int, Field(ge=0)] = 0
    keeps_kv: bool = False
    interruptible_decode: bool = True
    canary_percent: Annotated[int, Field(ge=1, le=100)] | None = None


class ClassSection(Section):
    """One priority class. `full_policy` left out: `drop-lru` for the lowest of several classes, else `reject`."""

    weight: Positive = 1
    capacity: Positive = 256
    full_policy: PolicyLabel | None = None
    rps: Speed | None = None
    burst: Positive | None = None
    slo_first_token_ms: Positive | None = None


class TenantSection(Section):
    weight: Positive = 1
    max_concurrent: Positive | None = None
    rps: Speed | None = None
    burst: Positive | None = None
    tokens_per_min: Positive | None = None
    kv_mb: Positive | None = None


class PreemptionSection(Section):
    mode: PreemptionMode = "soft"
    max_per_min: Positive = 10
    protect: tuple[str, ...] = ()
    per_task_max: Positive = 2


class SessionSection(Section):
    """Lifetime and budgets of sessions; they matter to workloads of agents."""

    ttl_ms: Positive = 600_000
    turns_max: Positive = 8
    budget_tokens: Positive | None = None
    budget_time_ms: Positive | None = None


class SchedulerSection(Section):
    """The policies. `classes` are given highest first."""

    fairness: FairnessKind = "wfq"
    ordering: OrderingKind = "edf"
    eviction: EvictionKind = "eta"
    on_time_percent_min: Annotated[int, Field(ge=0, le=100)] = 85
    capacity: Positive | None = Field(None, description="bound of all classes together; left out: their sum")
    ctx: Positive = 8192
    wall_timeout_ms: Positive = 300_000
    idle_timeout_ms: Positive = 30_000
    classes: dict[Name, ClassSection] = Field(
        {"interactive": ClassSection(weight=8), "batch": ClassSection(weight=1)}, min_length=1
    )
    tenants: dict[Name, TenantSection] = Field(default_factory=dict)
    default_tenant: TenantSection | None = TenantSection()
    preemption: PreemptionSection = PreemptionSection()
    sessions: SessionSection = SessionSection()
    results_max: Positive = 10_000


class PoissonArrivals(Section):
    """Independent clients: gaps between arrivals are exponential."""

    kind: Literal["poisson"]
    per_second: Speed


class ConstantArrivals(Section):
    kind: Literal["constant"]
    per_second: Speed


class BurstArrivals(Section):
    """On and off at random (a Markov-modulated Poisson process); the times are means of exponential lengths."""

    kind: Literal["bursts"]
    on_per_second: Speed
    off_per_second: Annotated[float, Field(ge=0)] = 0
    on_s: Speed = 10
    off_s: Speed = 30


class AgentArrivals(Section):
    """Closed loop: each agent waits for its answer, thinks, and asks again; its prompt grows with the session.

    A new session begins after `turns`. With `close_sessions` the old one is ended in so many words.
    """

    kind: Literal["agents"]
    count: Annotated[int, Field(ge=1, le=100_000)]
    turns: Positive = 6
    think_ms: Size = 2000
    close_sessions: bool = False


class TraceArrivals(Section):
    """Recorded tasks, one JSON object a line, in order of `at_ms`; `speed` 2 plays them twice as fast."""

    kind: Literal["trace"]
    file: Path
    speed: Speed = 1


Arrivals = Annotated[
    PoissonArrivals | ConstantArrivals | BurstArrivals | AgentArrivals | TraceArrivals, Field(discriminator="kind")
]


class RefusalSection(Section):
    """What a client does about a refusal that says when to try again.

    `retry` comes back exactly when it was told to, `jitter` up to `jitter_percent` later than that. Both stop
    after `tries_max` submissions, and when nothing is left of the task's deadline.
    """

    kind: Literal["give-up", "retry", "jitter"] = "give-up"
    tries_max: Annotated[int, Field(ge=1, le=1000)] = 5
    jitter_percent: Annotated[float, Field(ge=0, le=1000)] = 50


class WorkloadSection(Section):
    """One stream of tasks. `tenants` and `priority` name one, or several with their shares.

    `hint_error_percent` makes clients tell `expected_tokens`, wrong by about that much either way (0: exactly
    right); left out, they tell nothing. Cancels come `cancel_after_ms` after admission. A resent task is
    submitted twice with the same id. Poison tasks crash each engine that runs them, with their first token.
    """

    name: Name
    arrivals: Arrivals
    tenants: Name | Shares = "default"
    priority: Name | Shares = "interactive"
    prompt_tokens: Size = 256
    output_tokens: Size = 128
    max_tokens: Positive = 1024
    deadline_ms: Size = 60_000
    hint_error_percent: Percent | None = None
    bytes_per_token: Speed = 4
    on_refusal: RefusalSection = RefusalSection()
    cancel_percent: Percent = 0
    cancel_after_ms: Size = 1000
    resend_percent: Percent = 0
    poison_percent: Percent = 0
    from_s: Seconds = 0
    until_s: Seconds | None = None


class Scenario(Section):
    """The whole file. Tasks arrive for `seconds`, or until there are `tasks_max`; what was admitted is served out.

    Nothing of the first `warmup_s` is counted. `progress_ms` is how often replicas report progress (0: never,
    which makes big runs fast). `commit_ms` is what the journal takes for a commit, behind which all answers wait (left
    out: 2 where a fault is about the journal or the scheduler, else there is no journal). `check_every_steps` checks
    the scheduler's invariants as often (0: never).
    """

    name: str = "scenario"
    seconds: Annotated[float, Field(gt=0)] = 600
    warmup_s: Seconds = 0
    tasks_max: Annotated[int, Field(ge=1, le=20_000_000)] = 1_000_000
    drain_s: Annotated[float, Field(gt=0)] = 7200
    window_s: Speed = 10
    progress_ms: Annotated[int, Field(ge=0)] = 250
    commit_ms: Annotated[float, Field(ge=0, le=1000)] | None = None
    check_every_steps: Annotated[int, Field(ge=0)] = 0
    pools: dict[Name, PoolSection] = Field({"pool": PoolSection()}, min_length=1)
    scheduler: SchedulerSection = SchedulerSection()
    workloads: list[WorkloadSection] = Field(min_length=1)
    faults: list[Fault] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_together(self) -> "Scenario":
        if self.warmup_s >= self.seconds:
            raise ValueError(f"warmup_s {self.warmup_s:g} leaves nothing of seconds {self.seconds:g} to count")
        names = [workload.name for workload in self.workloads]
        if len(set(names)) < len(names):
            raise ValueError(f"workload names must differ: {', '.join(names)}")
        classes = list(self.scheduler.classes)
        for workload in self.workloads:
            wanted = [workload.priority] if isinstance(workload.priority, str) else list(workload.priority)
            for priority in wanted:
                if priority not in classes:
                    raise ValueError(
                        f"workload {workload.name} uses class {priority}; scheduler.classes has {', '.join(classes)}"
                    )
        return self
