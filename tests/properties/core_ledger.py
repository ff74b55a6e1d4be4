"""The books of a world around the scheduler: who waits, who runs, who was answered.

Every command is held against them as it is heard; a broken promise is an assertion here.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from contracts.policies import SchedulerConfig
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    AnyCommand,
    AnyEvent,
    Finish,
    Forget,
    MeasurePrompt,
    RefuseReplica,
    Reject,
    SetTimer,
    Start,
    Stop,
)
from contracts.tasks import TaskInfo
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler
from tests.unit.core.core_kit import MS

SLOTS = {"r0": 1, "r1": 2, "r2": 3, "q0": 1}
SET_OF = {"r0": "set-a", "r1": "set-a", "r2": "set-a", "q0": "set-b"}
POOL_OF = {"r0": "pool-a", "r1": "pool-a", "r2": "pool-b", "q0": "pool-q"}
CLASSES = ("interactive", "batch")
TASKS_MAX = 6
CTX = 100


@dataclass
class Job:
    """The world's view of one task from its first submission until it is forgotten; `number`: its arrival."""

    info: TaskInfo
    set_id: str
    number: int
    measuring: bool = False
    admit: Admit | None = None
    finish: Finish | None = None
    cancel_answered: bool = False
    attempt: int = 0


@dataclass
class Attempt:
    """One Start. `live`: the replica has not reported its end. `held`: its slot is not free yet."""

    task_id: str
    attempt: int
    replica_id: str
    kv_tokens: int
    live: bool = True
    held: bool = True
    lost: bool = False


@dataclass
class Books:
    """Everything the world knows."""

    jobs: dict[str, Job] = field(default_factory=dict)
    queues: dict[tuple[str, str], list[Job]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    ready: dict[str, bool] = field(default_factory=dict)
    measures: list[tuple[str, int]] = field(default_factory=list)
    submissions: dict[int, int] = field(default_factory=dict)
    cancels: dict[int, int] = field(default_factory=dict)
    cancel_of: dict[int, str] = field(default_factory=dict)

    def busy(self, replica_id: str) -> int:
        return sum(a.held and a.replica_id == replica_id for a in self.attempts)

    def free(self, set_id: str) -> int:
        return sum(SLOTS[r] - self.busy(r) for r, up in self.ready.items() if up and SET_OF[r] == set_id)

    def line(self, job: Job) -> list[Job]:
        return self.queues.setdefault((job.set_id, job.info.priority), [])

    def join(self, job: Job) -> None:
        """A job waits, by arrival."""
        line = self.line(job)
        line.insert(sum(other.number < job.number for other in line), job)


class Ledger:
    """A scheduler, a clock, and the books."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.policies = {policy.set_id: policy for policy in config.sets}
        self.scheduler = Scheduler(config)
        self.books = Books()
        self.now_ns = 1_000 * MS
        self.alarm_ns: int | None = None
        self.history: list[tuple[int, AnyEvent]] = []
        self.heard: list[list[AnyCommand]] = []
        self.numbers = 0

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.scheduler.step(self.now_ns, event)
        invariants.check(self.scheduler)
        self.history.append((self.now_ns, event))
        self.heard.append(commands)
        for command in commands:
            self._hear(command)
        for set_id, policy in self.policies.items():
            waiting = [sum(j.attempt == 0 for j in self.books.queues.get((set_id, name), ())) for name in CLASSES]
            assert sum(waiting) <= policy.capacity
            assert all(count <= policy.queues[n].capacity for n, count in enumerate(waiting))
        assert sum(j.finish is not None for j in self.books.jobs.values()) <= TASKS_MAX + sum(SLOTS.values())
        return commands

    def _hear(self, command: AnyCommand) -> None:
        match command:
            case Admit():
                self._admitted(command)
            case Reject():
                self._rejected(command)
            case Start():
                self._started(command)
            case Stop():
                assert any(
                    a.live and (a.task_id, a.attempt) == (command.task_id, command.attempt) for a in self.books.attempts
                )
            case Finish():
                self._finished(command)
            case AnswerCancel():
                self._cancel_answered(command)
            case MeasurePrompt():
                assert self.books.ready[command.replica_id]
                self.books.measures.append((command.task_id, command.measurement))
            case Forget():
                assert self.books.jobs.pop(command.task_id).finish is not None
                mine = [a for a in self.books.attempts if a.task_id == command.task_id]
                assert not any(a.held for a in mine)
                self.books.attempts = [a for a in self.books.attempts if a not in mine]
            case RefuseReplica():
                self.books.ready[command.replica_id] = False
            case SetTimer():
                assert command.at_ns > self.now_ns
                self.alarm_ns = command.at_ns

    def _admitted(self, command: Admit) -> None:
        self.books.submissions[command.submission] += 1
        job = self.books.jobs[command.task_id]
        if command.replayed:
            assert job.admit is not None
            told = (job.admit.queue_position, job.admit.predicted_start_ms, job.admit.backoff_ms)
            assert (command.queue_position, command.predicted_start_ms, command.backoff_ms) == told
            return
        assert job.admit is None
        job.admit = command
        job.measuring = False
        at_once = bool(self.books.free(job.set_id))
        assert (command.predicted_start_ms == 0) == at_once
        self._check_position(job, command.queue_position, at_once)
        self.books.join(job)

    def _check_position(self, job: Job, position: int, at_once: bool) -> None:
        """Exact within the tenant's own line; what other lines let go first is an estimate."""
        waiting = [other for name in CLASSES for other in self.books.queues.get((job.set_id, name), ())]
        flow = (job.info.priority, job.info.tenant)
        own = [other for other in waiting if (other.info.priority, other.info.tenant) == flow]
        ahead = sum(other.number < job.number for other in own)
        if at_once:
            assert position == 0
        elif len(own) == len(waiting):
            assert position == ahead
        else:
            assert ahead <= position <= len(waiting)

    def _rejected(self, command: Reject) -> None:
        self.books.submissions[command.submission] += 1
        error = command.error
        assert error.retriable is not None
        limited = error.code in ("ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU")
        assert limited == (error.policy_label is not None)
        assert not limited or (error.retry_after_ms or 0) >= 1
        job = self.books.jobs.get(command.task_id)
        if job is not None and job.admit is None and error.code != "TASK_ID_CONFLICT":
            record = self.scheduler.task(command.task_id, job.info.tenant)
            if record is None:
                del self.books.jobs[command.task_id]

    def _started(self, command: Start) -> None:
        job = self.books.jobs[command.task_id]
        assert job.admit is not None
        assert job.finish is None
        assert not job.cancel_answered
        assert command.attempt == job.attempt + 1 <= 3
        # Highest class first, arrival order within it.
        for name in CLASSES[: CLASSES.index(job.info.priority)]:
            assert not self.books.queues.get((job.set_id, name))
        assert self.books.line(job).pop(0) is job
        # On a Ready replica of its set, the least loaded one, with a free slot.
        loads = {r: self._load(r) for r, up in self.books.ready.items() if up and SET_OF[r] == job.set_id}
        assert loads[command.replica_id] < 1
        assert loads[command.replica_id] == min(loads.values())
        job.attempt = command.attempt
        kv_tokens = self.scheduler.state.tasks[command.task_id].kv_tokens
        self.books.attempts.append(Attempt(command.task_id, command.attempt, command.replica_id, kv_tokens))

    def _load(self, replica_id: str) -> Fraction:
        """The larger of the fractions of slots and of KV taken; 1 without a free slot."""
        held = [a for a in self.books.attempts if a.held and a.replica_id == replica_id]
        slots = SLOTS[replica_id]
        if len(held) >= slots:
            return Fraction(1)
        return max(Fraction(len(held), slots), Fraction(sum(a.kv_tokens for a in held), slots * CTX))

    def _finished(self, command: Finish) -> None:
        job = self.books.jobs[command.task_id]
        assert job.admit is not None
        assert job.finish is None
        job.finish = command
        line = self.books.line(job)
        if job in line:
            line.remove(job)

    def _cancel_answered(self, command: AnswerCancel) -> None:
        self.books.cancels[command.request] += 1
        if command.found:
            job = self.books.jobs[self.books.cancel_of[command.request]]
            assert job.finish is not None
            job.cancel_answered = True
