"""The scheduler: events in, commands out. It knows no clock, does no I/O, and starts no thread.

The same events with the same times give the same commands, in every process.
"""

from contracts.api import TaskStatus
from contracts.control import EngineCapability, PoolHealth, ReplicaSetStatus
from contracts.journal import Record
from contracts.policies import SchedulerConfig, SetPolicy
from contracts.pools import ReplicaOrder, ReplicaPlaced
from contracts.scheduling import (
    AnswerClose,
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    CancelRequested,
    JournalFailed,
    JournalRestored,
    PromptMeasured,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaReported,
    ReplicaUnready,
    ServiceRecovered,
    SessionCloseRequested,
    SetTimer,
    ShutdownRequested,
    SlotReleased,
    TaskSubmitted,
    TimerFired,
    TokensDiverged,
    TokensProgressed,
)
from contracts.tasks import Outcome, TaskInfo
from orchestrator.core import (
    attempts,
    cancels,
    dispatch,
    journal,
    recovery,
    replicas,
    shutdown,
    storage,
    submissions,
    view,
    watchdog,
)
from orchestrator.core.pools import capabilities, due, events, health, members
from orchestrator.core.state import State
from orchestrator.core.view import SessionView, StartedView


class Scheduler:
    """Decides for all replica sets of one configuration. Not thread-safe; `step` is never re-entered."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.state = State(config)

    def step(self, now_ns: int, event: AnyEvent) -> list[AnyCommand]:
        """Take in one event; the commands are to be carried out in order.

        `now_ns` is the shell's monotonic clock. Events about unknown tasks, replicas or attempts are
        dropped: they are late, not wrong.
        """
        state = self.state
        state.begin_step(now_ns)
        # 1. Take in what happened.
        self._handle(event)
        # 2. Act on what has become due.
        if 0 < state.timers.service_ns <= state.now_ns:
            recovery.due(state)
        watchdog.expire(state)
        # 3. Go on with what pools are about to do, and start whatever can start.
        if state.pools.touched or state.pools.watched:
            due.settle(state)
        dispatch.dispatch(state)
        for _ in range(due.ROUNDS_MAX):
            if not state.pools.touched:
                break
            # A task that could not start any more may have been the last that a drain waited for.
            due.settle(state)
            dispatch.dispatch(state)
        # 4. Forget what is not to be kept any longer, and let the service end if it is to.
        if state.is_ending:
            shutdown.settle(state)
        if state.trim_due:
            state.trim_results()
        # 5. Ask to be woken for what becomes due next.
        alarm_ns = state.timers.next_alarm(state.now_ns)
        if alarm_ns is not None:
            state.out.append(SetTimer("", alarm_ns))
        return state.out

    def _handle(self, event: AnyEvent) -> None:
        state = self.state
        # The most frequent ones first.
        if isinstance(event, TaskSubmitted):
            state.sessions.sweep(state.now_ns)
            submissions.submitted(state, event)
        elif isinstance(event, AttemptEnded):
            attempts.ended(state, event)
            if event.result == "failed":
                # It may be tried again without a word to anybody; that the attempt is over is kept all the same.
                state.changes.task(event.task_id)
        elif isinstance(event, TokensProgressed):
            attempts.progressed(state, event)
        elif isinstance(event, SlotReleased):
            attempts.released(state, event)
        elif isinstance(event, TimerFired):
            state.timers.alarm_rang()
        elif isinstance(event, PromptMeasured):
            submissions.measured(state, event)
        elif isinstance(event, CancelRequested):
            cancels.requested(state, event)
        elif isinstance(event, SessionCloseRequested):
            self._close_session(event)
        else:
            self._handle_replica(event)

    def _handle_replica(self, event: AnyEvent) -> None:
        state = self.state
        if isinstance(event, ReplicaReported):
            replicas.reported(state, event)
            return
        if isinstance(event, ReplicaReady):
            recovery.first_ready(state, event.replica)
        if events.handled(state, event):
            self._note(event)
        elif isinstance(event, ReplicaLoading):
            replicas.loading(state, event)
        elif isinstance(event, ReplicaReady):
            replicas.ready(state, event)
            self._note(event)
        elif isinstance(event, ReplicaUnready):
            replicas.unready(state, event)
        elif isinstance(event, ReplicaLost):
            replicas.lost(state, event)
        else:
            self._handle_service(event)

    def _note(self, event: AnyEvent) -> None:
        """What no command tells the journal: where a replica was placed, and which attempts it took along."""
        if isinstance(event, ReplicaPlaced):
            member = self.state.pools.members.get(event.replica_id)
            if member is not None:
                self.state.changes.pool(member.pool.policy.pool_id)
        elif isinstance(event, ReplicaReady):
            for attempt in event.running:
                self.state.changes.task(attempt.task_id)

    def _handle_service(self, event: AnyEvent) -> None:
        state = self.state
        if isinstance(event, TokensDiverged):
            attempts.diverged(state, event)
        elif isinstance(event, JournalFailed):
            storage.failed(state, event)
        elif isinstance(event, JournalRestored):
            storage.restored(state)
        elif isinstance(event, ShutdownRequested):
            shutdown.requested(state, event)
        elif isinstance(event, ServiceRecovered):
            recovery.recover(state, event)

    def _close_session(self, event: SessionCloseRequested) -> None:
        found = self.state.sessions.close(event.tenant, event.session_id)
        self.state.out.append(AnswerClose("", event.request, found))

    def records(self, commands: list[AnyCommand]) -> list[Record]:
        """What has to be durable before anybody hears of the last step, which gave `commands` (ORCH-3051)."""
        return journal.records(self.state, commands)

    # ------------------------------------------------------------------ reading

    def status(self, now_ns: int, task_id: str, tenant: str) -> TaskStatus | None:
        """State, position and outcome of a task; None if it is unknown or another tenant's."""
        record = view.find(self.state, task_id, tenant)
        return None if record is None else view.status(self.state, now_ns, record)

    def task(self, task_id: str, tenant: str) -> TaskInfo | None:
        """The task as it was submitted; None if it is unknown or another tenant's."""
        record = view.find(self.state, task_id, tenant)
        return None if record is None else record.task

    def outcome(self, task_id: str, tenant: str) -> Outcome | None:
        """The terminal outcome of a task; None while it has none, or if it is unknown or another tenant's."""
        record = view.find(self.state, task_id, tenant)
        return None if record is None else record.outcome

    def started(self, now_ns: int, task_id: str, tenant: str) -> StartedView | None:
        """What a stream tells of a task that started; None before that."""
        record = view.find(self.state, task_id, tenant)
        return None if record is None else view.started(self.state, now_ns, record)

    def readiness(self) -> dict[str, str]:
        """Per pool id: "ready", "loading" or "unavailable: <why>"."""
        return view.readiness(self.state)

    def is_ready(self) -> bool:
        """Whether tasks can be served: a pool is ready and none is loading. An unavailable one holds up nobody."""
        states = self.readiness().values()
        return "ready" in states and "loading" not in states

    def orders(self) -> tuple[ReplicaOrder, ...]:
        """All replicas that are to exist, for a pool manager that connects."""
        return tuple([members.order_of(each) for each in self.state.pools.members.values() if each.is_ordered])

    def session(self, now_ns: int, tenant: str, session_id: str) -> SessionView | None:
        """What is known of a session; None if there is none, or its time is over."""
        return view.session(self.state, now_ns, tenant, session_id)

    def queue_depth(self, set_id: str, priority: str) -> int:
        """Admitted tasks of a class that wait. Raises `KeyError` for an unknown set or class."""
        for home in self.state.sets:
            if home.policy.set_id == set_id:
                return home.tier_of[priority].waiting
        raise KeyError(set_id)

    def depth_of(self, task_id: str, tenant: str) -> int | None:
        """Admitted tasks that wait where this one belongs; None if it is unknown or another tenant's."""
        record = view.find(self.state, task_id, tenant)
        return None if record is None else record.home.tier_of[record.task.priority].waiting

    def shares(self) -> list[tuple[str, str, str, float]]:
        """(set id, class, tenant, share) per flow: its part of the tokens its set started of late (ORCH-3076)."""
        return view.shares(self.state)

    def breakers(self, now_ns: int) -> list[tuple[str, str, str]]:
        """(pool id, class, state) of every breaker (ORCH-3040)."""
        return view.breakers(self.state, now_ns)

    def pool_health(self, now_ns: int, pool_id: str) -> PoolHealth | None:
        """How a pool and its replicas are (ORCH-2103); None if there is no such pool."""
        return health.pool_health(self.state, now_ns, pool_id)

    def replica_sets(self, now_ns: int) -> list[ReplicaSetStatus]:
        """Load and objectives of every replica set (ORCH-2104)."""
        return health.replica_sets(self.state, now_ns)

    def capabilities(self) -> list[EngineCapability]:
        """What each engine serves here (ORCH-3095)."""
        return capabilities.capabilities(self.state)

    def set_policies(self) -> list[SetPolicy]:
        """The replica sets that there are now; a reload makes others."""
        return [home.policy for home in self.state.sets]
