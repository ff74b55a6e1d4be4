"""The pool manager: makes what the scheduler orders exist, and tells what becomes of it (OC-POOL-3001).

It decides nothing and remembers nothing: the scheduler's core decides, and what exists is found again by its
names. A manager that was restarted is sent all orders, takes over what fits them and ends the rest.
"""

import asyncio
import re
from typing import Any, Final

import structlog

from contracts import control_messages as wire
from contracts.base import Event
from contracts.pools import (
    NodeInfo,
    NodesSeen,
    OrderReplica,
    ReplicaGone,
    ReplicaOrder,
    ReplicaPlaced,
    ReplicaUnplaced,
    RetireReplica,
)
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.fleet import Actor, Fleet, name_of
from orchestrator.cluster.relink import Caller, Locate, stay_linked

log = structlog.get_logger(__name__)

NODES_POLL_S: Final = 0.5
PLACED_POLL_S_MIN: Final = 0.1
PLACED_POLL_S_MAX: Final = 2.0
#: Orders that wait to be carried out; a scheduler that sends more is asked for all of them anew.
INBOX_MAX: Final = 10_000
REASON_CHARS_MAX: Final = 600

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


def reason_of(died: Exception) -> str:
    """What Ray says of a dead actor, in a line: how it died, and the last line of its traceback if it has one."""
    lines = [line.strip() for line in _COLOUR.sub("", str(died)).splitlines() if line.strip()]
    if not lines:
        return type(died).__name__
    told = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return told[:REASON_CHARS_MAX]


class PoolManager:
    """One keeper task for each replica. `run` returns only by cancellation."""

    def __init__(self, fleet: Fleet, secret: bytes, locate: Locate, node_id: str) -> None:
        self._fleet = fleet
        self._caller = Caller("manager", "pool-manager", node_id, secret, wire.ToManager)
        self._locate = locate
        self._link: Connection | None = None
        self._nodes: tuple[NodeInfo, ...] = ()
        self._looking = asyncio.Lock()
        self._orders: dict[str, ReplicaOrder] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._inbox: asyncio.Queue[Any] = asyncio.Queue(INBOX_MAX)

    async def run(self) -> None:
        while not self._nodes:  # nothing can be made before
            await self._see_nodes()
            await asyncio.sleep(0 if self._nodes else NODES_POLL_S)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(stay_linked(self._caller, self._locate, self._received, self._linked, self._unlinked))
            loops.create_task(self._watch_nodes())
            loops.create_task(self._carry_out(loops))

    # ------------------------------------------------------------------- scheduler

    def _linked(self, link: Connection) -> None:
        self._link = link
        link.send(NodesSeen(self._nodes))

    def _unlinked(self) -> None:
        self._link = None

    def _received(self, connection: Connection, message: Any) -> None:
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            log.error("orders.too_many", waiting=INBOX_MAX)
            connection.close()

    def _report(self, message: Event) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _watch_nodes(self) -> None:
        while True:
            await self._see_nodes()
            await asyncio.sleep(NODES_POLL_S)

    async def _see_nodes(self) -> None:
        async with self._looking:  # an older look must not overwrite a newer one
            try:
                nodes = await self._fleet.nodes()
            except Exception:  # Ray's errors are many; the next look may succeed
                log.exception("nodes.not_seen")
                return
            if nodes != self._nodes:
                self._nodes = nodes
                log.info("nodes.changed", nodes=len(nodes), gpus=sum(node.gpus for node in nodes))
                self._report(NodesSeen(nodes))

    # ---------------------------------------------------------------------- orders

    async def _carry_out(self, loops: asyncio.TaskGroup) -> None:
        """Orders in their order; each is carried out by its replica's keeper, one after the other."""
        while True:
            message = await self._inbox.get()
            if isinstance(message, wire.Orders):
                await self._adopt(loops, message.orders)
            elif isinstance(message, OrderReplica):
                self._keep(loops, message.order)
            elif isinstance(message, RetireReplica):
                self._orders.pop(message.replica_id, None)
                self._follow(loops, message.replica_id, None)

    async def _adopt(self, loops: asyncio.TaskGroup, orders: tuple[ReplicaOrder, ...]) -> None:
        """Take over what is ordered and end what is not: left by an earlier manager or scheduler."""
        wanted = {name_of(order) for order in orders}
        left = {name for name in await self._existing() if name not in wanted}
        log.info("orders.taken", orders=len(orders), left_over=len(left))
        for replica_id in [each for each in self._orders if all(each != order.replica_id for order in orders)]:
            del self._orders[replica_id]
            self._follow(loops, replica_id, None)
        kept = {name_of(order) for order in self._orders.values()}
        ended = await asyncio.gather(*(self._fleet.end(name) for name in left - kept), return_exceptions=True)
        for failed in ended:
            if isinstance(failed, Exception):
                log.error("replica.not_ended", exc_info=failed)
        for order in orders:
            if self._orders.get(order.replica_id) != order:
                self._keep(loops, order)
            else:  # the scheduler that asks may be a new one: tell it how the replica stands
                self._follow(loops, order.replica_id, order)

    async def _existing(self) -> set[str]:
        while True:
            try:
                return await self._fleet.existing()
            except Exception:
                log.exception("groups.not_seen")
                await asyncio.sleep(PLACED_POLL_S_MAX)

    def _keep(self, loops: asyncio.TaskGroup, order: ReplicaOrder) -> None:
        self._orders[order.replica_id] = order
        self._follow(loops, order.replica_id, order)

    def _follow(self, loops: asyncio.TaskGroup, replica_id: str, order: ReplicaOrder | None) -> None:
        """Replace a replica's keeper; the new one begins where the old one was stopped."""
        before = self._keepers.pop(replica_id, None)
        if before is not None:
            before.cancel()
        keeper = self._keepers[replica_id] = loops.create_task(self._keeper(replica_id, order, before))
        keeper.add_done_callback(lambda done: self._ended(replica_id, done))

    def _ended(self, replica_id: str, keeper: asyncio.Task[None]) -> None:
        if self._keepers.get(replica_id) is keeper:
            del self._keepers[replica_id]

    async def _keeper(self, replica_id: str, order: ReplicaOrder | None, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        while True:
            try:
                wanted = name_of(order) if order is not None else ""
                for name in await self._fleet.existing():
                    if name != wanted and name.rpartition("-")[0] == replica_id:
                        await self._fleet.end(name)
                if order is not None:
                    await self._bring_up(order)
                return
            except Exception as failed:  # Ray's errors are many; none may end the manager
                log.exception("replica.not_kept", replica_id=replica_id)
                if order is not None:
                    reason = f"it could not be made: {reason_of(failed)}"
                    self._report(ReplicaGone(replica_id, order.incarnation, "actor", reason))
                    return
            await asyncio.sleep(PLACED_POLL_S_MAX)  # what is to go must go

    async def _bring_up(self, order: ReplicaOrder) -> None:
        """Reserve, start, and wait for the actor's end."""
        group = await self._fleet.reserve(order, self._nodes)
        said, pause_s = None, PLACED_POLL_S_MIN
        while not (placed := await self._fleet.placed_on(group))[0]:
            if placed[1] != said:
                said = placed[1]
                self._report(ReplicaUnplaced(order.replica_id, order.incarnation, placed[1]))
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, PLACED_POLL_S_MAX)
        node_id = placed[0]
        await self._see_nodes()  # a node that joined for this order is known before the order is placed on it
        self._report(ReplicaPlaced(order.replica_id, order.incarnation, node_id))
        actor = await self._fleet.start(order, group, node_id)
        log.info("replica.started", replica_id=order.replica_id, incarnation=order.incarnation, node_id=node_id)
        reason = await self._end_of(actor)
        await self._see_nodes()
        alive = any(node.node_id == node_id for node in self._nodes)
        log.warning("replica.gone", replica_id=order.replica_id, incarnation=order.incarnation, reason=reason)
        self._report(ReplicaGone(order.replica_id, order.incarnation, "actor" if alive else "node", reason))

    async def _end_of(self, actor: Actor) -> str:
        """Wait for the end of a replica's actor; why it ended."""
        while True:
            try:
                await actor.run.remote()
            except Exception as died:
                if not self._fleet.is_unavailable(died):
                    return reason_of(died)
                await asyncio.sleep(PLACED_POLL_S_MAX)
            else:
                return "its actor stopped"
