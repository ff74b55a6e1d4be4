"""Managed pools as an earlier scheduler left them: the model, the size, and the replicas that should still be there.

Only what a reload brought outlives a change of the configuration, and only while the configuration still knows the
model; all else is as it is configured now.
"""

from contracts.journal import KeptGeneration, KeptPool, KeptReplica
from contracts.pools import NodeInfo
from orchestrator.core.pools import drains, generations, nodes, reloads
from orchestrator.core.pools.records import Generation, Member, Pool
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State

#: Why a replica has no place that was ordered and not placed yet.
NO_NODES = "the scheduler was started anew, and no node is known yet"


def restore(state: State, kept: tuple[KeptPool, ...]) -> None:
    """Take up the pools that the configuration still has, in its order; replicas of others are wanted no more."""
    of_pool = {each.pool_id: each for each in kept}
    for pool_id, pool in state.pools.by_id.items():
        if pool_id in of_pool:
            _restore(state, pool, of_pool[pool_id])
    generations.prune(state)
    generations.refresh(state)
    state.pools.touched = True


def _restore(state: State, pool: Pool, kept: KeptPool) -> None:
    scaling = pool.scaling
    pool.ordinal = kept.ordinal
    pool.desired = max(scaling.replicas_min, min(kept.desired, scaling.replicas_max))
    known = reloads.known_refs(state, pool)
    if kept.model_ref != pool.active.model_ref:
        if kept.configured_ref != pool.policy.model_ref or kept.model_ref not in known:
            # Another model is configured than when the reload was asked for, or the reload's is gone.
            return
        pool.desired = max(1, pool.desired)
        left = pool.active.home
        pool.active = Generation(kept.model_ref, generations.set_for(state, pool, kept.model_ref), state.now_ns)
        generations.carry_names(state, pool, left)
    for replica in kept.replicas:
        _take_back(state, pool.active, replica, pool)
    for each in kept.others:
        if each.model_ref in known:
            _finishes(state, pool, each)
    if kept.drained and not kept.replicas and not pool.outgoing:
        pool.drained = True
    elif kept.drained:
        # It was being drained: that goes on, with the time that the pool has for it.
        until_ns = pool.drain_until_ns = state.now_ns + pool.policy.drain_ms * NS_PER_MS
        drains.let_go(state, pool, pool.active, until_ns)


def _finishes(state: State, pool: Pool, kept: KeptGeneration) -> None:
    """Replicas with another model than the pool serves, a canary's included, may end what they have, and then go."""
    generation = Generation(kept.model_ref, generations.set_for(state, pool, kept.model_ref), state.now_ns)
    for replica in kept.replicas:
        _take_back(state, generation, replica, pool)
    drains.let_go(state, pool, generation, state.now_ns + pool.policy.drain_ms * NS_PER_MS)


def _take_back(state: State, generation: Generation, kept: KeptReplica, pool: Pool) -> None:
    """Await a replica that was ordered, unless it stands on other GPUs than it should by now."""
    mask = nodes.mask_of(pool.policy)
    if kept.node_id and kept.devices != mask:
        return
    member = Member(kept.replica_id, pool, generation, min(kept.slots, pool.policy.slots))
    member.incarnation = kept.incarnation
    member.is_ordered = True
    member.ordered_ns = state.now_ns
    if kept.node_id:
        member.state = "ordered"
        member.node_id, member.devices = kept.node_id, kept.devices
        # Until the manager tells what nodes there are.
        state.pools.nodes.setdefault(kept.node_id, NodeInfo(kept.node_id, gpus=max(mask, default=-1) + 1))
    else:
        member.unplaced = NO_NODES
    generation.members[member.replica_id] = member
    state.pools.members[member.replica_id] = member
