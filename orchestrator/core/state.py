"""All the scheduler knows, and the few changes that every part of it makes."""

from contracts.errors import ErrorInfo
from contracts.policies import SchedulerConfig
from contracts.scheduling import Admit, AnswerCancel, AnyCommand, DropTranscript, Finish, Forget, Reject
from contracts.tasks import Outcome
from orchestrator.core.changes import Changes
from orchestrator.core.flows import Flow
from orchestrator.core.lifecycle import advance
from orchestrator.core.placement import Replica
from orchestrator.core.pools import generations
from orchestrator.core.pools.records import Pools
from orchestrator.core.quotas import Quotas
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.residency import Residency
from orchestrator.core.retention import Retention
from orchestrator.core.routes import Routes
from orchestrator.core.sessions import Sessions
from orchestrator.core.timers import Timers

#: Timer key of retention; task ids are never empty.
RETENTION_KEY = ""


class State:
    """Tables, and the commands of the step under way. Iteration is over dicts and lists only, never sets."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.residency = Residency()
        #: What changed in this step of what is kept.
        self.changes = Changes()
        #: Grows and shrinks as pools are given other models.
        self.sets = [ReplicaSet(policy, self.residency) for policy in config.sets]
        self.set_of_pool = {pool_id: home for home in self.sets for pool_id in home.policy.pool_ids}
        self.routes = Routes()
        self.quotas = Quotas(config)
        self.sessions = Sessions(config.sessions, self.residency, self.changes)
        self.tasks: dict[str, TaskRecord] = {}
        self.replicas: dict[str, Replica] = {}
        self.timers = Timers()
        self.retention = Retention(config.results)
        self.results = config.results
        self.now_ns = 0
        self.out: list[AnyCommand] = []
        self.dispatch_due: list[ReplicaSet] = []
        self.trim_due = False
        #: Flows of tenants that are at their quota of running tasks.
        self.blocked: dict[str, list[tuple[ReplicaSet, Flow[TaskRecord]]]] = {}
        self._sequence = 0
        #: After a recovery: replicas that may still run what was kept. Nothing is started while any is awaited.
        self.awaited: dict[str, None] = {}
        #: The tasks that each of them may run, and those whose replica told that by now: some were not taken up.
        self.awaited_tasks: dict[str, list[str]] = {}
        self.told_tasks: list[str] = []
        #: All of them are back, and what waited for that is still to be dealt with.
        self.hold_over = False
        #: Until when they are waited for, and every set is a waiting room; 0: there was no recovery, or it is over.
        self.recovery_until_ns = 0
        #: Live tasks that started, of which nobody knows what they delivered, and that cannot be made again.
        self.unsure: dict[str, None] = {}
        #: Why nothing can be made durable at present.
        self.journal_down = ""
        #: Tasks given up since their admission could not be made durable, until they are forgotten.
        self.undone: dict[str, None] = {}
        #: The service is about to end: nothing is admitted or started any more.
        self.is_ending = False
        #: Who waits for that, and until when at most; 0: nobody does.
        self.ending_requests: list[int] = []
        self.ending_until_ns = 0
        self.pools = Pools()
        generations.start(self, config)

    def begin_step(self, now_ns: int) -> None:
        """Start a step. Time never runs backwards here, whatever the shell's clock does."""
        if now_ns > self.now_ns:
            self.now_ns = now_ns
        self.out = []
        if self.changes.any:
            self.changes.clear()

    def next_sequence(self) -> int:
        """A number above all given before; breaks ties."""
        self._sequence += 1
        return self._sequence

    def number_after(self, sequence: int) -> None:
        """All numbers given from now on are above this one, too."""
        self._sequence = max(self._sequence, sequence)

    def want_dispatch(self, home: ReplicaSet) -> None:
        """Something changed that may let a task of this set start."""
        if not home.dispatch_due:
            home.dispatch_due = True
            self.dispatch_due.append(home)

    @property
    def is_held(self) -> bool:
        """Whether no task may be started now. A start that cannot be made durable would wait at the shell."""
        return self.is_ending or bool(self.awaited) or self.hold_over or bool(self.journal_down)

    def is_back(self, replica_id: str) -> None:
        """A replica told what it runs, or will not come back: it is awaited no longer."""
        if self.awaited.pop(replica_id, replica_id) is None:
            self.told_tasks += self.awaited_tasks.pop(replica_id, ())
            self.hold_over = not self.awaited
            # Whether it is idle is known now.
            self.pools.touched = True
            # Before this step ends, `recovery.due` has the rest to do.
            self.timers.service_ns = self.now_ns

    def set_alarm(self) -> None:
        """The service's own instants changed: be woken at the earlier one."""
        instants = [at_ns for at_ns in (self.recovery_until_ns, self.ending_until_ns) if at_ns]
        self.timers.service_ns = min(instants, default=0)

    # ------------------------------------------------------------------ answers

    def reject(self, set_id: str, submission: int, task_id: str, error: ErrorInfo) -> None:
        """Answer a submission with an error."""
        self.out.append(Reject(set_id, submission, task_id, error))

    def admit_again(self, record: TaskRecord, submission: int) -> None:
        """Answer the same request again with the same numbers; nothing is enqueued (ORCH-2001)."""
        told = record.admission
        assert told is not None, f"task {record.task.task_id} is not admitted"
        self.out.append(
            Admit(
                told.set_id,
                submission,
                told.task_id,
                told.queue_position,
                told.predicted_start_ms,
                told.backoff_ms,
                replayed=True,
                on_time_probability=told.on_time_probability,
                budgets=told.budgets,
                accelerator=told.accelerator,
            )
        )

    # ------------------------------------------------------------------ the end

    def finish(self, record: TaskRecord, outcome: Outcome, transcript_bytes: int = 0) -> None:
        """Give a task its one terminal outcome and answer whoever waits for it (ORCH-3017).

        The caller has taken it off its queue or its attempt, and settled what it used.
        """
        advance(record, outcome.state)
        record.outcome = outcome
        record.ended_ns = self.now_ns
        # An attempt whose transcript never came leaves that of one before it.
        record.transcript_bytes = max(record.transcript_bytes, transcript_bytes)
        record.replica = record.stop_reason = None
        set_id = record.home.policy.set_id
        self.timers.disarm(record.task.task_id)
        self.out.append(Finish(set_id, record.task.task_id, outcome))
        # ORCH-3026: only now, so that nothing of the task follows the answer.
        for request in record.cancels:
            self.out.append(AnswerCancel(set_id, request, found=True))
        record.cancels.clear()
        if record.expired:
            # Its admission was undone: nobody was told of it, and its session's books are the last of it.
            if record.session is not None:
                self.changes.session(record.session.key)
            self.forget_if_over(record)
        else:
            self.retention.keep(record)
        # A drain may have waited for it.
        self.pools.touched = self.pools.touched or self.pools.watched
        self.trim_due = True

    def trim_results(self) -> None:
        """Forget what the bounds on ended tasks do not let us keep."""
        self.trim_due = False
        while (record := self.retention.pop_surplus(self.now_ns)) is not None:
            record.expired = True
            self.forget_if_over(record)
        while (record := self.retention.drop_transcript()) is not None:
            self.out.append(DropTranscript(record.home.policy.set_id, record.task.task_id))
        # The oldest kept changes with every end; a wake-up that is too early for it is left as it is.
        expiry_ns = self.retention.next_expiry_ns()
        if expiry_ns is None:
            self.timers.disarm(RETENTION_KEY)
        elif self.timers.armed_at(RETENTION_KEY) is None:
            self.timers.arm(RETENTION_KEY, expiry_ns)

    def forget_if_over(self, record: TaskRecord) -> None:
        """Forget an expired task, once no engine slot is occupied by it any more."""
        if record.expired and not record.slots_held:
            del self.tasks[record.task.task_id]
            if self.undone:
                self.undone.pop(record.task.task_id, None)
            self.out.append(Forget(record.home.policy.set_id, record.task.task_id))
