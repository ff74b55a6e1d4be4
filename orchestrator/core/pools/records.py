"""What the core remembers of pools, of their generations, and of each replica it ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from contracts.control import ReloadState
from contracts.policies import LeasePolicy, PoolPolicy, ScalingPolicy
from contracts.pools import FaultKind, NodeInfo

if TYPE_CHECKING:
    from orchestrator.core.replica_set import ReplicaSet

#: Timer key of everything about pools; task ids have no blank.
POOLS_KEY: Final = " pools"

#: pending: no node has room for it; ordered: the manager makes its actor; waiting: its next launch is due at
#: `launch_ns` (of its engine where it is registered, of its actor where it is not); loading: its engine comes up;
#: ready: it serves (or is set aside); retired: it is being ended.
MemberState = Literal["pending", "ordered", "waiting", "loading", "ready", "retired"]


class Fault:
    """The last thing that went wrong with a replica or a pool."""

    __slots__ = ("at_ns", "kind", "reason", "replica_id", "stderr")

    def __init__(self, kind: FaultKind, reason: str, replica_id: str, at_ns: int, stderr: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.reason = reason
        self.replica_id = replica_id
        self.at_ns = at_ns
        self.stderr = stderr


class Member:
    """One ordered replica.

    `slots` is what its engine is launched with, `failures` counts failed launches in a row, `place_failures` the last
    of them that were faults of its place, on its present node, `restarts` all of its life. `is_ordered`: the manager
    keeps an actor of its present incarnation, or is to make one; `ordered_ns` is since when it is awaited on its node.
    `ready_ns` is since when it serves, `lease_ns` when it was last heard of. While it drains, `drain_until_ns` is when
    the rest of its work is stopped, or, once it `is_stopping`, when it is no longer waited for; `relaunch` says
    whether it gets a new engine then or is retired.
    """

    __slots__ = (
        "devices",
        "drain_until_ns",
        "failures",
        "fault",
        "generation",
        "incarnation",
        "is_ordered",
        "is_stopping",
        "launch_ns",
        "lease_ns",
        "node_id",
        "ordered_ns",
        "place_failures",
        "pool",
        "ready_ns",
        "relaunch",
        "replica_id",
        "restarts",
        "slots",
        "state",
        "suspended",
        "unplaced",
    )

    def __init__(self, replica_id: str, pool: Pool, generation: Generation, slots: int) -> None:
        self.replica_id = replica_id
        self.pool = pool
        self.generation = generation
        self.slots = slots
        self.incarnation = 0
        self.is_ordered = False
        self.state: MemberState = "pending"
        self.node_id = ""
        self.devices: tuple[int, ...] = ()
        #: Why no node has room for it, while it is pending.
        self.unplaced = ""
        self.failures = 0
        self.place_failures = 0
        self.restarts = 0
        self.ordered_ns = 0
        self.launch_ns = 0
        self.ready_ns = 0
        self.lease_ns = 0
        self.suspended = False
        self.drain_until_ns: int | None = None
        self.is_stopping = False
        self.relaunch = False
        self.fault: Fault | None = None


class Generation:
    """Replicas of one pool with one model, in one replica set.

    Once it is let go, `until_ns` is when the rest of its work is stopped.
    """

    __slots__ = ("home", "members", "model_ref", "since_ns", "until_ns")

    def __init__(self, model_ref: str, home: ReplicaSet, since_ns: int) -> None:
        self.model_ref = model_ref
        self.home = home
        self.since_ns = since_ns
        self.members: dict[str, Member] = {}
        self.until_ns: int | None = None


class ReloadRecord:
    """The last reload of a pool; `previous_ref` is what it served before."""

    __slots__ = ("canary_percent", "model_ref", "previous_ref", "state", "until_ns", "why")

    def __init__(self, model_ref: str, previous_ref: str, canary_percent: int | None, until_ns: int) -> None:
        self.model_ref = model_ref
        self.previous_ref = previous_ref
        self.canary_percent = canary_percent
        self.until_ns = until_ns
        self.state: ReloadState = "loading"
        self.why: str | None = None


class Pool:
    """One managed pool. `active` serves, `incoming` comes up beside it, those of `outgoing` finish their work.

    `desired` is how many replicas the active generation is to have. `ordinal` numbers its replicas, so that no id
    comes twice. `failures` counts failed launches of all its replicas in a row. `scale_ns` is when its size is
    looked at next.
    """

    __slots__ = (
        "active",
        "breaker_open",
        "desired",
        "drain_until_ns",
        "drained",
        "failures",
        "fault",
        "idle_since_ns",
        "incoming",
        "ordinal",
        "outgoing",
        "over_since_ns",
        "policy",
        "reload",
        "restarts",
        "scale_ns",
        "scaling",
    )

    def __init__(self, policy: PoolPolicy, scaling: ScalingPolicy, active: Generation) -> None:
        self.policy = policy
        self.scaling = scaling
        self.active = active
        self.incoming: Generation | None = None
        self.outgoing: list[Generation] = []
        self.desired = scaling.replicas
        self.ordinal = 0
        self.failures = 0
        self.breaker_open = False
        self.restarts = 0
        self.fault: Fault | None = None
        self.reload: ReloadRecord | None = None
        #: Until when a drain may take; None unless one is under way.
        self.drain_until_ns: int | None = None
        self.drained = False
        #: Since when more replicas would have been good, or fewer would have done; 0: not so now.
        self.over_since_ns = 0
        self.idle_since_ns = 0
        self.scale_ns = 0


class Pools:
    """All managed pools, their replicas by id, and the live nodes in the order of their ids.

    `touched`: something changed in this step, so that what is due must be looked at before it ends. `watched`: a
    drain or a reload is under way, which any step may bring to its end. `room_freed`: GPUs were let go, so that
    replicas without a node are to be tried again. `draining` has the replicas that drain.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Pool] = {}
        self.members: dict[str, Member] = {}
        self.draining: dict[str, Member] = {}
        self.nodes: dict[str, NodeInfo] = {}
        #: Nodes have been told of at least once: before that nothing can be placed.
        self.nodes_known = False
        self.lease: LeasePolicy | None = None
        self.jitter_seed = 0
        self.touched = False
        self.watched = False
        self.room_freed = False
