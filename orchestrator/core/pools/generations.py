"""Which replica sets exist, which pools serve in them, and which name leads to which (ORCH-3007, ORCH-3031).

A set is open while a pool serves it. One that its last pool left is closing: it admits nothing more, what it
admitted is still served, and its names go with the pool. A set that nobody uses any more is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from contracts.policies import SchedulerConfig, SetPolicy
from orchestrator.core.pools.records import Generation, Member, Pool
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.routes import DIGEST_PREFIX

if TYPE_CHECKING:
    from orchestrator.core.state import State


def start(state: State, config: SchedulerConfig) -> None:
    """Make a pool of each that has `scaling`; nothing is ordered before nodes are known."""
    state.pools.lease = config.lease
    state.pools.jitter_seed = config.jitter_seed
    for policy in config.sets:
        for pool in policy.pools:
            if pool.scaling is not None:
                active = Generation(pool.model_ref or policy.model_refs[0], state.set_of_pool[pool.pool_id], 0)
                state.pools.by_id[pool.pool_id] = Pool(pool, pool.scaling, active)
    refresh(state)


# ------------------------------------------------------------------------ sets


def set_for(state: State, pool: Pool, model_ref: str) -> ReplicaSet:
    """The replica set in which a pool serves a model, made if there is none; the pool is one of its pools then.

    It is the pool's own set with the model exchanged: all else of its key stays (ORCH-3007).
    """
    policy, configured = pool.policy, configured_set(state, pool)
    if model_ref == pool.active.model_ref:
        return pool.active.home
    if model_ref in configured.model_refs:
        wanted = configured
    else:
        set_id = f"{configured.engine}/{model_ref}/{_quant(configured)}/{configured.ctx}/"
        set_id += configured.sampler_profile_version + _served_for(configured)
        wanted = replace(configured, set_id=set_id, model_refs=(model_ref,))
    joining = policy if wanted is configured else replace(policy, canary_percent=None)
    for home in state.sets:
        if _is_alike(home.policy, wanted, model_ref):
            home.add_pool(joining)
            return home
    home = ReplicaSet(replace(wanted, pools=(joining,)), state.residency)
    state.sets.append(home)
    return home


def configured_set(state: State, pool: Pool) -> SetPolicy:
    """The set that a pool was configured in."""
    pool_id = pool.policy.pool_id
    return next(policy for policy in state.config.sets if pool_id in policy.pool_ids)


def _is_alike(policy: SetPolicy, wanted: SetPolicy, model_ref: str) -> bool:
    return (
        policy.engine == wanted.engine
        and model_ref in policy.model_refs
        and policy.ctx == wanted.ctx
        and policy.sampler_profile_version == wanted.sampler_profile_version
        and policy.workloads == wanted.workloads
        and policy.determinism == wanted.determinism
        and _quant(policy) == _quant(wanted)
    )


def _served_for(policy: SetPolicy) -> str:
    """What keeps apart sets of one model that serve other workloads, or promise other things."""
    workloads = "" if policy.workloads == ("completion",) else f"+{'+'.join(policy.workloads)}"
    return workloads + ("" if policy.determinism == "strict" else f"+{policy.determinism}")


def _quant(policy: SetPolicy) -> str:
    """The quantisation that a set's id names: it is `engine/model/quant/ctx/profile`."""
    parts = policy.set_id.rsplit("/", 3)
    return parts[1] if len(parts) == 4 else "-"


def of_pool(pool: Pool) -> list[Generation]:
    """All generations of a pool: the one that serves, the one that comes up, those that finish."""
    coming = [] if pool.incoming is None else [pool.incoming]
    return [pool.active, *coming, *pool.outgoing]


def is_open(state: State, home: ReplicaSet) -> bool:
    """Whether a set admits tasks: a pool serves it, for all sessions or for a share of them."""
    if _has_pool(state, home):
        return True
    for pool in state.pools.by_id.values():
        if pool.incoming is not None and pool.incoming.home is home and canary_percent(pool) is not None:
            return True
    return False


def _has_pool(state: State, home: ReplicaSet) -> bool:
    """Whether a pool serves a set for good."""
    for pool_id in home.policy.pool_ids:
        pool = state.pools.by_id.get(pool_id)
        if pool is None or (pool.active.home is home and pool.drain_until_ns is None and not pool.drained):
            return True
    return False


def canary_percent(pool: Pool) -> int | None:
    """The share of the sessions that go to the incoming generation of a pool now; None: no canary is on."""
    reload = pool.reload
    return reload.canary_percent if reload is not None and reload.state == "canary" else None


def has_hope(state: State, home: ReplicaSet) -> bool:
    """Whether what waits in a set can still be served: it has a replica that stays, or gets one."""
    if home.ready:
        return True
    for pool_id in home.policy.pool_ids:
        pool = state.pools.by_id.get(pool_id)
        if pool is None:
            return True
        for generation in of_pool(pool):
            if generation.home is home and any(_stays(member) for member in generation.members.values()):
                return True
    # Scaled to zero, but what waits brings a replica.
    return is_open(state, home)


def _stays(member: Member) -> bool:
    return member.drain_until_ns is None or member.relaunch


def prune(state: State) -> None:
    """Remove sets that no pool uses and no task needs, and from the others the pools that left them."""
    for home in list(state.sets):
        gone = [pool_id for pool_id in home.policy.pool_ids if not _is_used(state, home, pool_id)]
        if len(gone) < len(home.policy.pools):
            for pool_id in gone:
                home.remove_pool(pool_id)
        elif _is_idle(home):
            state.sets.remove(home)


def _is_idle(home: ReplicaSet) -> bool:
    return not home.places_taken and not any(home.running.values())


def _is_used(state: State, home: ReplicaSet, pool_id: str) -> bool:
    pool = state.pools.by_id.get(pool_id)
    return pool is None or any(generation.home is home for generation in of_pool(pool))


# ------------------------------------------------------------------------ names


def carry_names(state: State, pool: Pool, left: ReplicaSet) -> None:
    """A pool serves in another set than before: the names of the set it left go with it, if it was the last one.

    When it comes back to a set that bears names it had taken along, as in a rollback, what it leaves behind is
    asked for no longer; only names of the configuration always lead somewhere.
    """
    engine, carried, pool_id = left.policy.engine, state.routes.carried, pool.policy.pool_id
    back = [name for name in pool.active.home.policy.model_refs if carried.get((engine, name)) == pool_id]
    for name in back:
        del carried[engine, name]
    if _has_pool(state, left):
        return
    for name in left.policy.model_refs:
        if not name.startswith(DIGEST_PREFIX) and (not back or _is_configured(state, engine, name)):
            carried[engine, name] = pool_id


def _is_configured(state: State, engine: str, name: str) -> bool:
    return any(policy.engine == engine and name in policy.model_refs for policy in state.config.sets)


def refresh(state: State) -> None:
    """Say anew which sets are closing and which names lead where, after a change of what serves."""
    routes, pools = state.routes, state.pools.by_id
    routes.clear()
    for home in state.sets:
        home.closing = ""
        if is_open(state, home):
            for name in home.policy.model_refs:
                routes.add(home.policy.engine, name, home)
        else:
            home.closing = _why_closing(state, home)
    for (engine, name), pool_id in routes.carried.items():
        if not routes.leads(engine, name):
            routes.add(engine, name, pools[pool_id].active.home)
    for pool in pools.values():
        home = pool.active.home
        # A drained pool may come back, so its names are known and out of service.
        if home.closing:
            for name in home.policy.model_refs:
                if not routes.leads(home.policy.engine, name):
                    routes.add(home.policy.engine, name, home)
        percent = canary_percent(pool)
        if percent is not None and pool.incoming is not None:
            routes.add_canary(home, percent, pool.incoming.home)


def _why_closing(state: State, home: ReplicaSet) -> str:
    """Why a set that is not open admits nothing; empty for one that is not in service yet."""
    for pool_id in home.policy.pool_ids:
        pool = state.pools.by_id[pool_id]
        if pool.active.home is home:
            return f"pool {pool_id} is {'drained' if pool.drained else 'being drained'}"
        if any(generation.home is home for generation in pool.outgoing):
            return f"pool {pool_id} serves {pool.active.model_ref} now"
    return ""
