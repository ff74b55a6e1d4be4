"""Replicas come, load, become Ready, fail and go (ORCH-3010, ORCH-3018, ORCH-3046)."""

from contracts.pools import FaultKind
from contracts.scheduling import (
    RefuseReplica,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaReported,
    ReplicaUnready,
)
from contracts.tasks import ReplicaInfo
from orchestrator.core import adoption, attempts, submissions
from orchestrator.core.placement import PRESSURE_STEP_PERMILLE, Replica
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State


def loading(state: State, event: ReplicaLoading) -> None:
    """A replica brings its engine up. If it was Ready, that engine is gone."""
    state.is_back(event.replica_id)
    replica = _registered(state, event.replica_id, event.pool_id)
    if replica is None:
        return
    if replica.state != "loading":
        take_down(state, replica, "the engine is loading again")
        begin_loading(state, replica)
    adoption.take_ends(state, replica, event.ended)


def ready(state: State, event: ReplicaReady) -> None:
    """A replica can serve from now on, if it is like the others of its set."""
    info = event.replica
    replica = _registered(state, info.replica_id, info.pool_id)
    if replica is not None:
        accept(state, replica, event)
    state.is_back(info.replica_id)


def accept(state: State, replica: Replica, event: ReplicaReady) -> str | None:
    """Let a replica serve, and go on with what it runs; one that must not is removed and told so: why is returned."""
    info = event.replica
    is_up = replica.state in ("ready", "aside")
    if is_up and replica.info == info and not (event.running or event.ended):
        return None
    if is_up:
        same = replica.info == info
        take_down(state, replica, "its link was made anew" if same else "the engine was replaced")
    home = replica.home
    reason = mismatch(home, info) or _shared_gpu(state, info) or adoption.contradiction(state, event)
    if reason is not None:
        refuse(state, replica, reason)
        return reason
    if replica.state == "loading":
        del home.loading[replica.replica_id]
        if replica.since_ns < state.now_ns:
            home.predictor.loaded(state.now_ns - replica.since_ns)
    home.predictor.self_tested(info.token_ns)
    home.pin = home.pin or info
    replica.state = "ready"
    replica.reason = ""
    replica.came_up(info)
    home.came_up(replica)
    if info.keeps_kv:
        state.residency.add_replica(info.replica_id, replica.kv_capacity)
    adoption.take_up(state, replica, event)
    state.want_dispatch(home)
    return None


def refuse(state: State, replica: Replica, reason: str, kind: FaultKind = "refused") -> None:
    """A registered replica must not serve: it is removed, and told so."""
    remove(state, replica, reason, kind)
    state.out.append(RefuseReplica(replica.home.policy.set_id, replica.replica_id, reason))


def unready(state: State, event: ReplicaUnready) -> None:
    """A replica's engine is down, and with it all that it was running."""
    replica = state.replicas.get(event.replica_id)
    if replica is None:
        return
    if replica.state == "loading":
        del replica.home.loading[replica.replica_id]
        replica.state = "unready"
        replica.home.pool_reasons[replica.pool_id] = event.reason
    else:
        take_down(state, replica, event.reason, event.kind)
    replica.reason = event.reason


def lost(state: State, event: ReplicaLost) -> None:
    """A replica is gone, and with it all that it was doing."""
    replica = state.replicas.get(event.replica_id)
    if replica is not None:
        remove(state, replica, event.reason)


def set_aside(state: State, replica: Replica) -> None:
    """A Ready replica is sent nothing new from now on, measurements included; what it runs goes on."""
    if replica.state != "ready":
        return
    home = replica.home
    home.set_aside(replica)
    replica.state = "aside"
    _measure_elsewhere(state, replica)
    # With one side gone its sessions are the other side's, which may have slots free.
    state.want_dispatch(home)


def bring_back(state: State, replica: Replica) -> None:
    """A replica that was set aside takes tasks again."""
    if replica.state != "aside":
        return
    replica.state = "ready"
    replica.home.came_up(replica)
    state.want_dispatch(replica.home)


def reported(state: State, event: ReplicaReported) -> None:
    """A replica told how full its KV cache is; it counts in coarse steps (ORCH-3022)."""
    replica = state.replicas.get(event.replica_id)
    if replica is None or replica.state != "ready":
        return
    pressure = max(0, min(1000, event.kv_used_permille)) // PRESSURE_STEP_PERMILLE
    if pressure != replica.pressure:
        replica.pressure = pressure
        replica.index.changed(replica)


def mismatch(home: ReplicaSet, info: ReplicaInfo) -> str | None:
    """Why a replica must not serve in this set; None if it may (ORCH-3046).

    The set's configuration binds always. Versions are pinned by the first Ready replica for as long
    as any is Ready, because what runs now must be repeatable on every other replica.
    """
    policy = home.policy
    if info.engine != policy.engine:
        return f"engine is {info.engine}, the set's is {policy.engine}"
    if info.sampler_profile_version != policy.sampler_profile_version:
        return (
            f"sampler_profile_version is {info.sampler_profile_version}, the set's is {policy.sampler_profile_version}"
        )
    if info.ctx < policy.ctx:
        return f"ctx is {info.ctx}, the set admits tasks up to {policy.ctx}"
    if info.slots < 1:
        return "it has no slots"
    if 0 < info.kv_tokens < policy.ctx:
        return f"its KV cache holds {info.kv_tokens} tokens, the set admits tasks up to {policy.ctx}"
    # ORCH-3011: the mask is hard; a pool without one takes any device.
    mask = home.masks[info.pool_id]
    off = [device for device in info.devices if mask and device not in mask]
    if off:
        return f"it runs on {', '.join(off)}, the pool's mask is {', '.join(mask)}"
    if home.pin is None:
        return None
    for name in ("engine_version", "model_digest", "ctx"):
        has, pinned = getattr(info, name), getattr(home.pin, name)
        if has != pinned:
            return f"{name} is {has}, the set is pinned to {pinned}"
    return None


def _shared_gpu(state: State, info: ReplicaInfo) -> str | None:
    """Which replica that is up already runs on one of these GPUs; two must never share one (ORCH-3011)."""
    if not info.gpu_uuids:
        return None
    for other in state.replicas.values():
        if other.info is None or other.replica_id == info.replica_id:
            continue
        for uuid in other.info.gpu_uuids:
            if uuid in info.gpu_uuids:
                return f"{info.replica_id} runs on GPU {uuid}, which {other.replica_id} holds"
    return None


def register(state: State, replica_id: str, pool_id: str, home: ReplicaSet) -> Replica:
    """A replica is there, without an engine as yet."""
    replica = Replica(replica_id, pool_id, home, state.next_sequence(), state.now_ns)
    replica.state = "unready"
    state.replicas[replica_id] = replica
    return replica


def begin_loading(state: State, replica: Replica) -> None:
    """The engine of a replica that is not up is being launched."""
    replica.state = "loading"
    replica.since_ns = state.now_ns
    replica.home.loading[replica.replica_id] = state.now_ns


def _registered(state: State, replica_id: str, pool_id: str) -> Replica | None:
    """The replica of that id, registered as loading if it is new; None if its pool is unknown."""
    replica = state.replicas.get(replica_id)
    if replica is not None and replica.pool_id == pool_id:
        return replica
    if replica is not None:
        remove(state, replica, "it came back in another pool")
    home = state.set_of_pool.get(pool_id)
    if home is None:
        state.out.append(RefuseReplica("", replica_id, f"no pool {pool_id} is configured"))
        return None
    replica = register(state, replica_id, pool_id, home)
    begin_loading(state, replica)
    return replica


def remove(state: State, replica: Replica, reason: str, kind: FaultKind = "actor") -> None:
    """Forget a replica; what it was running is lost."""
    del state.replicas[replica.replica_id]
    if replica.state == "loading":
        del replica.home.loading[replica.replica_id]
    take_down(state, replica, reason, kind)


def take_down(state: State, replica: Replica, reason: str, kind: FaultKind = "actor") -> None:
    """Stop counting on a replica: out of the index first, so that nothing goes back to it.

    `kind` says whether what it was running may be what ended it.
    """
    home = replica.home
    home.pool_reasons[replica.pool_id] = reason
    was_up = replica.state in ("ready", "aside")
    replica.state = "unready"
    if not was_up:
        return
    home.went_down(replica)
    state.residency.remove_replica(replica.replica_id)
    attempts.replica_gone(state, replica, reason, kind)
    replica.went_down()
    _measure_elsewhere(state, replica)
    # With one side gone its sessions are the other side's, which may have slots free.
    state.want_dispatch(home)


def _measure_elsewhere(state: State, replica: Replica) -> None:
    measuring = list(replica.measuring.values())
    replica.measuring.clear()
    for record in measuring:
        record.replica = None
        submissions.measure_somewhere(state, record)
