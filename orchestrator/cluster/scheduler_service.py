"""The scheduler's shell: turns channel messages into core events and core commands into messages.

It decides nothing. Everything that chooses is in `orchestrator.core`; here are the clock, the
connections, the payloads and transcripts (which the core never reads), the journal and the metrics.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from msgspec.structs import replace

from contracts import messages as wire
from contracts import pools
from contracts import scheduling as ev
from contracts.journal import Kept
from contracts.policies import SchedulerConfig
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.commands import Commands
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.durability import Durability
from orchestrator.cluster.joining import joined
from orchestrator.cluster.journal.clocks import this_boot
from orchestrator.cluster.journal.recovery import Restored
from orchestrator.cluster.journal.store import Storage, open_store
from orchestrator.cluster.live import LiveTask, restored
from orchestrator.cluster.news import News
from orchestrator.cluster.pool_dialogue import PoolDialogue
from orchestrator.cluster.queries import Queries
from orchestrator.cluster.requests import Requests
from orchestrator.cluster.switchboard import Asker, Switchboard
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.journal import records
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)

_IN_MEMORY: Final = Storage(journal=False)


class SchedulerService:
    """One scheduler: core, channel server, payloads of live tasks, transcripts of ended ones."""

    def __init__(
        self,
        config: SchedulerConfig,
        secret: bytes,
        *,
        storage: Storage = _IN_MEMORY,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._core = Scheduler(config)
        self._clock = clock
        self._storage = storage
        self._server = ChannelServer(secret, wire.ToScheduler, self._opened, self._received, self._closed)
        self._live: dict[str, LiveTask] = {}
        self._transcripts: dict[str, bytes] = {}
        self._telemetry = Telemetry(config, self._live)
        self._switchboard = Switchboard()
        self._replicas = self._switchboard.replicas
        self._durability = Durability(self._live, self._tell)
        post = self._durability.post
        self._pools = PoolDialogue(self._core, self._tell, self._replicas, self._telemetry.pools, post)
        queries = Queries(self._core, clock, self._live, self._transcripts, self._telemetry)
        self._news = News(self._core, clock, self._live, self._switchboard, post)
        self._commands = Commands(
            config,
            self._core,
            clock,
            self._live,
            self._transcripts,
            self._switchboard,
            post,
            self._news,
            self._pools,
            self._telemetry,
            lambda: self._tell(ev.TimerFired()),
        )
        self._requests = Requests(
            self._core,
            clock,
            self._live,
            self._switchboard,
            self._tell,
            post,
            self._news,
            self._pools,
            queries,
            self._telemetry,
            self._durability.refusal,
        )

    # --------------------------------------------------------------------- its life

    async def start(self, node_id: str, host: str) -> wire.Endpoint:
        """Go on where the scheduler before ended, then listen. Raises JournalError."""
        store, before = await asyncio.to_thread(open_store, self._storage, this_boot(self._clock))
        self._durability.start(store)
        try:
            self._recover(before)
            return replace(await self._server.start(node_id, host), epoch=before.epoch)
        except BaseException:
            await self.close()  # or the folder stays taken, and no later try can succeed
            raise

    def _recover(self, before: Restored) -> None:
        """Tell the core what was kept, if anything was (ORCH-3051)."""
        for kept in before.kept.tasks:
            if kept.outcome is None:
                task_id = kept.task.task_id
                self._live[task_id] = restored(kept, before.payloads[task_id])
        self._transcripts.update(before.transcripts)
        if before.kept != Kept():
            self._tell(ev.ServiceRecovered(before.kept))
            self._telemetry.learn(self._core.set_policies())  # a reload of before made sets that no file names

    async def shutdown(self, deadline_ms: int) -> ev.AnswerShutdown:
        """Admit and start nothing more, and let what runs end for so long; what was left then."""
        asker = Asker()
        self._tell(ev.ShutdownRequested(self._switchboard.question(asker, 0), deadline_ms))
        left: ev.AnswerShutdown = await asker.answer
        return left

    async def close(self) -> None:
        """Commit what waits, then end all connections."""
        self._commands.close()
        await self._durability.close()
        await self._server.close()

    # ------------------------------------------------------------------ the core

    def _tell(self, event: ev.AnyEvent) -> None:
        """Step the core with one event and carry out what it commands."""
        now_ns = self._clock()
        commands = self._core.step(now_ns, event)
        if self._durability.is_on:
            self._durability.begin(records(self._core.state, commands), commands)
        self._telemetry.happened(event)
        for command in commands:
            self._commands.perform(now_ns, command)
        if isinstance(event, ev.AttemptEnded):
            self._noted(event)
        elif isinstance(event, ev.ReplicaReady | ev.ReplicaLoading):
            for ended in event.ended:
                self._noted(ended)
            for running in event.running if isinstance(event, ev.ReplicaReady) else ():
                self._news.adopted(running.task_id, running.attempt)
        self._durability.end()

    def _noted(self, ended: ev.AttemptEnded) -> None:
        """The replica need not tell this end again, once it is durable."""
        replica = self._replicas.get(ended.replica_id)
        if replica is not None:
            self._durability.post(replica, wire.EndNoted(ended.task_id, ended.attempt), ended.task_id)

    # --------------------------------------------------------------- connections

    def _opened(self, connection: Connection) -> None:
        log.info("channel.opened", role=connection.role, peer=connection.peer_id)
        if connection.role == "manager":
            self._pools.manager_opened(connection)

    def _closed(self, connection: Connection) -> None:
        log.info("channel.closed", role=connection.role, peer=connection.peer_id)
        self._pools.manager_closed(connection)
        self._switchboard.left(connection)
        # A newer connection of the same replica has taken over; its state is not ours to end.
        if connection.role == "replica" and self._switchboard.is_current(connection):
            self._switchboard.unregister(connection.peer_id)
            self._tell(ev.ReplicaLost(connection.peer_id, "its connection ended"))

    def _received(self, connection: Connection, message: Any) -> None:
        if connection.role == "ingress":
            expected = self._requests.take(connection, message)
        else:
            handler = _HANDLE[connection.role].get(type(message))
            expected = handler is not None
            if handler is not None:
                handler(self, connection, message)
        if not expected:
            log.warning("channel.unexpected", role=connection.role, message=type(message).__name__)
            connection.close()

    # -------------------------------------------------------------- from replicas

    def _on_register(self, connection: Connection, message: wire.RegisterReplica) -> None:
        if self._switchboard.is_outdated(message):
            connection.close()
            return
        before = self._replicas.get(message.replica_id)
        if before is not None and before is not connection:
            self._tell(ev.ReplicaLost(message.replica_id, "it connected again"))
            before.close()
        self._switchboard.register(connection, message)

    def _on_transcript(self, connection: Connection, message: wire.AttemptTranscript) -> None:
        live = self._live.get(message.task_id)
        if live is not None and live.is_run_by(connection.peer_id, message.attempt):
            before = self._transcripts.get(message.task_id)
            tokens = self._transcripts[message.task_id] = joined(before, message.tokens, live.resume_tokens)
            self._durability.transcript(message.task_id, tokens)

    def _on_progress(self, connection: Connection, message: ev.TokensProgressed) -> None:
        live = self._live.get(message.task_id)
        if live is not None and live.is_run_by(connection.peer_id, message.attempt):
            self._on_event(connection, message)

    def _on_gauges(self, _connection: Connection, message: wire.EngineGauges) -> None:
        self._telemetry.gauges(message)
        if message.kv_cache_usage_ratio is not None:
            self._tell(ev.ReplicaReported(message.replica_id, round(message.kv_cache_usage_ratio * 1000)))

    def _on_event(self, connection: Connection, message: ev.AnyEvent) -> None:
        # A replica whose place was taken by another connection is not spoken for by this one any more.
        if self._switchboard.is_current(connection):
            self._durability.heard(connection, message)
            self._tell(message)


_HANDLE: Final[dict[str, dict[type, Callable[[SchedulerService, Connection, Any], None]]]] = {
    "replica": {
        wire.RegisterReplica: SchedulerService._on_register,
        wire.AttemptTranscript: SchedulerService._on_transcript,
        wire.ResumeMismatch: lambda service, _, message: service._telemetry.count_mismatch(message.replica_id),
        wire.EngineGauges: SchedulerService._on_gauges,
        ev.TokensProgressed: SchedulerService._on_progress,
        **dict.fromkeys(
            (
                ev.ReplicaReady,
                ev.ReplicaLoading,
                ev.ReplicaUnready,
                ev.PromptMeasured,
                ev.AttemptEnded,
                ev.SlotReleased,
                pools.LeaseRenewed,
                pools.ReplicaFaulted,
            ),
            SchedulerService._on_event,
        ),
    },
    "manager": {
        report: lambda service, connection, event: service._pools.report(connection, event)
        for report in (pools.NodesSeen, pools.ReplicaPlaced, pools.ReplicaUnplaced, pools.ReplicaGone)
    },
    "scheduler": {},
}
