"""Stands for the scheduler's core: it decides what a test tells it to, and its views are what a test says."""

from collections.abc import Sequence

import msgspec

from contracts import scheduling as ev
from contracts.api import TaskStatus
from contracts.journal import Record
from contracts.messages import Endpoint, RegisterReplica
from contracts.policies import PoolPolicy, QueuePolicy, ResultPolicy, SchedulerConfig, SetPolicy, TenantPolicy
from contracts.tasks import Budgets, Outcome, ReplicaInfo, TaskInfo
from orchestrator.cluster import scheduler_service
from orchestrator.cluster.scheduler_service import SchedulerService
from orchestrator.core.view import SessionView, StartedView
from tests.unit.cluster.test_replica_service import Wire

QUEUES = (QueuePolicy("interactive", 8, "reject", 8, slo_first_token_ms=900), QueuePolicy("batch", 8, "drop-lru"))
CONFIG = SchedulerConfig(
    (SetPolicy("set", "llamacpp", ("m",), 2048, "v1", (PoolPolicy("pool"),), 8, QUEUES, 60_000, 30_000),),
    ResultPolicy(60_000, 100, 1_000_000),
    tenants=(TenantPolicy("acme", weight=3),),
)
REPLICA = ReplicaInfo("pool-0", "pool", "llamacpp", "b1", "sha256:0", 2048, 2, "v1", "cpu-dev", "node")
ENDPOINT = Endpoint("node", "", "127.0.0.1", 1)


def status(task: TaskInfo, state: str, **more: object) -> TaskStatus:
    fields = {"tokens_in": 0, "tokens_out": 0, "decode_ms": 0, "attempt": 1}
    return TaskStatus(task.task_id, state, task.engine, task.model_ref, task.priority, **(fields | more))  # type: ignore[arg-type]


def started_view(task: TaskInfo, attempt: int = 1, *, preempted: bool = False) -> StartedView:
    return StartedView(
        task_id=task.task_id,
        attempt=attempt,
        replica=REPLICA,
        queue_position=3,
        predicted_start_ms=420,
        queue_time_ns=388_000_000,
        queue_depth=4,
        time_budget_remaining_ms=29_000,
        on_time_probability=0.98765,
        kv_warmth=True,
        preempted=preempted,
        budgets=Budgets(tokens=100, cost_micros=250_000),
    )


class ScriptedCore:
    """The methods of `Scheduler` that the shell uses."""

    def __init__(self) -> None:
        self.commands: dict[type, Sequence[ev.AnyCommand]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.events: list[ev.AnyEvent] = []
        self.tasks: dict[str, TaskInfo] = {}
        self.statuses: dict[str, TaskStatus] = {}
        self.views: dict[str, StartedView] = {}
        self.sessions: dict[str, SessionView] = {}
        self.depth = 5
        self.state = None  # only ever handed on, to `records`
        self.kept: Sequence[Record] = ()

    def step(self, _now_ns: int, event: ev.AnyEvent) -> Sequence[ev.AnyCommand]:
        self.events.append(event)
        if isinstance(event, ev.TaskSubmitted):
            self.tasks[event.task.task_id] = event.task
        return self.commands.pop(type(event), ())

    def take(self) -> list[Record]:
        """What the last step changed."""
        kept, self.kept = list(self.kept), ()
        return kept

    def status(self, _now_ns: int, task_id: str, _tenant: str) -> TaskStatus | None:
        return self.statuses.get(task_id)

    def started(self, _now_ns: int, task_id: str, _tenant: str) -> StartedView | None:
        return self.views.get(task_id)

    def task(self, task_id: str, tenant: str) -> TaskInfo | None:
        task = self.tasks.get(task_id)
        return task if task is not None and task.tenant == tenant else None

    def outcome(self, task_id: str, _tenant: str) -> Outcome | None:
        return self.outcomes.get(task_id)

    def session(self, _now_ns: int, tenant: str, session_id: str) -> SessionView | None:
        return self.sessions.get(session_id) if tenant == "acme" else None

    def queue_depth(self, _set_id: str, _priority: str) -> int:
        return self.depth

    def depth_of(self, _task_id: str, _tenant: str) -> int:
        return self.depth

    def shares(self) -> list[tuple[str, str, str, float]]:
        return [("set", "batch", "acme", 1.0)]

    def orders(self) -> tuple[()]:
        return ()

    def set_policies(self) -> list[SetPolicy]:
        return list(CONFIG.sets)

    def pool_health(self, _now_ns: int, _pool_id: str) -> None:
        return None

    def breakers(self, _now_ns: int) -> list[tuple[str, str, str]]:
        return [("pool", "batch", "half-open")]


class Peer(Wire):
    """Stands for a connection to the service."""

    def __init__(self, role: str, peer_id: str) -> None:
        super().__init__()
        self.room = 1_000_000
        self.role = role
        self.peer_id = peer_id
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def send_in_turn(self, message: msgspec.Struct, size_bytes: int) -> bool:
        """Takes messages of as many bytes as `room`."""
        if size_bytes > self.room:
            return False
        self.send(message)
        return True

    def take(self) -> list[object]:
        """What was sent since the last time."""
        sent, self.sent = list(self.sent), []
        return sent


class Shell:
    """A scheduler service over a scripted core, with an ingress and a replica connected."""

    def __init__(self, monkeypatch: object) -> None:
        self.core = ScriptedCore()
        own = {"Scheduler": lambda _config: self.core, "records": lambda _state, _commands: self.core.take()}
        for name, scripted in own.items():
            monkeypatch.setattr(scheduler_service, name, scripted)  # type: ignore[attr-defined]
        self.now_ns = 1_000_000_000
        self.service = SchedulerService(CONFIG, b"s" * 32, clock=lambda: self.now_ns)
        self.ingress, self.replica = Peer("ingress", "i"), Peer("replica", "pool-0")
        self.tell(self.replica, RegisterReplica("pool-0", "pool", ENDPOINT))
        self.tell(self.replica, ev.ReplicaReady(REPLICA))

    def tell(self, peer: Peer, message: object, *commands: ev.AnyCommand) -> None:
        """A message arrives; the core answers the event made of it with `commands`."""
        for kind in (type(message), ev.TaskSubmitted, ev.CancelRequested, ev.SessionCloseRequested):
            self.core.commands[kind] = commands
        self.service._received(peer, message)  # type: ignore[arg-type]
        self.core.commands.clear()
