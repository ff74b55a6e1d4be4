"""Which node a replica is ordered on (ORCH-3008, ORCH-3011, OC-POOL-3020).

A pool's mask is the same GPU indices on whichever node. A GPU is held by one replica at most, from its order
until it is retired or moved.
"""

from typing import Final

from contracts.policies import PoolPolicy
from contracts.pools import NodeInfo
from orchestrator.core.pools.records import Member, Pools

#: Failures in a row by faults of its place after which a replica is tried on another node.
PLACE_FAILURES_MAX: Final = 2
#: How many nodes are named when none has room.
NAMED_MAX: Final = 4

#: (node id, GPU index) to the id of the replica that holds it.
Holders = dict[tuple[str, int], str]


def mask_of(policy: PoolPolicy) -> tuple[int, ...]:
    """GPU indices that each replica of a pool needs; none for pools on the CPU."""
    if policy.accelerator == "cpu-dev":
        return ()
    return tuple([_index(policy, device) for device in policy.devices])


def _index(policy: PoolPolicy, device: str) -> int:
    if not device.isdecimal():
        raise ValueError(f"pool {policy.pool_id}: devices must be GPU indices such as 0, not {device!r}")
    return int(device)


def holders(pools: Pools, but: Member | None = None) -> Holders:
    """Who holds which GPU, one replica left out."""
    held: Holders = {}
    for member in pools.members.values():
        if member is not but and member.node_id:
            for index in member.devices:
                held[member.node_id, index] = member.replica_id
    return held


def misfit(policy: PoolPolicy, node: NodeInfo, held: Holders) -> str | None:
    """Why a replica of a pool has no place on a node; None if it has one."""
    if policy.zone and node.zone != policy.zone:
        return f"node {node.node_id} is in zone {node.zone!r}"
    for index in mask_of(policy):
        if index >= node.gpus:
            return f"node {node.node_id} has no GPU {index}, only {node.gpus} in all"
    for index in mask_of(policy):
        holder = held.get((node.node_id, index))
        if holder is not None:
            return f"GPU {index} of node {node.node_id} is held by {holder}"
    return None


def place(pools: Pools, member: Member, avoid: str = "") -> str | None:
    """The node to order a replica on, but for the one to avoid; None while none has room.

    The fewest replicas of its pool in the zone come first, then on the node, so that a zone or node that fails
    takes as few as possible with it; then the fewest GPUs held, then the node's id.
    """
    policy = member.pool.policy
    held = holders(pools, member)
    in_zone: dict[str, int] = {}
    on_node: dict[str, int] = {}
    for other in pools.members.values():
        if other.pool is member.pool and other is not member and other.node_id:
            on_node[other.node_id] = on_node.get(other.node_id, 0) + 1
            node = pools.nodes.get(other.node_id)
            if node is not None:
                in_zone[node.zone] = in_zone.get(node.zone, 0) + 1
    gpus: dict[str, int] = {}
    for node_id, _ in held:
        gpus[node_id] = gpus.get(node_id, 0) + 1
    best: tuple[int, int, int, str] | None = None
    for node in pools.nodes.values():
        if node.node_id != avoid and misfit(policy, node, held) is None:
            node_id = node.node_id
            rank = (in_zone.get(node.zone, 0), on_node.get(node_id, 0), gpus.get(node_id, 0), node_id)
            if best is None or rank < best:
                best = rank
    return None if best is None else best[3]


def elsewhere(pools: Pools, member: Member) -> str | None:
    """The node to move a replica to whose place is bad; None if its place is not, or if no other node has room."""
    if not member.node_id or member.place_failures < PLACE_FAILURES_MAX:
        return None
    return place(pools, member, member.node_id)


def unplaced(pools: Pools, member: Member) -> str:
    """Why no node has room for a replica, and what would help."""
    policy = member.pool.policy
    if not pools.nodes:
        return f"pool {policy.pool_id}: no node is known"
    held = holders(pools, member)
    reasons: list[str] = []
    for node in pools.nodes.values():
        reason = misfit(policy, node, held)
        if reason is not None:
            reasons.append(reason)
    more = f"; and {len(reasons) - NAMED_MAX} more" if len(reasons) > NAMED_MAX else ""
    mask = ", ".join(policy.devices)
    zone = f" in zone {policy.zone}" if policy.zone else ""
    needs = f"needs GPU {mask} of one node{zone}" if mask_of(policy) else f"needs a node{zone}"
    return f"pool {policy.pool_id} {needs}: {'; '.join(reasons[:NAMED_MAX])}{more}"
