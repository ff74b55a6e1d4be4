"""Keeps one replica alive: its engine process, its channel server, its link to the scheduler.

The engine is relaunched with exponential backoff when it ends; the link is made again when it
breaks. Both loops run until the host is closed.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.engine import (
    AdapterFactory,
    EngineAdapter,
    EngineError,
    EngineProperties,
    EngineSpec,
    Finish,
    GenerateRequest,
)
from contracts.errors import ErrorInfo
from contracts.tasks import ReplicaInfo
from orchestrator.cluster.channel import ChannelServer, connect
from orchestrator.cluster.connection import ChannelError, Connection
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow

log = structlog.get_logger(__name__)

RELAUNCH_BACKOFF_S_MIN: Final = 0.5
RELAUNCH_BACKOFF_S_MAX: Final = 30.0
#: An engine that served this long starts over with the shortest backoff.
STABLE_AFTER_S: Final = 60.0
RECONNECT_BACKOFF_S: Final = 0.2
GAUGES_INTERVAL_S: Final = 5.0
SELF_TEST_TIMEOUT_S: Final = 60.0
SELF_TEST: Final = GenerateRequest(task_id="self-test", max_tokens=8, seed=1, prompt="The capital of France is")

Locate = Callable[[], Awaitable[wire.Endpoint]]


class ReplicaHost:
    """One replica from birth to death. `run` returns only by cancellation."""

    def __init__(
        self, spec: EngineSpec, make_adapter: AdapterFactory, secret: bytes, locate: Locate, node_id: str, host: str
    ) -> None:
        self._spec = spec
        self._make_adapter = make_adapter
        self._secret = secret
        self._locate = locate
        self._node_id = node_id
        self._host = host
        self._flow = TokenFlow()
        self._server = ChannelServer(secret, wire.ToReplica, _ignore, self._received, self._flow.disconnect)
        self._endpoint: wire.Endpoint | None = None
        self._link: Connection | None = None
        self._unlinked = asyncio.Event()
        self._service: ReplicaService | None = None
        self._adapter: EngineAdapter | None = None
        self._state: msgspec.Struct = ev.ReplicaLoading(spec.replica_id, spec.pool_id)
        self._refused = asyncio.Event()

    async def run(self) -> None:
        self._endpoint = await self._server.start(self._node_id, self._host)
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._keep_linked())
                loops.create_task(self._keep_engine())
        finally:
            if self._adapter is not None:
                await self._adapter.close()
            if self._link is not None:
                self._link.close()
            await self._server.close()

    # ------------------------------------------------------------------- scheduler

    def _report(self, message: msgspec.Struct) -> None:
        if self._link is not None:
            self._link.send(message)

    def _enter(self, state: msgspec.Struct) -> None:
        """Remember the replica's state, so that a new link can be told, and report it."""
        self._state = state
        self._report(state)

    async def _keep_linked(self) -> None:
        while True:
            with contextlib.suppress(ChannelError):
                link = await connect(
                    await self._locate(),
                    self._node_id,
                    self._secret,
                    "replica",
                    self._spec.replica_id,
                    wire.ToReplica,
                    self._received,
                    self._lost_link,
                )
                self._unlinked.clear()
                self._link = link
                assert self._endpoint is not None
                link.send(wire.RegisterReplica(self._spec.replica_id, self._spec.pool_id, self._endpoint))
                link.send(self._state)
                await self._unlinked.wait()
                self._link = None
                if self._service is not None:
                    await self._service.abandon("the scheduler's connection ended")
            await asyncio.sleep(RECONNECT_BACKOFF_S)

    def _lost_link(self, _connection: Connection) -> None:
        self._unlinked.set()

    # ---------------------------------------------------------------------- engine

    async def _keep_engine(self) -> None:
        backoff_s = RELAUNCH_BACKOFF_S_MIN
        while not self._refused.is_set():
            launched = time.monotonic()
            self._enter(ev.ReplicaLoading(self._spec.replica_id, self._spec.pool_id))
            adapter = self._adapter = self._make_adapter(self._spec)
            try:
                await adapter.launch()
                info = await self._self_test(adapter)
            except EngineError as failed:
                reason = failed.info.message
            else:
                reason = await self._serve(adapter, info)
            log.error("engine.down", replica_id=self._spec.replica_id, reason=reason, retry_in_s=backoff_s)
            self._enter(ev.ReplicaUnready(self._spec.replica_id, reason))
            await adapter.close()
            if time.monotonic() - launched > STABLE_AFTER_S:
                backoff_s = RELAUNCH_BACKOFF_S_MIN
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, RELAUNCH_BACKOFF_S_MAX)
        await asyncio.Event().wait()  # refused: stay visible and idle until the pool decides

    async def _self_test(self, adapter: EngineAdapter) -> ReplicaInfo:
        """Readiness is a generated token, not a health page. Raises EngineError (POOL_UNREADY)."""
        properties = await adapter.properties()
        generated = adapter.generate("self-test", SELF_TEST)
        try:
            async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
                times_ns = [time.monotonic_ns() async for item in generated if not isinstance(item, Finish)]
        except TimeoutError:
            raise EngineError(self._unready("the self-test did not end in time")) from None
        if not times_ns:
            raise EngineError(self._unready("the self-test generated no token"))
        token_ns = (times_ns[-1] - times_ns[0]) // max(1, len(times_ns) - 1)
        return self._info(properties, max(1, token_ns))

    def _info(self, properties: EngineProperties, token_ns: int) -> ReplicaInfo:
        spec = self._spec
        return ReplicaInfo(
            replica_id=spec.replica_id,
            pool_id=spec.pool_id,
            engine=spec.engine,
            engine_version=properties.engine_version,
            model_digest=properties.model_digest,
            ctx=properties.ctx,
            slots=properties.slots,
            sampler_profile_version=spec.sampler_profile_version,
            accelerator=spec.accelerator,
            node_id=self._node_id,
            devices=spec.devices,
            token_ns=token_ns,
            interruptible_decode=properties.interruptible_decode,
            zone=spec.zone,
            kv_tokens=properties.kv_tokens,
            kv_token_bytes=properties.kv_token_bytes,
            keeps_kv=properties.keeps_kv,
        )

    def _unready(self, message: str) -> ErrorInfo:
        return ErrorInfo("POOL_UNREADY", message, engine=self._spec.engine, pool_id=self._spec.pool_id, retriable=True)

    async def _serve(self, adapter: EngineAdapter, info: ReplicaInfo) -> str:
        """Serve until the engine ends, hangs or is refused; says why."""
        service = self._service = ReplicaService(self._spec, adapter, self._report, self._flow)
        self._enter(ev.ReplicaReady(info))
        log.info("replica.ready", replica_id=info.replica_id, engine_version=info.engine_version)
        exited = asyncio.create_task(adapter.wait_exit())
        broken = asyncio.create_task(service.broken.wait())
        refused = asyncio.create_task(self._refused.wait())
        chores = [asyncio.create_task(service.report_progress()), asyncio.create_task(self._report_gauges(adapter))]
        try:
            await asyncio.wait((exited, broken, refused), return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                end = exited.result()
                tail = "; ".join(end.stderr_tail[-3:])
                reason = f"the engine process ended with status {end.status}" + (f": {tail}" if tail else "")
            else:
                reason = "the replica was refused" if refused.done() else "the engine stopped answering"
            return reason
        finally:
            self._service = None
            for task in (exited, broken, refused, *chores):
                task.cancel()
            await asyncio.gather(exited, broken, refused, *chores, return_exceptions=True)
            await service.abandon("the engine ended while the task ran")

    async def _report_gauges(self, adapter: EngineAdapter) -> None:
        while True:
            await asyncio.sleep(GAUGES_INTERVAL_S)
            with contextlib.suppress(EngineError):
                metrics = await adapter.metrics()
                self._report(wire.EngineGauges(self._spec.replica_id, metrics.kv_cache_usage_ratio))

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
        elif connection is not self._link:
            log.warning("channel.unexpected", role=connection.role, message=type(message).__name__)
            connection.close()
        elif isinstance(message, wire.Refused):
            self._refused.set()
        elif service is not None:  # else: the Unready under way to the scheduler answers all of these
            if isinstance(message, wire.StartAttempt):
                service.start(message)
            elif isinstance(message, wire.StopAttempt):
                service.stop(message)
            elif isinstance(message, wire.Measure):
                service.measure(message)


def _ignore(_connection: Connection) -> None:
    """Ingresses need no greeting."""
