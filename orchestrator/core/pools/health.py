"""What can be read of pools and replica sets (ORCH-2103, ORCH-2104, OC-POOL-3003); reading changes nothing."""

from contracts.control import (
    PoolError,
    PoolHealth,
    PoolMetrics,
    Reload,
    ReplicaHealth,
    ReplicaPhase,
    ReplicaSetStatus,
    SloStatus,
)
from contracts.policies import PoolPolicy
from orchestrator.core import outages, outlook
from orchestrator.core.placement import Replica
from orchestrator.core.pools import generations
from orchestrator.core.pools.records import Fault, Member, Pool, Pools
from orchestrator.core.records import ceil_ms
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State


def readiness(pool: Pool, pools: Pools) -> str:
    """ "ready", "loading", "draining", "drained" or "unavailable: <why>" of a managed pool.

    Ready is also a pool that is scaled to zero: it takes tasks. It takes them too while its replica waits for a node,
    but nobody can say when one comes, so that it is unavailable then.
    """
    if pool.drained:
        return "drained"
    if pool.drain_until_ns is not None:
        return "draining"
    members = list(pool.active.members.values())
    if any(_serves(member) for member in members):
        return "ready"
    takes_tasks = outages.comes_up_for_tasks(pool, pools)
    if any(_comes_up(member) for member in members):
        return "ready" if takes_tasks else "loading"
    unplaced = [member.unplaced for member in members if member.unplaced]
    if unplaced:
        return f"unavailable: {unplaced[0]}"
    if takes_tasks:
        return "ready"
    if pool.fault is not None:
        return f"unavailable: {pool.fault.reason}"
    return "unavailable: no replica has come up yet"


def _serves(member: Member) -> bool:
    return member.state == "ready" and not member.suspended and member.drain_until_ns is None


def _comes_up(member: Member) -> bool:
    return member.state == "loading" or (member.state in ("ordered", "waiting") and not member.failures)


# ------------------------------------------------------------------------ pools


def pool_health(state: State, now_ns: int, pool_id: str) -> PoolHealth | None:
    """How a pool is; None if there is no such pool."""
    now_ns = max(now_ns, state.now_ns)
    pool = state.pools.by_id.get(pool_id)
    if pool is not None:
        return _managed(state, now_ns, pool)
    home = state.set_of_pool.get(pool_id)
    return None if home is None else _unmanaged(state, now_ns, pool_id, home)


def _managed(state: State, now_ns: int, pool: Pool) -> PoolHealth:
    home, policy, reload = pool.active.home, pool.policy, pool.reload
    shown = [
        _member(state, now_ns, member)
        for generation in generations.of_pool(pool)
        for member in generation.members.values()
    ]
    error = None if pool.fault is None else _error(pool.fault, now_ns)
    return PoolHealth(
        pool_id=policy.pool_id,
        engine=home.policy.engine,
        accelerator=policy.accelerator,
        model_ref=pool.active.model_ref,
        live=state.pools.nodes_known and not pool.drained,
        ready=any(each.phase == "ready" for each in shown),
        draining=pool.drain_until_ns is not None,
        restarts=pool.restarts,
        metrics=_metrics(home, now_ns, pool.desired, shown),
        replicas=shown,
        breaker="open" if pool.breaker_open else "closed",
        drained=pool.drained,
        reload=None if reload is None else Reload(reload.model_ref, reload.state, reload.canary_percent, reload.why),
        last_error=error or next((each.last_error for each in shown if each.last_error is not None), None),
    )


def _member(state: State, now_ns: int, member: Member) -> ReplicaHealth:
    replica = state.replicas.get(member.replica_id)
    info = None if replica is None else replica.info
    node = state.pools.nodes.get(member.node_id)
    error = None if member.fault is None else _error(member.fault, now_ns)
    if member.unplaced:
        error = PoolError("unplaced", member.unplaced, member.replica_id, 0)
    return ReplicaHealth(
        replica_id=member.replica_id,
        phase=_phase(member),
        model_ref=member.generation.model_ref,
        incarnation=member.incarnation,
        restarts=member.restarts,
        node_id=member.node_id or None,
        zone=(node.zone or None) if node is not None else None,
        devices=list(member.devices),
        gpu_uuids=[] if info is None else list(info.gpu_uuids),
        slots_total=0 if replica is None else replica.slots,
        slots_free=_free(replica),
        retry_in_ms=max(0, ceil_ms(member.launch_ns - now_ns)) if member.state == "waiting" else None,
        last_error=error,
    )


def _phase(member: Member) -> ReplicaPhase:
    if member.drain_until_ns is not None:
        return "draining"
    if member.suspended:
        return "suspended"
    if member.state == "ordered":
        return "starting"
    if member.state == "retired":
        return "draining"
    return member.state


def _unmanaged(state: State, now_ns: int, pool_id: str, home: ReplicaSet) -> PoolHealth:
    """A pool of which whichever replica registers is taken."""
    mine = [replica for replica in state.replicas.values() if replica.pool_id == pool_id]
    shown = [_registered(home, replica) for replica in mine]
    accelerators = [replica.info.accelerator for replica in mine if replica.info is not None]
    return PoolHealth(
        pool_id=pool_id,
        engine=home.policy.engine,
        accelerator=accelerators[0] if accelerators else _policy(home, pool_id).accelerator,
        model_ref=home.policy.model_refs[0],
        live=True,
        ready=any(each.phase == "ready" for each in shown),
        draining=False,
        restarts=0,
        metrics=_metrics(home, now_ns, len(shown), shown),
        replicas=shown,
    )


def _registered(home: ReplicaSet, replica: Replica) -> ReplicaHealth:
    phases: dict[str, ReplicaPhase] = {"ready": "ready", "loading": "loading", "aside": "draining"}
    info = replica.info
    return ReplicaHealth(
        replica_id=replica.replica_id,
        phase=phases.get(replica.state, "waiting"),
        model_ref=home.policy.model_refs[0],
        incarnation=0,
        restarts=0,
        node_id=None if info is None else info.node_id,
        zone=None if info is None else info.zone or None,
        gpu_uuids=[] if info is None else list(info.gpu_uuids),
        slots_total=replica.slots,
        slots_free=_free(replica),
        last_error=PoolError("exit", replica.reason, replica.replica_id, 0) if replica.reason else None,
    )


def _free(replica: Replica | None) -> int:
    """Slots that a new task could have."""
    return replica.slots - len(replica.busy) if replica is not None and replica.state == "ready" else 0


def _policy(home: ReplicaSet, pool_id: str) -> PoolPolicy:
    return next(policy for policy in home.policy.pools if policy.pool_id == pool_id)


def _error(fault: Fault, now_ns: int) -> PoolError:
    ms_ago = max(0, ceil_ms(now_ns - fault.at_ns))
    return PoolError(fault.kind, fault.reason, fault.replica_id, ms_ago, list(fault.stderr))


def _metrics(home: ReplicaSet, now_ns: int, desired: int, shown: list[ReplicaHealth]) -> PoolMetrics:
    return PoolMetrics(
        replicas_desired=desired,
        replicas_ready=len([each for each in shown if each.phase == "ready"]),
        slots_total=sum([each.slots_total for each in shown]),
        slots_free=sum([each.slots_free for each in shown]),
        queue_depth=home.waiting,
        predicted_wait_ms=_predicted_wait_ms(home, now_ns),
    )


def _predicted_wait_ms(home: ReplicaSet, now_ns: int) -> int:
    """What a task that comes now and goes last would wait; 0 while a slot is free for it."""
    if home.free_slots and not home.waiting:
        return 0
    return ceil_ms(outlook.wait_of(home, home.waiting_tokens, now_ns))


# ------------------------------------------------------------------------ sets


def replica_sets(state: State, now_ns: int) -> list[ReplicaSetStatus]:
    """How loaded every replica set is, and its objectives; how well they are met is for who measures it to add."""
    now_ns = max(now_ns, state.now_ns)
    return [_set(state, home, now_ns) for home in state.sets]


def _set(state: State, home: ReplicaSet, now_ns: int) -> ReplicaSetStatus:
    policy, pin = home.policy, home.pin
    busy = home.slots - home.free_slots
    names = [*policy.model_refs, *state.routes.names_of(home)]
    return ReplicaSetStatus(
        id=policy.set_id,
        engine=policy.engine,
        load=busy / home.slots if home.slots else 0.0,
        slots_total=home.slots,
        slots_free=home.free_slots,
        slo={queue.priority: SloStatus(queue.slo_first_token_ms) for queue in policy.queues},
        model_refs=list(dict.fromkeys(names)),
        pools=list(policy.pool_ids),
        replicas_ready=len(home.ready),
        queue_depth=home.waiting,
        predicted_wait_ms=_predicted_wait_ms(home, now_ns),
        accelerator=policy.pools[0].accelerator if pin is None else pin.accelerator,
        engine_version=None if pin is None else pin.engine_version,
        model_digest=None if pin is None else pin.model_digest,
    )
