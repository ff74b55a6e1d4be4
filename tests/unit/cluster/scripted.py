"""A scripted engine and a cluster without Ray: the real services on real sockets, in one event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec

from contracts import messages as wire
from contracts.api import Workload
from contracts.engine import (
    Chunk,
    EngineAdapter,
    EngineError,
    EngineExit,
    EngineMetrics,
    EngineProperties,
    EngineSpec,
    Finish,
    GenerateRequest,
)
from contracts.errors import ErrorInfo
from contracts.gateway import StreamEvent, Tokens
from contracts.gpus import MemoryNeed
from contracts.policies import (
    PoolPolicy,
    PreemptionPolicy,
    QueuePolicy,
    RestartPolicy,
    ResultPolicy,
    ScalingPolicy,
    SchedulerConfig,
    SessionPolicy,
    SetPolicy,
)
from contracts.pools import NodeInfo, ReplicaOrder
from contracts.tasks import TaskInfo
from orchestrator.cluster.fleet import name_of
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.pool_manager import PoolManager
from orchestrator.cluster.replica_host import ReplicaHost
from orchestrator.cluster.scheduler_service import SchedulerService

FIXED = ScalingPolicy(1, 1, 1)
RESTART = RestartPolicy(backoff_min_ms=20, backoff_max_ms=200, jitter_percent=0)
SECRET = b"0123456789abcdef0123456789abcdef"
NODE, HOST, MODEL = "node-1", "127.0.0.1", "scripted-model"
SPEC = EngineSpec("llamacpp", "pool", "pool-0", MODEL, "", 2048, 2, "cpu-dev", zone="hall-2", incarnation=1)


class ScriptedAdapter:
    """An engine in memory (a fake, and says so): `t0 t1 …` up to `max_tokens`, paused by `gate`.

    `self_test_token_s` is its pace while it is tested, from which the scheduler takes what a token costs.
    """

    def __init__(self, spec: EngineSpec, launched: "list[ScriptedAdapter] | None" = None) -> None:
        self.spec = spec
        self.launched = launched
        self.gate = asyncio.Event()
        self.gate.set()
        self.exit: asyncio.Future[EngineExit] = asyncio.get_running_loop().create_future()
        self.active: set[str] = set()
        self.canceled: list[str] = []
        self.silent = False
        self.self_test_token_s = 0.0
        self.word = "t"

    async def memory_need(self) -> MemoryNeed:
        return MemoryNeed(1, 1, 1, 1)

    async def launch(self) -> None:
        await asyncio.sleep(0)
        if self.launched is not None:
            self.launched.append(self)

    async def wait_exit(self) -> EngineExit:
        return await asyncio.shield(self.exit)

    async def healthy(self) -> bool:
        return not self.exit.done()

    async def properties(self) -> EngineProperties:
        return EngineProperties(
            engine_version="scripted fake 1",
            model_digest="sha256:0",
            slots=self.spec.slots,
            ctx=self.spec.ctx,
            interruptible_decode=True,
            kv_token_bytes=1000,
            keeps_kv=True,
        )

    async def count_tokens(self, request: GenerateRequest) -> int:
        return len((request.prompt or "").split())

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        self.active.add(attempt_key)
        try:
            for index in range(0 if self.silent else request.max_tokens):
                if request.prompt == "gated" and index >= 3:
                    await self.gate.wait()
                if self.exit.done():
                    raise EngineError(ErrorInfo("WORKER_RESET", "the scripted engine died", retriable=True))
                await asyncio.sleep(self.self_test_token_s if attempt_key == "self-test" else 0)
                yield Chunk(f"{self.word}{index} ")
            yield Finish("length", 3)
        finally:
            self.active.discard(attempt_key)

    async def cancel(self, attempt_key: str) -> None:
        self.canceled.append(attempt_key)

    async def metrics(self) -> EngineMetrics:
        return EngineMetrics(requests_processing=len(self.active))

    async def close(self) -> None:
        if not self.exit.done():
            self.exit.set_result(EngineExit(0))


class ScriptedFleet:
    """Ray as the pool manager sees it, in memory: groups are names, actors are replica hosts in this loop."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.live: tuple[NodeInfo, ...] = ()
        self.hosts: dict[str, asyncio.Task[None]] = {}
        self.groups: dict[str, ReplicaOrder] = {}

    async def nodes(self) -> tuple[NodeInfo, ...]:
        return self.live

    async def existing(self) -> set[str]:
        return set(self.groups)

    async def reserve(self, order: ReplicaOrder, _nodes: tuple[NodeInfo, ...]) -> ReplicaOrder:
        return self.groups.setdefault(name_of(order), order)

    async def placed_on(self, group: ReplicaOrder) -> tuple[str, str]:
        here = any(node.node_id == group.node_id for node in self.live)
        return (group.node_id, "") if here else ("", "pending: infeasible")

    async def start(self, order: ReplicaOrder, _group: ReplicaOrder, _node_id: str) -> Any:
        name = name_of(order)
        if name not in self.hosts or self.hosts[name].done():
            cluster = self._cluster
            spec = msgspec.structs.replace(
                SPEC, replica_id=order.replica_id, incarnation=order.incarnation, workload=cluster.workload
            )
            host = ReplicaHost(spec, cluster.make_adapter, SECRET, cluster.locate, NODE, HOST)
            self.hosts[name] = asyncio.create_task(host.run())
        return SimpleNamespace(run=SimpleNamespace(remote=lambda: self._end_of(name)))

    def is_unavailable(self, _error: Exception) -> bool:
        return False

    async def _end_of(self, name: str) -> None:
        await asyncio.wait({self.hosts[name]})
        raise RuntimeError(f"replica {name} was killed")

    async def end(self, name: str) -> None:
        self.groups.pop(name, None)
        await _stopped(self.hosts.get(name))

    async def end_all(self) -> None:
        for host in list(self.hosts.values()):
            await _stopped(host)


async def _stopped(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Cluster:
    """Scheduler, one replica and gateways; `adapters` holds the engines in order of launch."""

    def __init__(
        self,
        preemption: PreemptionPolicy | None = None,
        sessions: SessionPolicy | None = None,
        self_test_token_s: float = 0.0,
        adapter: type[ScriptedAdapter] = ScriptedAdapter,
        workload: Workload = "completion",
        restart: RestartPolicy = RESTART,
    ) -> None:
        queues = tuple(QueuePolicy(priority, 8, "reject") for priority in ("interactive", "batch"))
        policy = SetPolicy(
            set_id="set",
            engine="llamacpp",
            model_refs=(MODEL,),
            ctx=2048,
            sampler_profile_version="v1",
            pools=(PoolPolicy("pool", scaling=FIXED, restart=restart, slots=2, accelerator="cpu-dev"),),
            capacity=8,
            queues=queues,
            wall_timeout_ms=60_000,
            idle_timeout_ms=30_000,
            workloads=(workload,),
            preemption=preemption or PreemptionPolicy(),
        )
        results = ResultPolicy(60_000, 100, 1_000_000)
        self.config = SchedulerConfig((policy,), results, sessions=sessions or SessionPolicy())
        self.self_test_token_s = self_test_token_s
        self.adapter = adapter
        self.workload: Workload = workload
        self.adapters: list[ScriptedAdapter] = []
        self.make_silent = False
        self.scheduler = SchedulerService(self.config, SECRET)
        self.endpoint: wire.Endpoint | None = None
        self.gateways: list[ClusterGateway] = []
        self.fleet = ScriptedFleet(self)
        self.manager: asyncio.Task[None] | None = None

    async def locate(self) -> wire.Endpoint:
        assert self.endpoint is not None
        return self.endpoint

    def make_adapter(self, spec: EngineSpec) -> EngineAdapter:
        adapter = self.adapter(spec, self.adapters)
        adapter.silent = self.make_silent
        adapter.self_test_token_s = self.self_test_token_s
        return adapter

    async def start(self) -> None:
        self.endpoint = await self.scheduler.start(NODE, HOST)
        self.start_manager()

    def start_manager(self) -> None:
        manager = PoolManager(self.fleet, SECRET, self.locate, NODE)
        self.manager = asyncio.create_task(manager.run())

    async def stop_manager(self) -> None:
        await _stopped(self.manager)

    def start_replica(self) -> None:
        """A node joins, on which the replica that is ordered finds room."""
        self.fleet.live = (NodeInfo(NODE),)

    async def stop_replica(self) -> None:
        """The node is gone, and with it what ran there."""
        self.fleet.live = ()
        await self.fleet.end_all()

    def gateway(self) -> ClusterGateway:
        gateway = ClusterGateway(SECRET, self.locate, NODE, f"ingress-{len(self.gateways)}", 50)
        gateway.start()
        self.gateways.append(gateway)
        return gateway

    async def ready(self, gateway: ClusterGateway) -> None:
        async with asyncio.timeout(60):
            while not (await gateway.readiness()).ready:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for gateway in self.gateways:
            await gateway.close()
        await self.stop_manager()
        await self.fleet.end_all()
        await self.scheduler.close()


@contextlib.asynccontextmanager
async def cluster(**options: Any) -> AsyncIterator[tuple[Cluster, ClusterGateway]]:
    """A ready cluster and one gateway."""
    running = Cluster(**options)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)
        yield running, gateway
    finally:
        await running.close()


def task(task_id: str, max_tokens: int = 5, **changes: object) -> TaskInfo:
    fields = {
        "task_id": task_id,
        "session_id": "s",
        "tenant": "acme",
        "workload": "completion",
        "engine": "llamacpp",
        "model_ref": MODEL,
        "ctx": 2048,
        "priority": "interactive",
        "max_tokens": max_tokens,
        "deadline_ms": 60_000,
        "seed": 1,
        "determinism": "strict",
        "sampler_profile_version": "v1",
        "prompt_bytes": 5,
        "templated": False,
        "body_digest": b"d",
    }
    return TaskInfo(**(fields | changes))  # type: ignore[arg-type]


async def submit(gateway: ClusterGateway, task_id: str, max_tokens: int = 5, prompt: str = "plain") -> None:
    await gateway.submit(task(task_id, max_tokens), GenerateRequest(task_id, max_tokens, 1, prompt=prompt))


async def collect(gateway: ClusterGateway, task_id: str, after: int = -1) -> tuple[list[str], StreamEvent]:
    """The tokens of a stream and its terminal event."""
    texts: list[str] = []
    last: StreamEvent | None = None
    async with asyncio.timeout(60):
        async for event in gateway.stream(task_id, "acme", after):
            if isinstance(event, Tokens):
                assert event.first == after + 1 + len(texts)
                texts += event.texts
            last = event
    assert last is not None
    return texts, last


async def until(condition: "asyncio.Future[bool] | object") -> None:
    """Wait until `condition()` holds, bounded."""
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)
