"""Builders of events, and a scheduler on a hand-moved clock whose invariants are checked after every step."""

import hashlib
from typing import Any, TypeVar

import msgspec

from contracts.errors import ErrorInfo, PolicyLabel
from contracts.policies import PoolPolicy, QueuePolicy, ResultPolicy, SchedulerConfig, SetPolicy
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    CancelRequested,
    MeasurePrompt,
    PromptMeasured,
    ReplicaReady,
    SetTimer,
    Start,
    TaskSubmitted,
    TimerFired,
)
from contracts.tasks import ReplicaInfo, TaskInfo
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler

MS = 1_000_000
TENANT = "acme"
C = TypeVar("C", bound=msgspec.Struct)


def queue(priority: str, capacity: int = 8, policy: PolicyLabel = "reject", **more: Any) -> QueuePolicy:
    return QueuePolicy(priority, capacity, policy, **more)


def replica_set(**over: Any) -> SetPolicy:
    values: dict[str, Any] = {
        "set_id": "set-a",
        "engine": "llamacpp",
        "model_refs": ("small", "sha256:aa"),
        "ctx": 100,
        "sampler_profile_version": "v1",
        "pool_ids": ("pool-a",),
        "capacity": 16,
        "queues": (queue("interactive"), queue("batch", policy="drop-lru")),
        "wall_timeout_ms": 10_000,
        "idle_timeout_ms": 1_000,
        # The plainest policies, so that a test shows what it is about; the others name theirs.
        "fairness": "strict",
        "ordering": "fifo",
        "eviction": "lru",
        "on_time_percent_min": 0,
    }
    values |= over
    pools = tuple(PoolPolicy(pool_id) for pool_id in values.pop("pool_ids"))
    values.setdefault("pools", pools)
    return SetPolicy(**values)


def config(
    *sets: SetPolicy, ttl_ms: int = 60_000, tasks_max: int = 100, bytes_max: int = 10_000, **more: Any
) -> SchedulerConfig:
    return SchedulerConfig(sets or (replica_set(),), ResultPolicy(ttl_ms, tasks_max, bytes_max), **more)


def task(task_id: str, **over: Any) -> TaskInfo:
    values: dict[str, Any] = {
        "task_id": task_id,
        "session_id": "session",
        "tenant": TENANT,
        "workload": "completion",
        "engine": "llamacpp",
        "model_ref": "small",
        "ctx": 100,
        "priority": "interactive",
        "max_tokens": 10,
        "deadline_ms": 600_000,
        "seed": 1,
        "determinism": "strict",
        "sampler_profile_version": "v1",
        "prompt_bytes": 5,
        "templated": False,
        "body_digest": b"body",
    }
    return TaskInfo(**{**values, **over})


def replica(replica_id: str = "r0", **over: Any) -> ReplicaInfo:
    values: dict[str, Any] = {
        "replica_id": replica_id,
        "pool_id": "pool-a",
        "engine": "llamacpp",
        "engine_version": "b1",
        "model_digest": "sha256:aa",
        "ctx": 100,
        "slots": 1,
        "sampler_profile_version": "v1",
        "accelerator": "cpu-dev",
        "node_id": "n0",
        "token_ns": 10 * MS,
    }
    return ReplicaInfo(**{**values, **over})


def ended(task_id: str, attempt: int = 1, replica_id: str = "r0", **over: Any) -> AttemptEnded:
    values: dict[str, Any] = {"result": "finished", "slot_free": True, "tokens_out": 10, "finish_reason": "length"}
    if over.get("result", "finished") != "finished":
        values.update(finish_reason=None, tokens_out=0)
    return AttemptEnded(task_id, attempt, replica_id, **{**values, **over})


def of(commands: list[AnyCommand], kind: type[C]) -> list[C]:
    """The commands of one type, in order."""
    return [command for command in commands if isinstance(command, kind)]


def started(commands: list[AnyCommand]) -> list[tuple[str, int, str]]:
    """(task, attempt, replica) of each attempt that is to run, in order."""
    return [(command.task_id, command.attempt, command.replica_id) for command in of(commands, Start)]


def one(commands: list[AnyCommand], kind: type[C]) -> C:
    """The only command of one type."""
    (only,) = of(commands, kind)
    return only


class Core:
    """A scheduler under test. `now_ms` only moves when a test moves it."""

    def __init__(self, *sets: SetPolicy, ready: tuple[ReplicaInfo, ...] = (), **more: Any) -> None:
        self.scheduler = Scheduler(config(*sets, **more))
        self.now_ms = 1_000
        self.alarm_ns: int | None = None
        self.numbers = 0
        self.measurements: dict[str, int] = {}
        for info in ready:
            self.tell(ReplicaReady(info))

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.scheduler.step(self.now_ms * MS, event)
        invariants.check(self.scheduler)
        for command in of(commands, SetTimer):
            self.alarm_ns = command.at_ns
        self.measurements |= {command.task_id: command.measurement for command in of(commands, MeasurePrompt)}
        return commands

    def measured(self, task_id: str, prompt_tokens: int, error: ErrorInfo | None = None) -> list[AnyCommand]:
        return self.tell(PromptMeasured(task_id, self.measurements[task_id], prompt_tokens, error))

    def submit(self, task_id: str, **over: Any) -> list[AnyCommand]:
        self.numbers += 1
        return self.tell(TaskSubmitted(self.numbers, task(task_id, **over)))

    def cancel(self, task_id: str, tenant: str = TENANT) -> list[AnyCommand]:
        self.numbers += 1
        return self.tell(CancelRequested(self.numbers, task_id, tenant))

    def pass_ms(self, duration_ms: int) -> list[AnyCommand]:
        """Let time pass as a shell does: the timer fires when it is due, and only then."""
        until_ms = self.now_ms + duration_ms
        commands: list[AnyCommand] = []
        while self.alarm_ns is not None and self.alarm_ns <= until_ms * MS:
            self.now_ms = max(self.now_ms, -(-self.alarm_ns // MS))
            self.alarm_ns = None
            commands += self.tell(TimerFired())
        self.now_ms = until_ms
        return commands

    def state_of(self, task_id: str) -> str | None:
        status = self.scheduler.status(self.now_ms * MS, task_id, TENANT)
        return None if status is None else status.state


def scripted_digest(steps: int = 400) -> str:
    """sha256 over the commands of a fixed, busy script; the same in every process."""
    core = Core(
        replica_set(capacity=6, queues=(queue("interactive", 4, "shed-low-priority"), queue("batch", 4, "drop-lru"))),
        ready=(replica("r0", slots=2), replica("r1")),
        tasks_max=5,
    )
    digest = hashlib.sha256()
    running: list[tuple[str, int, str]] = []
    chance = 12345
    for n in range(steps):
        chance = (chance * 1103515245 + 12345) % 2**31
        pick = chance >> 16
        if pick % 3 == 0 and running:
            result = "failed" if pick % 2 else "finished"
            commands = core.tell(ended(*running.pop(pick % len(running)), result=result))
        elif pick % 7 == 1:
            commands = core.cancel(f"t{n - 3}")
        elif pick % 7 == 2:
            commands = core.pass_ms(pick % 900)
        else:
            commands = core.submit(f"t{n}", priority="batch" if pick % 2 else "interactive", templated=pick % 5 == 0)
        running += [(s.task_id, s.attempt, s.replica_id) for s in commands if type(s).__name__ == "Start"]
        digest.update(msgspec.msgpack.encode(commands))
    return digest.hexdigest()
