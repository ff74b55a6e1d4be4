"""The load that the core is measured under: a queue that is kept at one length, on a clock moved by hand.

Every cycle a running task ends and its tenant submits another in the same class, so that the lines of all
tenants stay as long as they are. Times told to the core agree with each other: tasks end when their decoding
is over, and deadlines lie three to six times as far as the queue is long. Only the calls of `step` are timed.
"""

import gc
import time
from collections import deque
from typing import Final, Literal

import msgspec

from contracts.policies import (
    BreakerPolicy,
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
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    CancelRequested,
    Finish,
    Reject,
    ReplicaReady,
    SetTimer,
    Start,
    TaskSubmitted,
    TimerFired,
    TokensProgressed,
)
from contracts.tasks import ReplicaInfo, TaskInfo
from orchestrator.core.scheduler import Scheduler

CTX: Final = 4096
MAX_TOKENS: Final = 128
PROMPT_TOKENS: Final = 50
PROMPT_BYTES: Final = 200
TOKEN_NS: Final = 10_000_000
FIRST_TOKEN_NS: Final = 20_000_000
OUTPUT_TOKENS_MIN: Final = 30
OUTPUT_TOKENS_SPREAD: Final = 61
#: Mean slot time of a task.
SERVICE_NS: Final = FIRST_TOKEN_NS + TOKEN_NS * (OUTPUT_TOKENS_MIN + OUTPUT_TOKENS_SPREAD // 2 - 1)
TENANTS: Final = 16
WEIGHTS: Final = tuple(1 + n % 4 for n in range(TENANTS))
SESSIONS: Final = 4096
#: More than any run reaches: quotas and budgets are looked at and charged, and refuse nothing.
AMPLE: Final = 10**9
#: Steps that walk the mix of tenants and classes in scattered order; coprime to its length.
MIX_STRIDE: Final = 151
DEADLINE_STRIDE: Final = 7919
CLASSES: Final = (("interactive", 8), ("batch", 1))

Policies = Literal["all", "breakers", "plain"]
#: One (tenant, class) for each part of a weight, so that every line is served as fast as it fills.
MIX: Final = tuple(
    (f"tenant-{n}", name) for name, weight in CLASSES for n in range(TENANTS) for _ in range(weight * WEIGHTS[n])
)


class Scenario(msgspec.Struct, frozen=True):
    """How many tasks wait, how many replicas of how many slots serve, and which policies are on.

    `all` has every policy but breakers, which are off unless configured; `plain` the strict priority
    classes in order of arrival, without deadlines, quotas and budgets.
    """

    queue: int
    replicas: int = 16
    slots: int = 4
    policies: Policies = "all"


def scheduler_config(scenario: Scenario) -> SchedulerConfig:
    """One replica set, with everything on that the scenario asks for and room for twice its queue."""
    plain = scenario.policies == "plain"
    capacity = 2 * scenario.queue + 1000
    policy = SetPolicy(
        set_id="set",
        engine="llamacpp",
        model_refs=("small",),
        ctx=CTX,
        sampler_profile_version="v1",
        pools=(PoolPolicy("pool"),),
        capacity=capacity,
        queues=tuple(QueuePolicy(name, capacity, "reject", weight) for name, weight in CLASSES),
        wall_timeout_ms=3_600_000,
        idle_timeout_ms=3_600_000,
        fairness="strict" if plain else "wfq",
        ordering="fifo" if plain else "edf",
        eviction="lru" if plain else "eta",
        on_time_percent_min=0 if plain else 50,
        preemption=PreemptionPolicy() if plain else PreemptionPolicy("soft"),
        breaker=BreakerPolicy(violations_percent=100) if scenario.policies == "breakers" else None,
    )
    results = ResultPolicy(ttl_ms=60_000, tasks_max=1000, bytes_max=10**9)
    if plain:
        return SchedulerConfig((policy,), results)
    rate = RatePolicy(float(AMPLE), AMPLE)
    return SchedulerConfig(
        (policy,),
        results,
        tenants=tuple(
            TenantPolicy(f"tenant-{n}", weight, AMPLE, rate, AMPLE, AMPLE) for n, weight in enumerate(WEIGHTS)
        ),
        default_client=rate,
        sessions=SessionPolicy(budget=BudgetPolicy(tokens=10**15, time_ms=10**15)),
    )


class Loop:
    """A scheduler whose slots are all taken and whose queue is kept at the scenario's length."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler(scheduler_config(scenario))
        self.now_ns = 1_000_000_000
        self.submitted = 0
        self.finished = 0
        self._running: deque[Start] = deque()
        self._mix_of: dict[str, tuple[str, str]] = {}
        self._alarm_ns: int | None = None
        slots = scenario.replicas * scenario.slots
        self._interval_ns = max(1, SERVICE_NS // slots)
        self._deadline_ms = 3 * (scenario.queue * self._interval_ns + SERVICE_NS) // 1_000_000 + 10_000
        for n in range(scenario.replicas):
            self._step(ReplicaReady(self._replica(n)))
        for _ in range(slots):
            self._step(self._submission(MIX[self.submitted * MIX_STRIDE % len(MIX)]))

    def fill(self, waiting: int) -> None:
        """Submit tasks until so many wait."""
        while self.submitted - self.finished - len(self._running) < waiting:
            self._step(self._submission(MIX[self.submitted * MIX_STRIDE % len(MIX)]))

    def run(self, cycles: int, batch: int = 100) -> tuple[int, int]:
        """CPU nanoseconds of submitting and of ending `cycles` tasks, a batch of either at a time."""
        end_ns = submit_ns = 0
        for _ in range(cycles // batch):
            begun_ns = time.process_time_ns()
            left = [self._end_oldest() for _ in range(batch)]
            end_ns += time.process_time_ns() - begun_ns
            events = [self._submission(mix) for mix in left]
            begun_ns = time.process_time_ns()
            for event in events:
                self._step(event)
            submit_ns += time.process_time_ns() - begun_ns
        return submit_ns, end_ns

    def cancel(self, count: int) -> int:
        """CPU nanoseconds to cancel the `count` tasks that came last; the queue is filled up again afterwards."""
        last = list(self._mix_of.items())[-count:]
        events = [CancelRequested(n, task_id, mix[0]) for n, (task_id, mix) in enumerate(last)]
        begun_ns = time.process_time_ns()
        for event in events:
            self._step(event)
        cost_ns = time.process_time_ns() - begun_ns
        for _, mix in last:
            self._step(self._submission(mix))
        return cost_ns

    def progress(self, count: int) -> int:
        """CPU nanoseconds to take in `count` reports of running tasks."""
        starts = list(self._running)
        events = [
            TokensProgressed(start.task_id, start.attempt, 1 + n // len(starts), n)
            for n, start in zip(range(count), starts * (count // len(starts) + 1), strict=False)
        ]
        begun_ns = time.process_time_ns()
        for event in events:
            self._step(event)
        return time.process_time_ns() - begun_ns

    def status(self, count: int) -> int:
        """CPU nanoseconds to tell the status of `count` waiting tasks."""
        last = list(self._mix_of.items())[-count:]
        begun_ns = time.process_time_ns()
        for task_id, mix in last:
            self.scheduler.status(self.now_ns, task_id, mix[0])
        return time.process_time_ns() - begun_ns

    def garbage(self, cycles: int) -> int:
        """Objects that only a garbage collection frees, after so many cycles without one."""
        gc.collect()
        gc.disable()
        try:
            self.run(cycles)
            return gc.collect()
        finally:
            gc.enable()

    # ------------------------------------------------------------------ parts

    def _step(self, event: AnyEvent) -> None:
        self._take_in(self.scheduler.step(self.now_ns, event))
        while self._alarm_ns is not None and self._alarm_ns <= self.now_ns:
            self._alarm_ns = None
            self._take_in(self.scheduler.step(self.now_ns, TimerFired()))

    def _take_in(self, commands: list[AnyCommand]) -> None:
        for command in commands:
            if type(command) is Start:
                self._running.append(command)
            elif type(command) is SetTimer:
                self._alarm_ns = command.at_ns
            elif type(command) is Finish:
                self.finished += 1
                del self._mix_of[command.task_id]
            elif type(command) is Reject:
                raise RuntimeError(f"the load is meant to be admitted: {command.error.message}")

    def _end_oldest(self) -> tuple[str, str]:
        start = self._running.popleft()
        mix = self._mix_of[start.task_id]
        tokens = OUTPUT_TOKENS_MIN + self.finished * 37 % OUTPUT_TOKENS_SPREAD
        self.now_ns += self._interval_ns
        self._step(
            AttemptEnded(
                start.task_id,
                start.attempt,
                start.replica_id,
                "finished",
                True,
                PROMPT_TOKENS,
                tokens,
                0,
                FIRST_TOKEN_NS,
                TOKEN_NS * (tokens - 1),
                4 * tokens,
                "stop",
            )
        )
        return mix

    def _submission(self, mix: tuple[str, str]) -> TaskSubmitted:
        n = self.submitted = self.submitted + 1
        task_id = f"task-{n:09}"
        self._mix_of[task_id] = mix
        task = TaskInfo(
            task_id=task_id,
            session_id=f"session-{n % SESSIONS}",
            tenant=mix[0],
            workload="completion",
            engine="llamacpp",
            model_ref="small",
            ctx=CTX,
            priority=mix[1],
            max_tokens=MAX_TOKENS,
            deadline_ms=self._deadline_ms + n * DEADLINE_STRIDE % self._deadline_ms,
            seed=n,
            determinism="strict",
            sampler_profile_version="v1",
            prompt_bytes=PROMPT_BYTES,
            templated=False,
            body_digest=b"0123456789abcdef",
            client="key",
        )
        return TaskSubmitted(n, task)

    def _replica(self, n: int) -> ReplicaInfo:
        return ReplicaInfo(
            replica_id=f"replica-{n:05}",
            pool_id="pool",
            engine="llamacpp",
            engine_version="b1",
            model_digest="sha256:aa",
            ctx=CTX,
            slots=self.scenario.slots,
            sampler_profile_version="v1",
            accelerator="cpu-dev",
            node_id=f"node-{n // 8}",
            token_ns=TOKEN_NS,
            interruptible_decode=True,
            kv_token_bytes=1,
            keeps_kv=True,
        )
