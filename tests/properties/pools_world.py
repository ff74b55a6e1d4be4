"""A fleet around the scheduler: nodes, actors and engines that carry out what is ordered, well or badly.

Every command is held against what the fleet knows as it is heard; a broken promise is an assertion here.
"""

from dataclasses import dataclass
from typing import Any

from contracts.policies import LeasePolicy, PoolPolicy, RestartPolicy, ScalingPolicy, SchedulerConfig
from contracts.pools import (
    LaunchEngine,
    LeaseRenewed,
    NodeInfo,
    NodesSeen,
    NotePool,
    OrderReplica,
    ReplicaFaulted,
    ReplicaGone,
    ReplicaOrder,
    ReplicaPlaced,
    RetireReplica,
)
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    Finish,
    RefuseReplica,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    RunningAttempt,
    SetTimer,
    Start,
    Stop,
    TaskSubmitted,
    TimerFired,
)
from contracts.tasks import ReplicaInfo
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler
from tests.unit.core.core_kit import MS, config, replica, replica_set, task

RESTART = RestartPolicy(500, 20_000, 20, stable_after_ms=10_000, breaker_failures=3)
GPU_POOL = PoolPolicy(
    "gpu", ("0",), scaling=ScalingPolicy(1, 3, 2, 500, 2_000, 15_000), restart=RESTART, model_ref="small", slots=4
)
CPU_POOL = PoolPolicy(
    "cpu", scaling=ScalingPolicy(2, 2, 2), restart=RESTART, model_ref="small", accelerator="cpu-dev", drain_ms=5_000
)
GPUS = {"n0": 1, "n1": 2, "n2": 0, "n3": 4}


def world_config() -> SchedulerConfig:
    home = replica_set(pools=(GPU_POOL, CPU_POOL), capacity=64, idle_timeout_ms=30_000, wall_timeout_ms=60_000)
    return config(home, lease=LeasePolicy(2_500, 15_000), jitter_seed=11)


@dataclass
class Actor:
    """One incarnation of a replica.

    `launching`: told to launch, and nothing was reported since; `astray`: its engine runs on GPUs of others.
    """

    order: ReplicaOrder
    node_id: str
    linked: bool = False
    launching: bool = False
    serving: bool = False
    astray: bool = False
    ready_ns: int = 0
    info: ReplicaInfo | None = None


@dataclass
class Restarts:
    """What the fleet knows of a replica's failures, to tell how long its next launch has to wait at least.

    `given_up_on`: the node of its last actor, once that was ended and no other was ordered.
    """

    failures: int = 0
    not_before_ns: int = 0
    kind: str = ""
    given_up_on: str = ""


class World:
    """A scheduler, a clock, and a fleet."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(world_config())
        self.now_ns = 1_000 * MS
        self.alarm_ns: int | None = None
        self.nodes: list[str] = []
        self.actors: dict[str, Actor] = {}
        self.restarts: dict[str, Restarts] = {}
        self.running: list[tuple[str, int, str]] = []
        self.history: list[tuple[int, AnyEvent]] = []
        self.heard: list[list[AnyCommand]] = []
        self.numbers = 0

    # ------------------------------------------------------------------ the core

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.scheduler.step(self.now_ns, event)
        invariants.check(self.scheduler)
        self.history.append((self.now_ns, event))
        self.heard.append(commands)
        for command in commands:
            self._hear(command)
        return commands

    def _hear(self, command: AnyCommand) -> None:
        match command:
            case OrderReplica(order=order):
                self._ordered(order)
            case RetireReplica():
                actor = self.actors.get(command.replica_id)
                assert actor is None or actor.order.incarnation <= command.incarnation
                if actor is not None:
                    self.restarts[command.replica_id].given_up_on = actor.node_id
                self._end(command.replica_id)
            case LaunchEngine():
                self._launched(command)
            case RefuseReplica():
                self._unlink(command.replica_id)
            case NotePool(change="restart"):
                self._restarted(command)
            case Start():
                assert self.actors[command.replica_id].serving
                self.running.append((command.task_id, command.attempt, command.replica_id))
            case Finish():
                self.running = [each for each in self.running if each[0] != command.task_id]
            case SetTimer():
                assert command.at_ns > self.now_ns
                self.alarm_ns = command.at_ns

    def _ordered(self, order: ReplicaOrder) -> None:
        before = self.actors.get(order.replica_id)
        assert before is None or before.order.incarnation < order.incarnation
        assert not order.node_id or order.node_id in self.nodes
        known = self.restarts.setdefault(order.replica_id, Restarts())
        had_no_room = before is not None and not before.order.node_id
        assert had_no_room or self.now_ns >= known.not_before_ns, f"{order}: {known}"
        known.given_up_on = ""
        self._end(order.replica_id)
        self.actors[order.replica_id] = Actor(order, order.node_id)

    def _launched(self, command: LaunchEngine) -> None:
        actor = self.actors[command.replica_id]
        assert actor.linked, "a replica that is not there is told to launch"
        assert not actor.launching, "two launches without a report between them"
        assert self.now_ns >= self.restarts[command.replica_id].not_before_ns, "launched before its backoff was over"
        pool = self.scheduler.state.pools.by_id[actor.order.pool_id]
        tried = [a for a in self.actors.values() if a.launching and a.order.pool_id == actor.order.pool_id]
        assert not (pool.breaker_open and tried), "the breaker is open, and two replicas are tried at once"
        actor.launching, actor.serving = True, False

    def _restarted(self, note: NotePool) -> None:
        known = self.restarts[note.replica_id]
        known.kind = str(note.kind)
        if note.kind == "node":
            known.not_before_ns = self.now_ns + RESTART.backoff_min_ms * MS
            return
        actor = self.actors.get(note.replica_id)
        if actor is not None:
            self._down(actor)
        known.failures += 1
        wait_ms = min(RESTART.backoff_min_ms << (known.failures - 1), RESTART.backoff_max_ms)
        known.not_before_ns = self.now_ns + wait_ms * MS

    def _unlink(self, replica_id: str) -> None:
        actor = self.actors.get(replica_id)
        if actor is not None:
            self._down(actor)
            actor.linked = False

    def _end(self, replica_id: str) -> None:
        self.actors.pop(replica_id, None)
        self.running = [each for each in self.running if each[2] != replica_id]

    def _down(self, actor: Actor) -> None:
        """Its engine is down. A replica that had served for long enough starts over."""
        if actor.serving and self.now_ns - actor.ready_ns >= RESTART.stable_after_ms * MS:
            self.restarts[actor.order.replica_id].failures = 0
        actor.launching = actor.serving = False
        self.running = [each for each in self.running if each[2] != actor.order.replica_id]

    # ------------------------------------------------------------------ what happens

    def see(self, nodes: list[str]) -> None:
        """Nodes join and leave; what stood on one that left is gone, and often its link ends first."""
        for replica_id, actor in list(self.actors.items()):
            if actor.node_id and actor.node_id not in nodes:
                if actor.linked and len(self.history) % 2:
                    self.cut(replica_id)
                known = self.restarts[replica_id]
                if not actor.linked:
                    self._explain(known)
                self._down(actor)
                self._unlink(replica_id)
        for known in self.restarts.values():
            if known.given_up_on and known.given_up_on not in nodes:
                self._explain(known)
        self.nodes = nodes
        self.tell(NodesSeen(tuple([NodeInfo(name, GPUS[name], "z" + name[1]) for name in nodes])))

    def _explain(self, known: Restarts) -> None:
        """The node is gone: that an actor died or was silent was no failure of its own."""
        if known.kind == "actor":
            known.kind = "node"
            known.failures = max(0, known.failures - 1)
            known.not_before_ns = min(known.not_before_ns, self.now_ns + RESTART.backoff_min_ms * MS)

    def place(self, replica_id: str, node_id: str) -> None:
        actor = self.actors[replica_id]
        actor.node_id = node_id
        self.tell(ReplicaPlaced(replica_id, actor.order.incarnation, node_id))

    def register(self, replica_id: str) -> None:
        actor = self.actors[replica_id]
        actor.linked = True
        self.tell(ReplicaLoading(replica_id, actor.order.pool_id, actor.order.incarnation))

    def come_up(self, replica_id: str, **over: Any) -> None:
        actor = self.actors[replica_id]
        order = actor.order
        actor.launching, actor.serving, actor.ready_ns = False, True, self.now_ns
        uuids = tuple([f"{actor.node_id}:{index}" for index in order.devices])
        actor.astray = "gpu_uuids" in over
        values = {"pool_id": order.pool_id, "node_id": actor.node_id, "gpu_uuids": uuids, "slots": 2, "devices": ()}
        actor.info = replica(replica_id, **{**values, **over})
        self.tell(ReplicaReady(actor.info))

    def fail(self, replica_id: str, kind: Any) -> None:
        self._down(self.actors[replica_id])
        self.tell(ReplicaUnready(replica_id, f"it failed: {kind}", kind))

    def cut(self, replica_id: str) -> None:
        actor = self.actors[replica_id]
        self._down(actor)
        actor.linked = False
        self.tell(ReplicaLost(replica_id, "its connection ended"))

    def flap(self, replica_id: str, away_ms: int) -> None:
        """A link is cut and made anew, and the engine never noticed. Another actor may be wanted by then."""
        actor, info = self.actors[replica_id], self.actors[replica_id].info
        assert info is not None
        there = [each for each in self.running if each[2] == replica_id]
        self.cut(replica_id)
        self.wait(away_ms)
        if self.actors.get(replica_id) is not actor or actor.linked:
            return
        actor.linked = actor.serving = True
        actor.ready_ns = self.now_ns
        known = self.restarts[replica_id]
        if known.kind == "actor":
            known.kind, known.failures = "", max(0, known.failures - 1)
        running = tuple([RunningAttempt(task_id, attempt) for task_id, attempt, _ in there])
        commands = self.tell(ReplicaReady(info, actor.order.incarnation, running))
        assert not any(isinstance(command, RefuseReplica) for command in commands)
        waits = [each for each in there if not any(isinstance(c, Stop) and c.task_id == each[0] for c in commands)]
        for task_id, attempt, _ in waits:
            record = self.scheduler.state.tasks[task_id]
            assert (record.state, record.attempt) == ("running", attempt), "it was told to go on, and is not booked"
        self.running += waits

    def kill(self, replica_id: str) -> None:
        """The actor dies; the manager finds out, and its link may end before or after."""
        actor = self.actors[replica_id]
        self._down(actor)
        actor.linked = False
        self.tell(ReplicaGone(replica_id, actor.order.incarnation, "actor", "killed"))

    def fault(self, replica_id: str) -> None:
        self.tell(ReplicaFaulted(replica_id, "ecc", "double-bit error"))

    def renew(self) -> None:
        for replica_id, actor in list(self.actors.items()):
            if actor.linked:
                self.tell(LeaseRenewed(replica_id))

    def submit(self) -> None:
        self.numbers += 1
        self.tell(TaskSubmitted(self.numbers, task(f"t{self.numbers}", deadline_ms=20_000)))

    def end_attempt(self, which: int) -> None:
        task_id, attempt, replica_id = self.running.pop(which)
        self.tell(
            AttemptEnded(task_id, attempt, replica_id, "finished", slot_free=True, tokens_out=3, finish_reason="length")
        )

    def wait(self, duration_ms: int, *, renewing: bool = False) -> None:
        """Let time pass as a shell does; replicas that are well renew their leases meanwhile."""
        until_ns = self.now_ns + duration_ms * MS
        while self.now_ns < until_ns:
            if renewing:
                self.renew()
            slice_ns = min(until_ns, self.now_ns + 2_000 * MS)
            while self.alarm_ns is not None and self.alarm_ns <= slice_ns:
                self.now_ns, self.alarm_ns = max(self.now_ns, self.alarm_ns), None
                self.tell(TimerFired())
            self.now_ns = slice_ns

    # ------------------------------------------------------------------ the end

    def mend(self) -> None:
        """Every node is there, and everything that is ordered works from now on."""
        for replica_id, actor in list(self.actors.items()):
            if self.actors.get(replica_id) is not actor:
                continue
            if not actor.node_id:
                held = {(a.node_id, i) for a in self.actors.values() for i in a.order.devices}
                free = [n for n in self.nodes if all(i < GPUS[n] and (n, i) not in held for i in actor.order.devices)]
                if free:
                    self.place(replica_id, free[0])
            elif not actor.linked:
                self.register(replica_id)
            elif actor.launching:
                self.come_up(replica_id)
        while self.running:
            self.end_attempt(0)

    def is_whole(self) -> bool:
        """Whether each pool has the replicas it wants, all of them in service."""
        for pool in self.scheduler.state.pools.by_id.values():
            home, own = pool.active.home, pool.active.members
            if len(own) != pool.desired or not all(replica_id in home.ready for replica_id in own):
                return False
        return True
