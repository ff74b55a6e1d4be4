"""A fleet that does as the scheduler says: it makes ordered replicas, brings engines up, runs and stops attempts."""

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any, Literal

from contracts.control import PoolHealth
from contracts.errors import ErrorInfo
from contracts.policies import PoolPolicy, RestartPolicy, ScalingPolicy, SetPolicy
from contracts.pools import (
    AnswerControl,
    DrainRequested,
    LaunchEngine,
    NodeInfo,
    NodesSeen,
    NotePool,
    OrderReplica,
    PromoteRequested,
    ReloadRequested,
    ReplicaOrder,
    RetireReplica,
    RollbackRequested,
)
from contracts.scheduling import (
    Admit,
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    Finish,
    MeasurePrompt,
    PromptMeasured,
    Reject,
    ReplicaLoading,
    ReplicaReady,
    ReplicaUnready,
    Start,
    Stop,
    TaskSubmitted,
    TokensProgressed,
)
from contracts.tasks import Outcome
from orchestrator.core.pools import health
from orchestrator.core.replica_set import ReplicaSet
from tests.unit.core.core_kit import MS, Core, replica, replica_set, task

MODELS = ("small", "other", "third")


def pool(pool_id: str = "pool-a", replicas: int = 1, *, least: int | None = None, **more: Any) -> PoolPolicy:
    """A managed pool on the CPU that serves "small"; of fixed size unless `least` says otherwise."""
    bounds = ScalingPolicy(replicas if least is None else least, replicas, replicas if least is None else least)
    values: dict[str, Any] = {"model_ref": "small", "accelerator": "cpu-dev", "drain_ms": 10_000}
    values |= {"scaling": bounds, "restart": RestartPolicy(jitter_percent=0), **more}
    return PoolPolicy(pool_id, **values)


def managed(*pools: PoolPolicy, **over: Any) -> SetPolicy:
    values: dict[str, Any] = {
        "set_id": "llamacpp/small/-/100/v1",
        "model_refs": ("small",),
        # Long enough to stay out of the way.
        "wall_timeout_ms": 3_600_000,
        "idle_timeout_ms": 3_600_000,
        "pools": pools or (pool(),),
    }
    return replica_set(**{**values, **over})


class Fleet:
    """The world around a scheduler under test. Loading takes `load_ms`, an attempt `service_ms` unless it is None.

    Models in `broken` fail to load for the reason given there, those in `stuck` never come up.
    """

    def __init__(self, *sets: SetPolicy, nodes: int = 1, start: bool = True, **more: Any) -> None:
        more.setdefault("models", {"llamacpp": MODELS})
        self.core = Core(*(sets or (managed(),)), **more)
        self.load_ms = 100
        self.service_ms: int | None = 100
        self.broken: dict[str, str] = {}
        self.stuck: list[str] = []
        self.orders: dict[str, ReplicaOrder] = {}
        self.running: dict[str, Start] = {}
        self.answers: dict[int, ErrorInfo | None] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.refusals: dict[str, ErrorInfo] = {}
        self.admitted: dict[str, Admit] = {}
        self.said: list[AnyCommand] = []
        self._due: list[tuple[int, int, Callable[[], AnyEvent | None]]] = []
        self._requests = 0
        if start:
            self.tell(NodesSeen(tuple(NodeInfo(f"n{n}") for n in range(nodes))))
            self.pass_ms(self.load_ms)

    # ------------------------------------------------------------------ driving

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.core.tell(event)
        self._carry_out(commands)
        return commands

    def pass_ms(self, duration_ms: int) -> None:
        """Let time pass; what the fleet does and what the scheduler's timer is set for happens when it is due."""
        core = self.core
        until_ms = core.now_ms + duration_ms
        while True:
            due_ms = self._due[0][0] if self._due else until_ms + 1
            alarm_ms = until_ms + 1 if core.alarm_ns is None else max(core.now_ms, -(-core.alarm_ns // MS))
            if min(due_ms, alarm_ms) > until_ms:
                break
            if alarm_ms < due_ms:
                self._carry_out(core.pass_ms(alarm_ms - core.now_ms))
                continue
            core.now_ms = max(core.now_ms, due_ms)
            event = heappop(self._due)[2]()
            if event is not None:
                self.tell(event)
        core.now_ms = until_ms

    def _carry_out(self, commands: list[AnyCommand]) -> None:
        self.said += commands
        for command in commands:
            self._do(command)

    def _later(self, delay_ms: int, act: Callable[[], AnyEvent | None]) -> None:
        self._requests += 1
        heappush(self._due, (self.core.now_ms + delay_ms, self._requests, act))

    def submit(self, task_id: str, **over: Any) -> list[AnyCommand]:
        self._requests += 1
        return self.tell(TaskSubmitted(self._requests, task(task_id, **over)))

    def progress(self, task_id: str, tokens: int, digest: int = 7) -> None:
        self.tell(TokensProgressed(task_id, self.running[task_id].attempt, tokens, digest))

    def finish(self, task_id: str) -> None:
        self.tell(self._ended(self.running[task_id], "finished"))

    # ------------------------------------------------------------------ asking

    def reload(self, model_ref: str, canary: int | None = None, pool_id: str = "pool-a") -> ErrorInfo | None:
        self._requests += 1
        return self._asked(ReloadRequested(self._requests, pool_id, model_ref, canary))

    def promote(self, pool_id: str = "pool-a") -> ErrorInfo | None:
        self._requests += 1
        return self._asked(PromoteRequested(self._requests, pool_id))

    def rollback(self, pool_id: str = "pool-a") -> ErrorInfo | None:
        self._requests += 1
        return self._asked(RollbackRequested(self._requests, pool_id))

    def drain(self, deadline_ms: int, pool_id: str = "pool-a") -> ErrorInfo | None:
        self._requests += 1
        return self._asked(DrainRequested(self._requests, pool_id, deadline_ms))

    def _asked(
        self, event: DrainRequested | ReloadRequested | PromoteRequested | RollbackRequested
    ) -> ErrorInfo | None:
        self.tell(event)
        return self.answers[event.request]

    # ------------------------------------------------------------------ looking

    def health(self, pool_id: str = "pool-a") -> PoolHealth:
        found = health.pool_health(self.core.scheduler.state, self.core.now_ms * MS, pool_id)
        assert found is not None, f"no pool {pool_id}"
        return found

    def phases(self, pool_id: str = "pool-a") -> dict[str, str]:
        return {each.replica_id: each.phase for each in self.health(pool_id).replicas}

    def sets(self) -> dict[str, ReplicaSet]:
        """Replica sets by the model that they serve by themselves."""
        return {home.policy.model_refs[0]: home for home in self.core.scheduler.state.sets}

    def home_of(self, task_id: str) -> str:
        return self.core.scheduler.state.tasks[task_id].home.policy.model_refs[0]

    def notes(self, pool_id: str = "pool-a") -> list[str]:
        """What was decided about a pool, without the replicas."""
        return [n.change for n in self.said if isinstance(n, NotePool) and n.pool_id == pool_id and not n.replica_id]

    def last_note(self, change: str) -> NotePool:
        return [n for n in self.said if isinstance(n, NotePool) and n.change == change][-1]

    # ------------------------------------------------------------------ doing

    def _do(self, command: AnyCommand) -> None:
        if isinstance(command, OrderReplica):
            self.orders[command.order.replica_id] = command.order
            self._later(0, partial(self._made, command.order))
        elif isinstance(command, RetireReplica):
            order = self.orders.get(command.replica_id)
            if order is not None and order.incarnation == command.incarnation:
                del self.orders[command.replica_id]
        elif isinstance(command, LaunchEngine):
            order = self.orders[command.replica_id]
            if order.model_ref not in self.stuck:
                self._later(self.load_ms, partial(self._loaded, order, command.slots))
        elif isinstance(command, MeasurePrompt):
            self._later(1, partial(PromptMeasured, command.task_id, command.measurement, 5))
        elif isinstance(command, Start):
            self.running[command.task_id] = command
            if self.service_ms is not None:
                self._later(self.service_ms, partial(self._served, command))
        elif isinstance(command, Stop):
            self._later(1, partial(self._stopped, command))
        else:
            self._note(command)

    def _note(self, command: AnyCommand) -> None:
        if isinstance(command, AnswerControl):
            assert command.request not in self.answers, "answered twice"
            self.answers[command.request] = command.error
        elif isinstance(command, Admit):
            self.admitted[command.task_id] = command
        elif isinstance(command, Reject):
            self.refusals[command.task_id] = command.error
        elif isinstance(command, Finish):
            assert command.task_id not in self.outcomes, "ended twice"
            self.outcomes[command.task_id] = command.outcome
            self.running.pop(command.task_id, None)

    def _is_ordered(self, order: ReplicaOrder) -> bool:
        return self.orders.get(order.replica_id) is order

    def _made(self, order: ReplicaOrder) -> AnyEvent | None:
        if not self._is_ordered(order) or not order.node_id:
            return None
        return ReplicaLoading(order.replica_id, order.pool_id, order.incarnation)

    def _loaded(self, order: ReplicaOrder, slots: int) -> AnyEvent | None:
        if not self._is_ordered(order):
            return None
        if order.model_ref in self.broken:
            return ReplicaUnready(order.replica_id, self.broken[order.model_ref], "model", ("cannot load",))
        info = replica(
            order.replica_id,
            pool_id=order.pool_id,
            slots=slots,
            model_digest=f"sha256:{order.model_ref}",
            node_id=order.node_id,
            devices=tuple(str(device) for device in order.devices),
            gpu_uuids=tuple(f"GPU-{order.node_id}-{device}" for device in order.devices),
            interruptible_decode=True,
        )
        return ReplicaReady(info)

    def _served(self, start: Start) -> AnyEvent | None:
        return self._ended(start, "finished") if self.running.get(start.task_id) is start else None

    def _stopped(self, stop: Stop) -> AnyEvent | None:
        start = self.running.get(stop.task_id)
        return self._ended(start, "stopped") if start is not None and start.attempt == stop.attempt else None

    def _ended(self, start: Start, result: Literal["finished", "stopped"]) -> AttemptEnded:
        record = self.core.scheduler.state.tasks[start.task_id]
        del self.running[start.task_id]
        values: dict[str, Any] = {"tokens_out": record.tokens_out, "digest": record.tokens_digest}
        if result == "finished":
            values = {"tokens_out": 10, "finish_reason": "length"}
        return AttemptEnded(start.task_id, start.attempt, start.replica_id, result, slot_free=True, **values)
