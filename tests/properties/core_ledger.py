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
    AttemptEnded,
    Finish,
    Forget,
    MeasurePrompt,
    Pause,
    RefuseReplica,
    Reject,
    RunningAttempt,
    SetTimer,
    Start,
    Stop,
)
from contracts.tasks import TaskInfo
from orchestrator.core import invariants
from orchestrator.core.failover import CRASHES_MAX
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
    #: The last attempt of an earlier task of its id that a replica told of.
    taken: int = 0
    #: The attempt that runs as far as the scheduler knows.
    present: "Attempt | None" = None
    #: The most tokens that the scheduler was told of, over all attempts.
    told: int = 0
    crashes: int = 0
    engine_ends: int = 0
    diverged: bool = False


@dataclass(eq=False)
class Attempt:
    """One Start. `live`: the engine works on it. `held`: its slot is not free yet. `tokens`: how many it made.

    `told`: the scheduler knows that it is over.
    """

    task_id: str
    attempt: int
    replica_id: str
    kv_tokens: int
    job: Job
    live: bool = True
    held: bool = True
    tokens: int = 0
    told: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.attempt

    def running(self) -> RunningAttempt:
        """What its replica tells of it on a new link."""
        return RunningAttempt(self.task_id, self.attempt, self.tokens, 7, over=not self.live)


@dataclass
class Books:
    """Everything the world knows."""

    jobs: dict[str, Job] = field(default_factory=dict)
    queues: dict[tuple[str, str], list[Job]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    ready: dict[str, bool] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    #: Ends that were not confirmed, per replica; some were told.
    ends: dict[str, list[AttemptEnded]] = field(default_factory=dict)
    #: Tasks that are forgotten, of which a replica came back with an attempt.
    ghosts: dict[str, None] = field(default_factory=dict)
    journal_down: bool = False
    measures: list[tuple[str, int]] = field(default_factory=list)
    submissions: dict[int, int] = field(default_factory=dict)
    cancels: dict[int, int] = field(default_factory=dict)
    cancel_of: dict[int, str] = field(default_factory=dict)

    def busy(self, replica_id: str) -> int:
        return sum(a.held and a.replica_id == replica_id for a in self.attempts)

    def free(self, set_id: str) -> int:
        return sum(SLOTS[r] - self.busy(r) for r, up in self.ready.items() if up and SET_OF[r] == set_id)

    def on(self, replica_id: str) -> list[Attempt]:
        """What occupies slots of a replica, whether or not the scheduler hears of it."""
        return [a for a in self.attempts if a.held and a.replica_id == replica_id]

    def waiting(self, set_id: str) -> list[Job]:
        return [job for name in CLASSES for job in self.queues.get((set_id, name), ())]

    def suspect_on(self, replica_id: str) -> bool:
        return any(a.job.crashes and a.job.present is a for a in self.on(replica_id))

    def kept_apart(self, job: Job) -> bool:
        """Whether a suspect finds another one on each replica that has a slot for it."""
        roomy = [r for r, up in self.ready.items() if up and SET_OF[r] == job.set_id and self.busy(r) < SLOTS[r]]
        return job.crashes > 0 and all(self.suspect_on(r) for r in roomy)

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
            assert len({id(job) for job in self.books.waiting(set_id)}) == len(self.books.waiting(set_id))
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
                self._stopped(command)
            case Pause():
                assert command.cause == "lost"
            case Finish():
                self._finished(command)
            case AnswerCancel():
                self._cancel_answered(command)
            case MeasurePrompt():
                assert self.books.ready[command.replica_id]
                self.books.measures.append((command.task_id, command.measurement))
            case Forget():
                self._forgotten(command)
            case RefuseReplica():
                # It ends, and all that it ran with it.
                self.books.ready[command.replica_id] = False
                self.dead(command.replica_id)
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
        at_once = bool(self.books.free(job.set_id)) and not self.books.waiting(job.set_id)
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
        assert not self.books.journal_down, "nothing starts while it cannot be kept"
        assert command.attempt == max(job.attempt, job.taken) + 1
        assert job.present is None
        assert command.resume_tokens == job.told
        assert job.info.determinism == "strict" or not job.told
        # Highest class first, arrival order within it; what is kept apart from its like is gone by.
        for name in CLASSES[: CLASSES.index(job.info.priority)]:
            higher = self.books.queues.get((job.set_id, name), ())
            assert all(self.books.kept_apart(each) for each in higher)
        line = self.books.line(job)
        before = line[: line.index(job)]
        assert all(self.books.kept_apart(each) for each in before if each.info.tenant == job.info.tenant)
        assert not before or any(self.books.kept_apart(each) for each in before)
        line.remove(job)
        # On a Ready replica of its set with a free slot, the least loaded of those that take it.
        loads = {r: self._load(r) for r, up in self.books.ready.items() if up and SET_OF[r] == job.set_id}
        if job.crashes:
            loads = {r: load for r, load in loads.items() if not self.books.suspect_on(r)}
        assert loads[command.replica_id] < 1
        assert loads[command.replica_id] == min(loads.values())
        job.attempt = command.attempt
        kv_tokens = self.scheduler.state.tasks[command.task_id].kv_tokens
        job.present = Attempt(command.task_id, command.attempt, command.replica_id, kv_tokens, job)
        self.books.attempts.append(job.present)

    def _stopped(self, command: Stop) -> None:
        (mine,) = [
            a for a in self.books.on(command.replica_id) if a.live and a.key == (command.task_id, command.attempt)
        ]
        assert (mine.job.present is mine) == (command.reason != "stale")
        assert self.books.ready[command.replica_id]

    def _forgotten(self, command: Forget) -> None:
        """Nothing of the task occupies a slot that the scheduler knows of; replicas that are away may have some."""
        job = self.books.jobs.pop(command.task_id, None)
        assert (job is None) == (command.task_id in self.books.ghosts)
        self.books.ghosts.pop(command.task_id, None)
        assert job is None or job.finish is not None
        mine = [a for a in self.books.attempts if a.task_id == command.task_id]
        assert not any(a.held and self.books.ready.get(a.replica_id) for a in mine)
        self.books.attempts = [a for a in self.books.attempts if a not in mine or a.held]

    # ------------------------------------------------------------------ replicas

    def dead(self, replica_id: str) -> None:
        """An engine is gone, and all that was on it."""
        for attempt in self.books.on(replica_id):
            attempt.live = attempt.held = False
        self.books.ends.pop(replica_id, None)

    def lose(self, replica_id: str, *, crashed: bool) -> None:
        """The scheduler is about to hear that a replica is not there: what runs on it waits again, or ends."""
        for attempt in self.books.on(replica_id):
            job = attempt.job
            if job.present is attempt:
                job.present = None
                # One that is being stopped ends; whatever crashes meanwhile is not its doing.
                job.crashes += crashed and self.scheduler.state.tasks[attempt.task_id].state == "running"
                self.books.join(job)

    def takes_up(self, replica_id: str, told: tuple[AttemptEnded, ...]) -> list[Attempt]:
        """The attempts that a replica which comes back may go on with, ended ones included."""
        ends = [(end.task_id, end.attempt) for end in told]
        found = []
        for attempt in [a for a in self.books.attempts if a.replica_id == replica_id]:
            job = attempt.job
            waits = job.attempt == attempt.attempt and job in self.books.line(job)
            if waits and (attempt.live or (attempt.key in ends and not attempt.told)):
                found.append(attempt)
        return found

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
        job.present = None
        outcome = command.outcome
        assert not job.diverged or (outcome.state, outcome.error and outcome.error.retriable) == ("failed", False)
        assert job.crashes < CRASHES_MAX or (outcome.error is not None and "quarantined" in outcome.error.message)
        line = self.books.line(job)
        if job in line:
            line.remove(job)

    def _cancel_answered(self, command: AnswerCancel) -> None:
        self.books.cancels[command.request] += 1
        if command.found:
            job = self.books.jobs[self.books.cancel_of[command.request]]
            assert job.finish is not None
            job.cancel_answered = True
