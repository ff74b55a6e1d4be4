"""A scheduler under test that keeps a journal and can be started anew from it, by itself and with managed pools."""

from typing import Any

from contracts.journal import KeptAccount, KeptPool, KeptSession, KeptTask, Record
from contracts.policies import PoolPolicy, SetPolicy
from contracts.scheduling import AnyCommand, AnyEvent, ReplicaReady, RunningAttempt, ServiceRecovered
from contracts.tasks import ReplicaInfo
from orchestrator.core import journal
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation.journal import Journal
from tests.unit.core.core_kit import Core, config
from tests.unit.core.pool_kit import Fleet


class Durable(Core):
    """`last` has the records of the last step, `journal` what all of them come to."""

    def __init__(self, *sets: SetPolicy, ready: tuple[ReplicaInfo, ...] = (), **more: Any) -> None:
        self.journal = Journal()
        self.last: list[Record] = []
        super().__init__(*sets, ready=ready, **more)

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = super().tell(event)
        self.last = self.scheduler.records(commands)
        self.journal.put(self.last)
        return commands

    def restart(self, *sets: SetPolicy, after_ms: int = 500, **more: Any) -> list[AnyCommand]:
        """The scheduler dies, and another one, which may be configured otherwise, goes on with the journal."""
        old = self.scheduler.state.config
        self.scheduler = Scheduler(config(*sets, **more) if sets or more else old)
        self.alarm_ns = None
        self.now_ms += after_ms
        return self.tell(ServiceRecovered(self.journal.kept()))

    def back(self, info: ReplicaInfo, *running: RunningAttempt, ended: Any = (), incarnation: int = 0) -> Any:
        """A replica's link is made anew."""
        return self.tell(ReplicaReady(info, incarnation, running, tuple(ended)))

    def task(self, task_id: str) -> KeptTask:
        return self.journal.tasks[task_id]

    def told(self, kind: type[Record]) -> list[Any]:
        """The records of the last step of one kind."""
        return [record for record in self.last if isinstance(record, kind)]


class DurableFleet(Durable, Fleet):
    """The same with managed pools on one node."""

    def __init__(self, *pools: PoolPolicy, **more: Any) -> None:
        self.journal = Journal()
        self.last = []
        Fleet.__init__(self, *pools, **more)


def everything(scheduler: Scheduler) -> tuple[list[KeptTask], list[KeptSession], list[KeptPool]]:
    """Records of all that a scheduler knows now, made from scratch."""
    state = scheduler.state
    tasks = [record for record in state.tasks.values() if record.admission is not None and not record.expired]
    sessions = state.sessions._sessions.values()
    return (
        [journal.kept_task(record) for record in tasks],
        [journal.kept_session(state, session) for session in sessions],
        [journal.kept_pool(pool) for pool in state.pools.by_id.values()],
    )


def account(core: Durable, kind: str, name: str) -> KeptAccount:
    """One account of the journal."""
    (found,) = [each for each in core.journal.kept().accounts if (each.kind, each.name) == (kind, name)]
    return found
