"""Keeps one replica alive: its channel server, its link to the scheduler, and its engine when told to.

The scheduler says when the engine is launched, and again after it failed (`Launch`); until then the replica
waits. Losing the scheduler ends nothing: attempts and their streams go on, and a new link begins with what runs and
what has ended meanwhile. All loops run until the host is closed.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.engine import AdapterFactory, EngineAdapter, EngineError, EngineExit, EngineSpec
from contracts.pools import ReplicaFaulted
from contracts.tasks import ReplicaInfo
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.engine_down import Down, down_of
from orchestrator.cluster.gpus.watch import GpuFault
from orchestrator.cluster.outstanding import Outstanding
from orchestrator.cluster.preload import Preload, replica_info
from orchestrator.cluster.relink import Locate
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.self_test import self_test
from orchestrator.cluster.transcript import TokenFlow
from orchestrator.cluster.uplink import Uplink

log = structlog.get_logger(__name__)

GAUGES_INTERVAL_S: Final = 5.0
#: An engine that stopped answering may have ended: how long its exit status is waited for, which says why.
LAST_WORDS_S: Final = 1.0
_FINISH_POLL_S: Final = 0.05


class ReplicaHost:
    """One replica from birth to death. `run` returns only by cancellation."""

    def __init__(
        self, spec: EngineSpec, make_adapter: AdapterFactory, secret: bytes, locate: Locate, node_id: str, host: str
    ) -> None:
        self._spec = spec
        self._make_adapter = make_adapter
        self._node_id, self._host = node_id, host
        self._flow = TokenFlow()
        self._server = ChannelServer(secret, wire.ToReplica, _ignore, self._received, self._flow.disconnect)
        self._uplink = Uplink(
            spec.replica_id, secret, locate, node_id, self._received, self._greeting, self._linked, self._lost_scheduler
        )
        self._outstanding = Outstanding()
        self._endpoint: wire.Endpoint | None = None
        self._service: ReplicaService | None = None
        self._adapter: EngineAdapter | None = None
        self._preload = Preload(spec, self._gpu_fault)
        self._ready: ev.ReplicaReady | None = None
        self._launch: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._coming_up = False
        self._gpu_down: asyncio.Future[Down] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        self._endpoint = await self._server.start(self._node_id, self._host)
        self._preload.start()
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._uplink.keep())
                loops.create_task(self._uplink.renew_lease())
                loops.create_task(self._keep_engine())
        finally:
            if self._adapter is not None:
                await self._adapter.close()
            self._uplink.close()
            await self._server.close()
            await asyncio.to_thread(self._preload.stop)

    async def finish(self, timeout_s: float) -> None:
        """Take nothing new; returns when what runs has ended and the scheduler knows, after so long at most."""
        if self._service is None:
            return
        until_s = time.monotonic() + timeout_s
        self._ready = None  # a link that is made anew must not offer this engine again
        self._report(ReplicaFaulted(self._spec.replica_id, "actor", "its process was asked to end"))
        while ((self._service and self._service.occupied()) or self._outstanding.ends()) and time.monotonic() < until_s:
            await asyncio.sleep(_FINISH_POLL_S)

    @property
    def _waiting(self) -> ev.ReplicaLoading:
        return ev.ReplicaLoading(self._spec.replica_id, self._spec.pool_id, self._spec.incarnation)

    # ------------------------------------------------------------------- scheduler

    def _report(self, message: msgspec.Struct) -> None:
        self._outstanding.heard(message)
        self._uplink.report(message)

    def _greeting(self) -> Iterator[msgspec.Struct]:
        """What a new link begins with: who this is, what it made, and what it does."""
        spec = self._spec
        assert self._endpoint is not None
        yield wire.RegisterReplica(spec.replica_id, spec.pool_id, self._endpoint, spec.incarnation)
        yield from self._outstanding.transcripts()
        ended = self._outstanding.ends()
        if self._ready is not None and self._service is not None:
            yield msgspec.structs.replace(self._ready, running=self._service.occupied(), ended=ended)
        else:
            # In one message: what ended before is not to be taken for lost with its engine.
            yield msgspec.structs.replace(self._waiting, ended=ended)

    def _linked(self) -> None:
        if self._ready is not None:  # else it was not told what runs
            self._flow.heard()

    def _lost_scheduler(self) -> None:
        # The next one asks for its measurements itself.
        if self._service is not None:
            self._service.drop_measurements()

    # ---------------------------------------------------------------------- engine

    async def _keep_engine(self) -> None:
        while True:
            slots = await self._launch
            self._launch = asyncio.get_running_loop().create_future()
            self._coming_up = True
            self._report(self._waiting)
            await self._run_engine(slots)
            if self._adapter is not None:
                await self._adapter.close()
                self._adapter = None

    async def _run_engine(self, slots: int) -> None:
        """Bring an engine up and serve until it is down, or another one is asked for."""
        # Here, not when it serves: a GPU that fails while the model loads must not be missed.
        self._gpu_down = asyncio.get_running_loop().create_future()
        try:
            self._adapter = self._make_adapter(self._spec)
            prepared = await self._preload.prepare(slots, self._adapter)
            adapter = self._adapter = self._make_adapter(prepared.spec)
            await adapter.launch()
            shown = await self_test(adapter, prepared.spec)
            info = replica_info(prepared, await adapter.properties(), shown, self._node_id)
        except EngineError as failed:
            self._coming_up = False
            self._tell_down(Down(failed.kind, failed.info.message, failed.stderr_tail))
        else:
            self._coming_up = False
            if self._gpu_down.done():
                self._tell_down(self._gpu_down.result())
            else:
                await self._serve(adapter, info)

    def _tell_down(self, down: Down) -> None:
        """At once: ending an engine takes time, and no task may be sent to it meanwhile."""
        log.error("engine.down", replica_id=self._spec.replica_id, kind=down.kind, reason=down.reason)
        self._report(ev.ReplicaUnready(self._spec.replica_id, down.reason, down.kind, down.stderr))

    async def _serve(self, adapter: EngineAdapter, info: ReplicaInfo) -> None:
        """Serve until the engine ends or hangs, its GPU fails, or another launch is asked for."""
        service = ReplicaService(self._spec, adapter, self._report, self._flow, self._uplink.flush)
        self._service, self._ready = service, ev.ReplicaReady(info, self._spec.incarnation)
        self._report(self._ready)
        log.info("replica.ready", replica_id=info.replica_id, engine_version=info.engine_version)
        exited = asyncio.create_task(adapter.wait_exit())
        broken = asyncio.create_task(service.broken.wait())
        chores = [asyncio.create_task(service.report_progress()), asyncio.create_task(self._report_gauges(adapter))]
        try:
            await asyncio.wait((exited, broken, self._gpu_down, self._launch), return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                await asyncio.wait((exited,), timeout=LAST_WORDS_S)
        finally:
            self._service = self._ready = None
            # The scheduler hears how far the attempts came before it hears of their loss.
            service.last_words()
            self._tell_end(exited, service.broken.is_set())
            for task in (exited, broken, *chores):
                task.cancel()
            await service.close()
            await asyncio.gather(exited, broken, *chores, return_exceptions=True)
            self._outstanding.engine_ended()

    def _tell_end(self, exited: "asyncio.Task[EngineExit]", is_broken: bool) -> None:
        """Say why nothing is served any more; a replica that is ended tells by its link."""
        if exited.done():
            self._tell_down(down_of(exited.result()))
        elif self._gpu_down.done():
            self._tell_down(self._gpu_down.result())
        elif self._launch.done():
            self._report(self._waiting)
        elif is_broken:
            self._tell_down(Down("stuck", "the engine stopped answering"))

    def _gpu_fault(self, fault: GpuFault) -> None:
        """The driver told of an error: a fatal one ends the engine now, another lets it finish (ORCH-3038)."""
        log.error("gpu.fault", replica_id=self._spec.replica_id, kind=fault.kind, message=fault.message)
        if not fault.fatal:
            self._ready = None  # a link that is made anew must not offer this engine again
            self._report(ReplicaFaulted(self._spec.replica_id, fault.kind, fault.message))
        elif not self._gpu_down.done():
            self._gpu_down.set_result(Down(fault.kind, fault.message))

    async def _report_gauges(self, adapter: EngineAdapter) -> None:
        while True:
            await asyncio.sleep(GAUGES_INTERVAL_S)
            with contextlib.suppress(EngineError):
                metrics = await adapter.metrics()
                self._report(self._preload.gauges(metrics.kv_cache_usage_ratio))

    # -------------------------------------------------------------------- messages

    def _received(self, connection: Connection, message: Any) -> None:
        service = self._service
        if isinstance(message, wire.Unsubscribe):
            self._flow.unsubscribe(connection, message.sid)
        elif isinstance(message, wire.Credit):
            self._flow.grant(connection, message.sid, message.tokens)
        elif isinstance(message, wire.Subscribe):
            if service is None:
                connection.send(wire.StreamOver(message.sid, "unknown"))
            else:
                service.subscribe(connection, message)
        elif not self._uplink.is_made_by(connection):
            log.warning("channel.unexpected", role=connection.role, message=type(message).__name__)
            connection.close()
        elif isinstance(message, wire.EndNoted):
            self._outstanding.noted(message.task_id, message.attempt)
        elif isinstance(message, wire.Refused):
            log.error("replica.refused", replica_id=self._spec.replica_id, reason=message.reason)
        elif isinstance(message, wire.Launch):
            # One that is under way answers for both: a new link asked again. While the last engine ends, none is.
            if not self._launch.done() and not self._coming_up:
                self._launch.set_result(message.slots)
        elif service is not None:  # else: the Unready under way to the scheduler answers all of these
            if isinstance(message, wire.StartAttempt):
                service.start(message)
            elif isinstance(message, wire.StopAttempt):
                service.stop(message)
            elif isinstance(message, wire.Measure):
                service.measure(message)


def _ignore(_connection: Connection) -> None:
    """Ingresses need no greeting."""
