"""One replica and its scheduler: it launches when told, says how that went, and survives a cut link."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts.engine import EngineAdapter, EngineError, EngineExit, EngineSpec
from contracts.errors import ErrorInfo
from contracts.messages import EngineGauges, Launch, RegisterReplica
from contracts.pools import FaultKind, LeaseRenewed, ReplicaFaulted
from contracts.scheduling import ReplicaLoading, ReplicaReady, ReplicaUnready
from orchestrator.cluster import replica_host, uplink
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.gpus.watch import GpuFault
from orchestrator.cluster.preload import Prepared
from orchestrator.cluster.replica_host import ReplicaHost
from tests.unit.cluster.scripted import HOST, NODE, SECRET, SPEC, ScriptedAdapter, until

LOADING = ReplicaLoading("pool-0", "pool", 1)
Message = TypeVar("Message")


class SlowAdapter(ScriptedAdapter):
    """An engine that comes up, or fails to, and ends when a test lets it."""

    def __init__(self, spec: EngineSpec, launched: list[ScriptedAdapter]) -> None:
        super().__init__(spec, launched)
        self.may_come_up, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_come_up.set()
        self.may_end.set()
        self.failure: EngineError | None = None

    async def launch(self) -> None:
        await super().launch()
        await self.may_come_up.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        await self.may_end.wait()
        await super().close()


class Scene:
    """A replica host, and what stands for its scheduler: all that it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.links: list[Connection] = []
        self.engines: list[ScriptedAdapter] = []
        self.prepare_engine: Callable[[SlowAdapter], None] = lambda _engine: None
        self._server = ChannelServer(SECRET, wire.ToScheduler, self.links.append, self._received, lambda _closed: None)
        self._endpoint: wire.Endpoint | None = None
        self.host: ReplicaHost | None = None

    def _received(self, _connection: Connection, message: Any) -> None:
        self.told.append(message)

    def _make(self, spec: EngineSpec) -> EngineAdapter:
        engine = SlowAdapter(spec, self.engines)
        self.prepare_engine(engine)
        return engine

    async def _locate(self) -> wire.Endpoint:
        assert self._endpoint is not None
        return self._endpoint

    async def start(self) -> "asyncio.Task[None]":
        self._endpoint = await self._server.start(NODE, HOST)
        self.host = ReplicaHost(SPEC, self._make, SECRET, self._locate, NODE, HOST)
        return asyncio.create_task(self.host.run())

    async def close(self) -> None:
        await self._server.close()

    def launch(self, slots: int = 2) -> None:
        self.links[-1].send(Launch(slots))

    def all(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.told if isinstance(message, kind)]

    async def nth(self, kind: type[Message], count: int = 1) -> Message:
        """Wait for a message of a kind, the first or a later one."""
        await until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    @property
    def story(self) -> list[str]:
        """What was told, leases and gauges aside."""
        return [type(message).__name__ for message in self.told if not isinstance(message, LeaseRenewed | EngineGauges)]


@contextlib.asynccontextmanager
async def replica() -> AsyncIterator[Scene]:
    """A replica that has registered and waits to be told to launch."""
    scene = Scene()
    running = await scene.start()
    try:
        await scene.nth(ReplicaLoading)
        yield scene
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await scene.close()


@pytest.mark.req("ORCH-3002", "ORCH-3010", "OC-POOL-3001")
async def test_a_replica_registers_and_launches_when_it_is_told() -> None:
    async with replica() as scene:
        register = await scene.nth(RegisterReplica)
        assert (register.replica_id, register.pool_id, register.incarnation) == ("pool-0", "pool", 1)
        assert scene.all(ReplicaLoading) == [LOADING]
        assert scene.engines == []
        scene.launch(slots=3)
        ready = await scene.nth(ReplicaReady)
        assert (ready.replica.slots, ready.replica.zone, ready.replica.accelerator) == (3, "hall-2", "cpu-dev")
        assert ready.replica.token_ns > 0
        assert [engine.spec.slots for engine in scene.engines] == [3]
        assert scene.story == ["RegisterReplica", "ReplicaLoading", "ReplicaLoading", "ReplicaReady"]


@pytest.mark.req("ORCH-3010", "ORCH-3018")
async def test_leases_are_renewed_also_while_nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink, "LEASE_INTERVAL_S", 0.01)
    async with replica() as scene:
        await scene.nth(LeaseRenewed, 3)
        assert set(scene.all(LeaseRenewed)) == {LeaseRenewed("pool-0")}
        scene.launch()
        await scene.nth(ReplicaReady)
        await scene.nth(LeaseRenewed, len(scene.all(LeaseRenewed)) + 2)


@pytest.mark.req("OC-POOL-3011")
async def test_a_launch_that_is_asked_for_again_while_it_is_under_way_is_one_launch() -> None:
    coming_up = asyncio.Event()
    async with replica() as scene:
        scene.prepare_engine = lambda engine: setattr(engine, "may_come_up", coming_up)
        for _ in range(2):
            scene.launch()
        await until(lambda: scene.engines)
        scene.launch()
        await asyncio.sleep(0.05)
        coming_up.set()
        await scene.nth(ReplicaReady)
        await asyncio.sleep(0.05)
        assert len(scene.engines) == 1
        assert scene.story.count("ReplicaReady") == 1
        assert scene.all(ReplicaUnready) == []


@pytest.mark.req("ORCH-3038", "ORCH-3039")
async def test_a_replica_that_serves_gets_a_new_engine_when_it_is_told_to_launch() -> None:
    async with replica() as scene:
        scene.launch(slots=4)
        await scene.nth(ReplicaReady)
        scene.launch(slots=3)
        ready = await scene.nth(ReplicaReady, 2)
        assert ready.replica.slots == 3
        assert [engine.exit.done() for engine in scene.engines] == [True, False]
        assert scene.all(ReplicaUnready) == []


@pytest.mark.req("ORCH-3053", "OC-POOL-3003", "OC-POOL-3010")
async def test_an_engine_that_ends_is_told_with_its_last_words_and_can_be_launched_again() -> None:
    async with replica() as scene:
        scene.launch()
        await scene.nth(ReplicaReady)
        scene.engines[0].exit.set_result(EngineExit(-9, ("CUDA error", "out of memory"), "vram_oom"))
        unready = await scene.nth(ReplicaUnready)
        assert (unready.kind, unready.stderr) == ("vram_oom", ("CUDA error", "out of memory"))
        assert unready.reason == "the engine process ended with status -9: out of memory"
        await asyncio.sleep(0.02)
        assert len(scene.engines) == 1  # nobody said when
        scene.launch()
        await scene.nth(ReplicaReady, 2)
        assert len(scene.engines) == 2


@pytest.mark.req("ORCH-3003", "OC-POOL-3003")
async def test_a_launch_that_fails_is_told_by_its_kind_and_the_engine_is_ended() -> None:
    info = ErrorInfo("POOL_UNREADY", "the weights are cut short", retriable=True)
    async with replica() as scene:
        scene.prepare_engine = lambda engine: setattr(engine, "failure", EngineError(info, "model", ("tensor 12",)))
        scene.launch()
        unready = await scene.nth(ReplicaUnready)
        assert unready == ReplicaUnready("pool-0", "the weights are cut short", "model", ("tensor 12",))
        await until(scene.engines[0].exit.done)
        assert scene.all(ReplicaReady) == []
        scene.prepare_engine = lambda _engine: None
        scene.launch()
        await scene.nth(ReplicaReady)


@pytest.mark.req("ORCH-3010", "ORCH-3053")
async def test_a_launch_that_comes_while_the_last_engine_still_ends_is_not_forgotten() -> None:
    """Engines take a while to end, and the wait until the next launch may be shorter."""
    may_end = asyncio.Event()
    async with replica() as scene:
        scene.prepare_engine = lambda engine: setattr(engine, "may_end", may_end)
        scene.launch()
        await scene.nth(ReplicaReady)
        scene.engines[0].exit.set_result(EngineExit(1))
        await scene.nth(ReplicaUnready)
        scene.launch()
        await asyncio.sleep(0.05)
        assert len(scene.engines) == 1  # two engines never share a GPU
        may_end.set()
        await scene.nth(ReplicaReady, 2)


@pytest.mark.req("ORCH-3010")
async def test_a_link_that_is_cut_while_the_engine_serves_comes_back_with_the_same_engine() -> None:
    async with replica() as scene:
        scene.launch()
        first = await scene.nth(ReplicaReady)
        scene.links[0].close()
        again = await scene.nth(ReplicaReady, 2)
        assert again == first == ReplicaReady(first.replica, SPEC.incarnation)
        assert len(scene.links) == 2
        assert len(scene.engines) == 1
        assert scene.story[4:] == ["RegisterReplica", "ReplicaReady"]


@pytest.mark.req("ORCH-3010")
async def test_a_link_that_is_cut_during_a_launch_comes_back_and_hears_of_its_end() -> None:
    coming_up = asyncio.Event()
    async with replica() as scene:
        scene.prepare_engine = lambda engine: setattr(engine, "may_come_up", coming_up)
        scene.launch()
        await until(lambda: scene.engines)
        scene.links[0].close()
        await scene.nth(RegisterReplica, 2)
        scene.launch()  # whoever waits for it does not know that it is under way
        await asyncio.sleep(0.02)
        coming_up.set()
        await scene.nth(ReplicaReady)
        assert len(scene.engines) == 1


async def test_a_replica_that_is_refused_says_nothing_and_stays() -> None:
    async with replica() as scene:
        scene.links[0].send(wire.Refused("unlike its set"))
        scene.launch()
        await scene.nth(ReplicaReady)
        assert len(scene.links) == 1


async def test_a_replica_that_is_ended_ends_its_engine() -> None:
    async with replica() as scene:
        scene.launch()
        await scene.nth(ReplicaReady)
        engine = scene.engines[0]
    assert engine.exit.done()


# ------------------------------------------------------------------------ GPU faults


class ToldPreload:
    """In place of the checks: nothing is in the way, and a test tells of faults."""

    made: "list[ToldPreload]" = []  # noqa: RUF012  # emptied by the fixture

    def __init__(self, spec: EngineSpec, tell: Callable[[GpuFault], None]) -> None:
        self._spec = spec
        self.tell = tell
        ToldPreload.made.append(self)

    def start(self) -> None:
        """No GPU is watched."""

    def stop(self) -> None:
        """No GPU is watched."""

    async def prepare(self, slots: int, _adapter: EngineAdapter) -> Prepared:
        return Prepared(replace(self._spec, slots=slots))

    def gauges(self, kv_usage_ratio: float | None) -> EngineGauges:
        return EngineGauges(self._spec.replica_id, kv_usage_ratio, host_ram_used_bytes=1)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[[FaultKind, bool], None]:
    """Tells the replica of a fault of its GPU."""
    ToldPreload.made.clear()
    monkeypatch.setattr(replica_host, "Preload", ToldPreload)
    return lambda kind, fatal: ToldPreload.made[0].tell(GpuFault(kind, fatal, f"GPU 0: {kind}", 0))


@pytest.mark.req("ORCH-3038")
async def test_a_fault_that_an_engine_survives_is_told_and_the_engine_goes_on(
    faults: Callable[[FaultKind, bool], None],
) -> None:
    async with replica() as scene:
        scene.launch()
        await scene.nth(ReplicaReady)
        faults("ecc", False)
        assert await scene.nth(ReplicaFaulted) == ReplicaFaulted("pool-0", "ecc", "GPU 0: ecc")
        assert not scene.engines[0].exit.done()
        assert scene.all(ReplicaUnready) == []


@pytest.mark.req("ORCH-3038", "ORCH-3053", "OC-POOL-3010")
async def test_a_fatal_fault_ends_the_engine_with_its_kind(faults: Callable[[FaultKind, bool], None]) -> None:
    async with replica() as scene:
        scene.launch()
        await scene.nth(ReplicaReady)
        for kind in ("gpu_lost", "driver"):  # the first says why
            faults(kind, True)  # type: ignore[arg-type]
        assert await scene.nth(ReplicaUnready) == ReplicaUnready("pool-0", "GPU 0: gpu_lost", "gpu_lost")
        await until(scene.engines[0].exit.done)
        scene.launch()
        await scene.nth(ReplicaReady, 2)
        assert len(scene.all(ReplicaUnready)) == 1


@pytest.mark.req("ORCH-3038", "OC-POOL-3010")
async def test_a_fatal_fault_while_the_model_loads_is_not_missed(faults: Callable[[FaultKind, bool], None]) -> None:
    coming_up = asyncio.Event()
    async with replica() as scene:
        scene.prepare_engine = lambda engine: setattr(engine, "may_come_up", coming_up)
        scene.launch()
        await until(lambda: scene.engines)
        faults("gpu_lost", True)
        coming_up.set()
        assert (await scene.nth(ReplicaUnready)).kind == "gpu_lost"
        await until(scene.engines[0].exit.done)


@pytest.mark.req("OC-POOL-3030", "ORCH-3028")
@pytest.mark.usefixtures("faults")
async def test_gauges_are_reported_while_the_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_host, "GAUGES_INTERVAL_S", 0.01)
    async with replica() as scene:
        await asyncio.sleep(0.05)
        assert scene.all(EngineGauges) == []
        scene.launch()
        gauges = await scene.nth(EngineGauges, 2)
        assert (gauges.replica_id, gauges.host_ram_used_bytes) == ("pool-0", 1)
