"""All the scheduler knows, and the few changes that every part of it makes."""

from contracts.errors import ErrorInfo
from contracts.policies import SchedulerConfig
from contracts.scheduling import Admit, AnswerCancel, AnyCommand, Finish, Forget, Reject, Start
from contracts.tasks import Outcome
from orchestrator.core.admission import Routes
from orchestrator.core.lifecycle import advance
from orchestrator.core.placement import Replica
from orchestrator.core.policies import StrictPriority
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.retention import Retention
from orchestrator.core.timers import Timers

#: Longest budget that is kept track of; a longer one counts as this (ten years, so that instants fit 64 bits).
DEADLINE_MS_MAX = 10 * 365 * 24 * 3600 * 1000
#: Timer key of retention; task ids are never empty.
RETENTION_KEY = ""


class State:
    """Tables, and the commands of the step under way. Iteration is over dicts and lists only, never sets."""

    def __init__(self, config: SchedulerConfig) -> None:
        fairness = StrictPriority()
        self.sets = tuple(ReplicaSet(policy, fairness) for policy in config.sets)
        self.set_of_pool = {pool_id: home for home in self.sets for pool_id in home.policy.pool_ids}
        self.routes = Routes(self.sets)
        self.tasks: dict[str, TaskRecord] = {}
        self.replicas: dict[str, Replica] = {}
        self.timers = Timers()
        self.retention = Retention(config.results)
        self.results = config.results
        self.now_ns = 0
        self.out: list[AnyCommand] = []
        self._dispatch_due: list[ReplicaSet] = []
        self._sequence = 0

    def begin_step(self, now_ns: int) -> None:
        """Start a step. Time never runs backwards here, whatever the shell's clock does."""
        self.now_ns = max(self.now_ns, now_ns)
        self.out = []

    def next_sequence(self) -> int:
        """A number above all given before; breaks ties."""
        self._sequence += 1
        return self._sequence

    # ------------------------------------------------------------------ admission

    def reject(self, set_id: str, submission: int, task_id: str, error: ErrorInfo) -> None:
        """Answer a submission with an error."""
        self.out.append(Reject(set_id, submission, task_id, error))

    def admit(self, record: TaskRecord) -> None:
        """Answer all submissions of a task with where it stands; its deadline runs from here (ORCH-3029)."""
        home, flow, task = record.home, record.flow, record.task
        position, predicted_ms = home.forecast_arrival(flow, self.now_ns)
        backoff_ms = home.backoff_ms(flow)
        first = Admit(home.policy.set_id, record.submissions[0], task.task_id, position, predicted_ms, backoff_ms)
        record.admission = first
        record.admitted_ns = self.now_ns
        record.deadline_ns = self.now_ns + min(task.deadline_ms, DEADLINE_MS_MAX) * NS_PER_MS
        self.out.append(first)
        for submission in record.submissions[1:]:
            self.admit_again(record, submission)
        record.submissions.clear()

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
            )
        )

    def enqueue(self, record: TaskRecord) -> None:
        """An admitted task joins its queue."""
        advance(record, "queued")
        record.order = self.next_sequence()
        record.flow.push(record)
        self.timers.arm(record.task.task_id, record.deadline_ns)
        self.want_dispatch(record.home)

    def requeue(self, record: TaskRecord) -> None:
        """A task whose attempt delivered nothing waits again, before all that never started."""
        advance(record, "queued")
        record.replica = None
        record.flow.give_back(record)
        self.timers.arm(record.task.task_id, record.deadline_ns)
        self.want_dispatch(record.home)

    # ------------------------------------------------------------------ dispatch

    def want_dispatch(self, home: ReplicaSet) -> None:
        """Something changed that may let a task of this set start."""
        if not home.dispatch_due:
            home.dispatch_due = True
            self._dispatch_due.append(home)

    def dispatch(self) -> None:
        """Start whatever can start: next flow, next task, least loaded replica with a free slot."""
        for home in self._dispatch_due:
            home.dispatch_due = False
            while home.ready.free_slots:
                flow = home.fairness.select(home.flows)
                replica = home.ready.least_loaded()
                if flow is None or replica is None:
                    break
                self._start(flow.pop(), replica)
        self._dispatch_due.clear()

    def _start(self, record: TaskRecord, replica: Replica) -> None:
        advance(record, "running")
        home, task_id = record.home, record.task.task_id
        if record.queue_time_ns is None:
            record.queue_time_ns = self.now_ns - record.admitted_ns
        record.attempt += 1
        record.replica = replica
        record.served_by = replica.info
        record.started_ns = record.progressed_ns = self.now_ns
        record.tokens_out = 0
        record.remaining_tokens = record.expected_tokens
        record.slots_held += 1
        home.running_tokens += record.remaining_tokens
        home.ready.take(replica, (task_id, record.attempt), record)
        policy = home.policy
        self.timers.arm(task_id, self.now_ns + min(policy.wall_timeout_ms, policy.idle_timeout_ms) * NS_PER_MS)
        self.out.append(Start(policy.set_id, task_id, record.attempt, replica.replica_id))

    # ------------------------------------------------------------------ the end

    def finish(self, record: TaskRecord, outcome: Outcome, transcript_bytes: int = 0) -> None:
        """Give a task its one terminal outcome and answer whoever waits for it (ORCH-3017).

        The caller has taken it off its queue or its attempt.
        """
        advance(record, outcome.state)
        record.outcome = outcome
        record.ended_ns = self.now_ns
        record.transcript_bytes = transcript_bytes
        record.replica = None
        set_id = record.home.policy.set_id
        self.timers.disarm(record.task.task_id)
        self.out.append(Finish(set_id, record.task.task_id, outcome))
        # ORCH-3026: only now, so that nothing of the task follows the answer.
        for request in record.cancels:
            self.out.append(AnswerCancel(set_id, request, found=True))
        record.cancels.clear()
        self.retention.keep(record)

    def trim_results(self) -> None:
        """Forget what the bounds on ended tasks do not let us keep."""
        while (record := self.retention.pop_surplus(self.now_ns)) is not None:
            record.expired = True
            self.forget_if_over(record)
        expiry_ns = self.retention.next_expiry_ns()
        if expiry_ns is not None:
            self.timers.arm(RETENTION_KEY, expiry_ns)
        else:
            self.timers.disarm(RETENTION_KEY)

    def forget_if_over(self, record: TaskRecord) -> None:
        """Forget an expired task, once no engine slot is occupied by it any more."""
        if record.expired and not record.slots_held:
            del self.tasks[record.task.task_id]
            self.out.append(Forget(record.home.policy.set_id, record.task.task_id))
