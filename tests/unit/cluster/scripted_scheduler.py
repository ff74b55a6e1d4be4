"""Stands for the scheduler on real sockets: a test says what it answers, and when it is there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from contracts import messages as wire
from contracts.api import Admission, Metrics
from contracts.engine import EngineAdapter, EngineSpec, GenerateRequest
from contracts.errors import ErrorInfo
from contracts.scheduling import ReplicaLoading, ReplicaReady
from contracts.tasks import Outcome, TaskInfo
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.connection import ChannelError, Connection
from orchestrator.cluster.replica_host import ReplicaHost
from tests.unit.cluster.scripted import HOST, NODE, SECRET, SPEC, ScriptedAdapter, task, until

Message = TypeVar("Message")
NOT_FOUND = ErrorInfo("NOT_FOUND", "there is no such task")


class ScriptedScheduler:
    """What it is told is in `told`; ingresses are answered from `tasks` unless it is `silent`."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.links: dict[str, list[Connection]] = {"replica": [], "ingress": []}
        self.tasks: dict[str, TaskInfo] = {}
        self.started: dict[str, wire.TaskStarted] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.silent = False
        self.located = 0
        self._server: ChannelServer | None = None
        self._endpoint: wire.Endpoint | None = None

    async def start(self) -> None:
        self._server = ChannelServer(SECRET, wire.ToScheduler, self._opened, self._received, lambda _closed: None)
        self._endpoint = await self._server.start(NODE, HOST)

    async def stop(self) -> None:
        """As if it had died."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def locate(self) -> wire.Endpoint:
        self.located += 1
        if self._server is None or self._endpoint is None:
            raise ChannelError("the scheduler is not there")
        return self._endpoint

    def cut(self, role: str) -> None:
        """End the last connection of that role."""
        self.links[role][-1].close()

    def _opened(self, connection: Connection) -> None:
        self.links[connection.role].append(connection)

    def _received(self, connection: Connection, message: Any) -> None:
        self.told.append(message)
        if not self.silent:
            for answer in self._answers(message):
                connection.send(answer)

    def _answers(self, message: Any) -> list[Any]:
        if isinstance(message, wire.Submit):
            self.tasks[message.task.task_id] = message.task
            return [wire.Admitted(message.req, Admission(message.task.task_id, 0, 0, 0))]
        if isinstance(message, wire.Watch):
            known = self.tasks.get(message.task_id)
            if known is None:
                return [wire.Failed(message.req, NOT_FOUND)]
            started, outcome = self.started.get(message.task_id), self.outcomes.get(message.task_id)
            ended = wire.TaskEnded(message.task_id, outcome) if outcome else None
            return [wire.Task(message.req, known), *(each for each in (started, ended) if each is not None)]
        if isinstance(message, wire.GetTask):
            return [wire.Task(message.req, self.tasks[message.task_id])]
        if isinstance(message, wire.FetchTranscript):
            return [wire.Failed(message.req, NOT_FOUND)]
        if isinstance(message, wire.Cancel | wire.CloseSession):
            return [wire.Done(message.req)]
        return []

    # ---------------------------------------------------------------- what was told

    def all(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.told if isinstance(message, kind)]

    async def nth(self, kind: type[Message], count: int = 1) -> Message:
        """Wait for a message of a kind, the first or a later one."""
        await until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    # ------------------------------------------------------------------ what it says

    def to_replica(self, message: Any, replica_id: str = "pool-0") -> None:
        [link for link in self.links["replica"] if link.peer_id == replica_id][-1].send(message)

    def to_ingress(self, message: Any) -> None:
        self.links["ingress"][-1].send(message)

    def start_attempt(
        self, task_id: str, number: int = 1, prompt: str = "gated", max_tokens: int = 6, on: str = "pool-0"
    ) -> None:
        payload = wire.encode(GenerateRequest(task_id, max_tokens, 1, prompt=prompt))
        self.to_replica(wire.StartAttempt(task_id, number, payload), on)

    def starts(self, task_id: str, attempt: int, replica: "Replica") -> None:
        """An attempt of a watched task runs on a replica, says the scheduler; the replica is told by the test."""
        self.tasks.setdefault(task_id, task(task_id))
        metrics = Metrics(resumed=True, failover=True) if attempt > 1 else Metrics(queue_depth=0)
        started = wire.TaskStarted(task_id, attempt, replica.info, replica.endpoint, 0, 0, 0, False, metrics)
        self.started[task_id] = started
        if self.links["ingress"]:
            self.to_ingress(started)


class Replica:
    """A replica host with a scripted engine, linked to a scripted scheduler."""

    def __init__(self, scheduler: ScriptedScheduler, replica_id: str = "pool-0") -> None:
        self.scheduler = scheduler
        self.spec = SPEC if replica_id == "pool-0" else _spec(replica_id)
        self.engines: list[ScriptedAdapter] = []
        self.make: Callable[[EngineSpec, list[ScriptedAdapter]], ScriptedAdapter] = ScriptedAdapter
        self.host = ReplicaHost(self.spec, self._make, SECRET, scheduler.locate, NODE, HOST)
        self.running: asyncio.Task[None] | None = None

    def _make(self, spec: EngineSpec) -> EngineAdapter:
        return self.make(spec, self.engines)

    @property
    def engine(self) -> ScriptedAdapter:
        return self.engines[-1]

    @property
    def endpoint(self) -> wire.Endpoint:
        return self._mine(wire.RegisterReplica)[-1].endpoint

    @property
    def info(self) -> Any:
        return next(m.replica for m in self.scheduler.all(ReplicaReady) if m.replica.replica_id == self.spec.replica_id)

    def _mine(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.scheduler.all(kind) if message.replica_id == self.spec.replica_id]

    async def serve(self) -> None:
        """Register, launch and be ready."""
        self.running = asyncio.create_task(self.host.run())
        await until(lambda: self._mine(ReplicaLoading))
        self.scheduler.to_replica(wire.Launch(2), self.spec.replica_id)
        await until(lambda: any(m.replica.replica_id == self.spec.replica_id for m in self.scheduler.all(ReplicaReady)))

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)


def _spec(replica_id: str) -> EngineSpec:
    return replace(SPEC, replica_id=replica_id)


@contextlib.asynccontextmanager
async def scheduled(count: int = 1) -> AsyncIterator[tuple[ScriptedScheduler, list[Replica]]]:
    """A scripted scheduler with replicas that serve."""
    scheduler = ScriptedScheduler()
    await scheduler.start()
    replicas = [Replica(scheduler, f"pool-{n}") for n in range(count)]
    try:
        for replica in replicas:
            await replica.serve()
        yield scheduler, replicas
    finally:
        for replica in replicas:
            await replica.stop()
        await scheduler.stop()
