"""The books of a world around the scheduler with all its policies: flows, quotas, canaries, preemption.

Every command is held against them as it is heard; a broken promise is an assertion here.
"""

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from contracts.policies import SchedulerConfig, TenantPolicy
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    AnswerClose,
    AnyCommand,
    AnyEvent,
    Finish,
    Forget,
    MeasurePrompt,
    Pause,
    Reject,
    SetTimer,
    Start,
    Stop,
    TaskSubmitted,
    TimerFired,
)
from contracts.tasks import ReplicaInfo, TaskInfo
from orchestrator.core import invariants
from orchestrator.core.digest import accounts, digest
from orchestrator.core.scheduler import Scheduler
from tests.unit.core.core_kit import MS

CLASSES = ("interactive", "batch", "idle")
CANARY_POOL = "pool-c"
CANARY_PERCENT = 30
MINUTE_NS = 60_000 * MS


@dataclass
class Job:
    """One task from its submission until it is forgotten. `number`: its arrival; `resume_tokens` are made again."""

    info: TaskInfo
    number: int
    admit: Admit | None = None
    deadline_ns: int = 0
    finish: Finish | None = None
    cancel_answered: bool = False
    waiting: bool = False
    attempt: int = 0
    preemptions: int = 0
    losses: int = 0
    resume_tokens: int = 0

    @property
    def flow(self) -> tuple[str, str]:
        return (self.info.priority, self.info.tenant)


@dataclass
class Attempt:
    """One Start. `live`: the replica has not reported its end. `held`: its slot is not free yet."""

    task_id: str
    attempt: int
    replica_id: str
    tokens: int = 0
    live: bool = True
    held: bool = True
    stop: Stop | None = None


@dataclass
class Books:
    """Everything the world knows."""

    jobs: dict[str, Job] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    ready: dict[str, ReplicaInfo] = field(default_factory=dict)
    measures: list[tuple[str, int]] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    subject: dict[int, str] = field(default_factory=dict)
    preempted_ns: list[int] = field(default_factory=list)

    def held(self, replica_id: str) -> int:
        return sum(a.held and a.replica_id == replica_id for a in self.attempts)

    def current(self, attempt: Attempt) -> Job | None:
        """The job of an attempt that counts."""
        job = self.jobs.get(attempt.task_id)
        if job is None or job.finish is not None or job.attempt != attempt.attempt or job.waiting:
            return None
        return job


class PoliciesLedger:
    """A scheduler, a clock, and the books."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        (self.policy,) = config.sets
        self.tenants: dict[str, TenantPolicy] = {tenant.tenant: tenant for tenant in config.tenants}
        self.canary = any(pool.canary_percent is not None for pool in self.policy.pools)
        self.scheduler = Scheduler(config)
        self.books = Books()
        self.now_ns = 1_000 * MS
        self.alarm_ns: int | None = None
        self.history: list[tuple[int, AnyEvent]] = []
        self.heard: list[list[AnyCommand]] = []
        self.numbers = 0

    def number(self, subject: str = "") -> int:
        """A new handle for something that is to be answered once."""
        self.numbers += 1
        self.books.answers[self.numbers] = 0
        self.books.subject[self.numbers] = subject
        return self.numbers

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.scheduler.step(self.now_ns, event)
        self.history.append((self.now_ns, event))
        self.heard.append(commands)
        invariants.check(self.scheduler)
        for command in commands:
            self._hear(command)
        begun = [c.task_id for c in commands if isinstance(c, Start | Finish)]
        for command in commands:
            if isinstance(command, Admit) and not command.replayed and not command.predicted_start_ms:
                assert command.task_id in begun, "told to start at once, and waits"
        for policy in self.tenants.values():
            held = [
                a for a in self.books.attempts if a.held and self.books.jobs[a.task_id].info.tenant == policy.tenant
            ]
            assert policy.max_concurrent is None or len(held) <= policy.max_concurrent
        return commands

    def submit(self, info: TaskInfo) -> list[AnyCommand]:
        """Submit a task; a refusal must have used up nothing."""
        number = self.number(info.task_id)
        known = info.task_id in self.books.jobs
        if not known:
            self.books.jobs[info.task_id] = Job(info, number)
        # Whatever is due happens first, so that the step is about the submission alone.
        self.tell(TimerFired())
        before = self._used()
        commands = self.tell(TaskSubmitted(number, info))
        if all(isinstance(command, Reject | SetTimer) for command in commands) and commands:
            refused = any(isinstance(c, Reject) and c.submission == number for c in commands)
            assert not refused or self._used() == before, "a refused submission used something up"
        return commands

    def _used(self) -> dict[str, Any]:
        """Accounts; buckets fall as time passes, so this is to be compared at one instant."""
        return accounts(self.scheduler)

    # ------------------------------------------------------------------ hearing

    def _hear(self, command: AnyCommand) -> None:
        match command:
            case Admit():
                self._admitted(command)
            case Reject():
                self._rejected(command)
            case Start():
                self._started(command)
            case Stop():
                self._stopped(command)
            case Pause():
                self._paused(command)
            case Finish():
                self._finished(command)
            case AnswerCancel():
                self.books.answers[command.request] += 1
                if command.found:
                    job = self.books.jobs[self.books.subject[command.request]]
                    assert job.finish is not None
                    job.cancel_answered = True
            case AnswerClose():
                self.books.answers[command.request] += 1
            case MeasurePrompt():
                assert command.replica_id in self.books.ready
                self.books.measures.append((command.task_id, command.measurement))
            case Forget():
                assert self.books.jobs.pop(command.task_id).finish is not None
                assert not any(a.held for a in self.books.attempts if a.task_id == command.task_id)
                self.books.attempts = [a for a in self.books.attempts if a.task_id != command.task_id]
            case SetTimer():
                assert command.at_ns > self.now_ns
                self.alarm_ns = command.at_ns

    def _admitted(self, command: Admit) -> None:
        self.books.answers[command.submission] += 1
        job = self.books.jobs[command.task_id]
        assert 0.0 <= command.on_time_probability <= 1.0
        if command.replayed:
            assert job.admit is not None
            assert command.on_time_probability == job.admit.on_time_probability
            return
        assert job.admit is None
        own = [j for j in self.books.jobs.values() if j.waiting and j.flow == job.flow]
        job.admit = command
        job.waiting = True
        job.deadline_ns = self.now_ns + job.info.deadline_ms * MS
        if command.predicted_start_ms:
            assert command.queue_position >= sum(self._key(other) < self._key(job) for other in own)
        else:
            assert command.queue_position == 0

    def _rejected(self, command: Reject) -> None:
        self.books.answers[command.submission] += 1
        error = command.error
        if error.code in ("ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU"):
            assert error.policy_label is not None
            assert not error.retriable or (error.retry_after_ms or 0) >= 1
        elif error.code == "DEADLINE_UNMET":
            assert error.earliest_deadline_ms is not None
            assert self.policy.on_time_percent_min
        elif error.code == "FORBIDDEN":
            assert self.config.default_tenant is None
        job = self.books.jobs.get(command.task_id)
        if job is not None and job.admit is None and self.scheduler.task(command.task_id, job.info.tenant) is None:
            del self.books.jobs[command.task_id]

    def _started(self, command: Start) -> None:
        books, job = self.books, self.books.jobs[command.task_id]
        assert job.admit is not None
        assert job.finish is None
        assert job.waiting, "a preempted task starts again without having been paused"
        assert not job.cancel_answered
        assert command.attempt == job.attempt + 1 <= 3 + job.preemptions + job.losses
        assert command.resume_tokens == job.resume_tokens
        info = books.ready[command.replica_id]
        assert books.held(command.replica_id) == command.busy < info.slots == command.slots
        if command.placement != "handed-over":
            others = [j for j in books.jobs.values() if j.waiting and j.flow == job.flow and j is not job]
            passed = [other.info.task_id for other in others if self._key(other) < self._key(job)]
            assert not passed, f"{job.info.task_id} starts before {passed} of its flow"
        assert command.warm == (command.placement == "affinity")
        if self.canary and not command.warm:
            self._check_side(job, info)
        job.waiting = False
        job.attempt = command.attempt
        books.attempts.append(Attempt(command.task_id, command.attempt, command.replica_id))

    def _check_side(self, job: Job, info: ReplicaInfo) -> None:
        """A session of the main pools is served by a canary only when nothing else is Ready."""
        if info.pool_id == CANARY_POOL and crc32(job.info.session_id.encode()) % 100 >= CANARY_PERCENT:
            assert all(other.pool_id == CANARY_POOL for other in self.books.ready.values())

    def _key(self, job: Job) -> tuple[int, int]:
        return (job.deadline_ns if self.policy.ordering == "edf" else 0, job.number)

    def _stopped(self, command: Stop) -> None:
        books = self.books
        (attempt,) = [a for a in books.attempts if (a.task_id, a.attempt) == (command.task_id, command.attempt)]
        victim = books.current(attempt)
        assert victim is not None
        assert attempt.live
        assert attempt.stop is None
        attempt.stop = command
        if command.reason != "preempt":
            return
        preemption = self.policy.preemption
        heir = books.jobs[command.for_task]
        assert preemption.mode == "hard"
        assert CLASSES.index(heir.info.priority) < CLASSES.index(victim.info.priority)
        assert victim.info.priority not in preemption.protect
        assert books.ready[command.replica_id].interruptible_decode
        assert victim.info.determinism == "strict" or not (attempt.tokens or victim.resume_tokens)
        victim.preemptions += 1
        assert victim.preemptions <= preemption.per_task_max
        books.preempted_ns.append(self.now_ns)
        recent = sum(at_ns > self.now_ns - MINUTE_NS for at_ns in books.preempted_ns)
        # A full bucket and what flows into it meanwhile.
        assert recent <= 2 * preemption.max_per_min

    def _paused(self, command: Pause) -> None:
        books, job = self.books, self.books.jobs[command.task_id]
        assert job.finish is None
        assert not job.waiting
        (attempt,) = [a for a in books.attempts if (a.task_id, a.attempt) == (command.task_id, command.attempt)]
        if command.cause == "lost":
            assert job.info.determinism == "strict" or not max(attempt.tokens, job.resume_tokens)
        else:
            assert attempt.stop is not None
            assert attempt.stop.reason == "preempt"
        assert command.predicted_start_ms >= 0
        job.waiting = True
        job.resume_tokens = max(job.resume_tokens, attempt.tokens)

    def _finished(self, command: Finish) -> None:
        job = self.books.jobs[command.task_id]
        assert job.admit is not None
        assert job.finish is None
        if command.outcome.state == "dropped":
            assert job.attempt == 0, "what has started is not dropped"
        job.finish = command
        job.waiting = False

    # ------------------------------------------------------------------ the end

    def check_over(self) -> None:
        """Nothing is left open, and the same history gives the same commands and the same state."""
        assert [task_id for task_id, job in self.books.jobs.items() if job.finish is None] == []
        assert {number: count for number, count in self.books.answers.items() if count != 1} == {}
        again = Scheduler(self.config)
        assert [again.step(now_ns, event) for now_ns, event in self.history] == self.heard
        assert digest(again) == digest(self.scheduler)
