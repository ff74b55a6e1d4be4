"""The scheduler's side of pools: the manager's link, requests of operators, and what is told of decisions."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from msgspec import Struct

from contracts import control_messages as wire
from contracts import pools as ev
from contracts.messages import Done, Failed, Launch
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.held import Receiver
from orchestrator.cluster.pool_telemetry import PoolTelemetry
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)

#: Decisions that an operator wants to see without asking; the others are told at level info.
WARNINGS: Final = ("restart", "breaker_open", "lease_lapsed", "capacity_reduced", "rolled_back")

#: Orders of replicas and what is said to them keep their order.
SUBJECT: Final = " pools"

Tell = Callable[[ev.PoolEvent], None]
#: Sends a message about a subject, once what it tells of is durable.
Post = Callable[[Receiver, Struct, str], None]


def _send(receiver: Receiver, message: Struct, _subject: str) -> None:
    receiver.send(message)


class PoolDialogue:
    """Hands the core's orders on, and requests and reports to the core (`tell`). `replicas` is read only."""

    def __init__(
        self,
        core: Scheduler,
        tell: Tell,
        replicas: Mapping[str, Connection],
        telemetry: PoolTelemetry,
        post: Post = _send,
    ) -> None:
        self._post = post
        self._core = core
        self._tell = tell
        self._replicas = replicas
        self._telemetry = telemetry
        self._manager: Connection | None = None
        #: Requests by number, until they are answered: the core does so in the step that takes them in, so that
        #: these are never more than one step is about.
        self._asked: dict[int, tuple[Connection, int]] = {}
        self._number = 0

    # ---------------------------------------------------------------------- manager

    def manager_opened(self, connection: Connection) -> None:
        """A manager connected: it is told all that is to exist. A newer one replaces an older one."""
        before, self._manager = self._manager, connection
        if before is not None:
            before.close()
        self._post(connection, wire.Orders(self._core.orders()), SUBJECT)

    def manager_closed(self, connection: Connection) -> None:
        if self._manager is connection:
            self._manager = None

    def report(self, connection: Connection, event: ev.PoolEvent) -> None:
        """A report of the manager; one that was replaced is not listened to any more."""
        if connection is self._manager:
            self._tell(event)

    # -------------------------------------------------------------------- operators

    def request(self, connection: Connection, message: Any) -> None:
        """Someone asked for a change; the core answers with `AnswerControl`. An asker that left misses the answer."""
        self._number += 1
        self._asked[self._number] = (connection, message.req)
        self._tell(_EVENT_OF[type(message)](self._number, message))

    # --------------------------------------------------------------------- commands

    def order(self, command: ev.OrderReplica | ev.RetireReplica) -> None:
        if self._manager is not None:  # else the next one is told all orders
            self._post(self._manager, command, SUBJECT)

    def launch(self, command: ev.LaunchEngine) -> None:
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            self._post(replica, Launch(command.slots), SUBJECT)

    def answer(self, command: ev.AnswerControl) -> None:
        connection, req = self._asked.pop(command.request)
        self._post(connection, Done(req) if command.error is None else Failed(req, command.error), SUBJECT)

    def note(self, command: ev.NotePool) -> None:
        self._telemetry.noted(command)
        level = log.warning if command.change in WARNINGS else log.info
        level(
            f"pool.{command.change}",
            pool_id=command.pool_id,
            replica_id=command.replica_id,
            kind=command.kind,
            why=command.why,
        )


_EVENT_OF: Final[dict[type, Callable[[int, Any], ev.PoolEvent]]] = {
    wire.DrainPool: lambda number, asked: ev.DrainRequested(number, asked.pool_id, asked.deadline_ms),
    wire.ReloadPool: lambda number, asked: ev.ReloadRequested(
        number, asked.pool_id, asked.model_ref, asked.canary_percent
    ),
    wire.PromotePool: lambda number, asked: ev.PromoteRequested(number, asked.pool_id),
    wire.RollbackPool: lambda number, asked: ev.RollbackRequested(number, asked.pool_id),
}
REQUESTS: Final = frozenset(_EVENT_OF)
