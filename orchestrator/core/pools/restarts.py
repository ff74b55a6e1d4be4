"""Engines are launched, and launched again after they failed (ORCH-3038, ORCH-3039, ORCH-3053, OC-POOL-3011).

Restart storms are bounded twice: each replica waits longer from failure to failure, and once a pool has seen
nothing but failures, only one of its replicas is tried at a time. What fails for its place is tried on another node.
"""

from typing import Final
from zlib import crc32

from contracts.policies import RestartPolicy
from contracts.pools import FaultKind, LaunchEngine
from orchestrator.core import replicas
from orchestrator.core.pools import generations, members, nodes, reloads
from orchestrator.core.pools.records import Fault, Member, Pool
from orchestrator.core.records import NS_PER_MS, ceil_ms
from orchestrator.core.state import State

#: Beyond so many doublings every wait is over its bound.
DOUBLINGS_MAX: Final = 40
#: What another node may be without: faults of a GPU, a driver, a mask or the memory that is free.
PLACE_KINDS: Final[tuple[FaultKind, ...]] = ("gpu_lost", "driver", "ecc", "mask", "headroom")
#: Ends of the actor or of its link, which tell nothing of the place.
SILENT_KINDS: Final[tuple[FaultKind, ...]] = ("actor", "lease")


def backoff_ns(policy: RestartPolicy, failures: int, seed: int, replica_id: str) -> int:
    """The wait after that many failures in a row, with jitter that replicas do not share (exponential backoff)."""
    doublings = min(max(0, failures - 1), DOUBLINGS_MAX)
    wait_ns = min(policy.backoff_min_ms << doublings, policy.backoff_max_ms) * NS_PER_MS
    return wait_ns + _jitter_ns(policy, wait_ns, failures, seed, replica_id)


def _jitter_ns(policy: RestartPolicy, wait_ns: int, failures: int, seed: int, replica_id: str) -> int:
    part_permille = crc32(f"{seed} {replica_id} {failures}".encode()) % 1001
    return wait_ns * policy.jitter_percent * part_permille // 100_000


# ------------------------------------------------------------------------ failures


def failed(state: State, member: Member, kind: FaultKind, reason: str, stderr: tuple[str, ...] = ()) -> None:
    """A launch or a running engine failed: it is tried again after the backoff.

    The caller has taken the replica down. What drains to be retired is retired at once.
    """
    if _retired_instead(state, member, kind, reason, stderr):
        return
    pool = member.pool
    policy = pool.policy.restart
    forgive(state, member)
    member.failures += 1
    if kind in PLACE_KINDS:
        member.place_failures += 1
    elif kind not in SILENT_KINDS:
        member.place_failures = 0
    pool.failures += 1
    if kind == "vram_oom":
        _reduce(state, member)
    if pool.failures >= policy.breaker_failures and not pool.breaker_open:
        pool.breaker_open = True
        what = f"{pool.failures} launches of pool {pool.policy.pool_id} failed in a row, the last by {kind}: {reason}"
        members.note(state, member, "breaker_open", f"{what}; one replica is tried at a time", kind)
    _wait(state, member, kind, reason, _wait_ns(state, member))
    reloads.member_failed(state, member)


def forgive(state: State, member: Member) -> None:
    """Failures before a replica served for long enough are not in a row with what comes now."""
    stable_ns = member.pool.policy.restart.stable_after_ms * NS_PER_MS
    if member.ready_ns and state.now_ns - member.ready_ns >= stable_ns:
        member.failures = member.place_failures = 0


def displaced(state: State, member: Member, kind: FaultKind, reason: str) -> None:
    """A replica lost its place through no fault of its engine: a new one is looked for soon.

    A node that is gone is not counted; a place that Ray chose badly makes the next try wait longer.
    """
    if _retired_instead(state, member, kind, reason, ()):
        return
    forgive(state, member)
    if kind == "node":
        members.leave_node(state, member)
        _wait(state, member, kind, reason, _wait_ns(state, member, failures=1))
    else:
        member.failures += 1
        _wait(state, member, kind, reason, _wait_ns(state, member))


def relaunch(state: State, member: Member) -> None:
    """A replica finished its work because of a fault: it gets a new engine, after the backoff (ORCH-3038)."""
    fault = member.fault
    members.end_drain(state, member)
    state.pools.touched = True
    replica = state.replicas.get(member.replica_id)
    if replica is None or fault is None or member.state != "ready":
        return
    replicas.take_down(state, replica, fault.reason, fault.kind)
    failed(state, member, fault.kind, fault.reason, fault.stderr)


def explained(state: State, member: Member, kind: FaultKind, reason: str) -> None:
    """It is known now why a replica that waits has no actor any more: if its node is gone, that was no failure."""
    was_counted = member.fault is not None and member.fault.kind == "actor"
    member.is_ordered = False
    state.changes.pool(member.pool.policy.pool_id)
    noted(state, member, kind, reason)
    if kind != "node":
        return
    members.leave_node(state, member)
    if was_counted:
        member.failures = max(0, member.failures - 1)
        member.pool.failures = max(0, member.pool.failures - 1)
        member.launch_ns = min(member.launch_ns, state.now_ns + _wait_ns(state, member, failures=1))


def returned(member: Member) -> None:
    """A replica whose connection had ended serves on: the link failed, it did not."""
    if member.state == "waiting" and member.fault is not None and member.fault.kind == "actor":
        member.failures = max(0, member.failures - 1)
        member.pool.failures = max(0, member.pool.failures - 1)


def noted(state: State, member: Member, kind: FaultKind, reason: str, stderr: tuple[str, ...] = ()) -> None:
    """Remember what went wrong last with a replica and with its pool (OC-POOL-3003)."""
    member.fault = member.pool.fault = Fault(kind, reason, member.replica_id, state.now_ns, stderr)


def _retired_instead(state: State, member: Member, kind: FaultKind, reason: str, stderr: tuple[str, ...]) -> bool:
    noted(state, member, kind, reason, stderr)
    if member.drain_until_ns is None:
        return False
    if not member.relaunch:
        members.retire(state, member, f"it failed while it was drained: {reason}")
        return True
    members.end_drain(state, member)
    return False


def _reduce(state: State, member: Member) -> None:
    """Its GPU ran out of memory: the next engine serves fewer attempts at once (ORCH-3039)."""
    before = member.slots
    member.slots = max(1, before * 3 // 4)
    reason = f"the GPU ran out of memory with {before} slots; launched with {member.slots} from now on"
    members.note(state, member, "capacity_reduced", reason, "vram_oom")


def _wait_ns(state: State, member: Member, failures: int | None = None) -> int:
    policy, seed = member.pool.policy.restart, state.pools.jitter_seed
    if member.pool.breaker_open:
        longest_ns = policy.backoff_max_ms * NS_PER_MS
        return longest_ns + _jitter_ns(policy, longest_ns, member.failures, seed, member.replica_id)
    return backoff_ns(policy, member.failures if failures is None else failures, seed, member.replica_id)


def _wait(state: State, member: Member, kind: FaultKind, reason: str, wait_ns: int) -> None:
    member.state = "waiting"
    member.ready_ns = 0
    member.suspended = False
    member.launch_ns = state.now_ns + wait_ns
    member.restarts += 1
    member.pool.restarts += 1
    told = f"{reason}; tried again in {ceil_ms(wait_ns)} ms"
    members.note(state, member, "restart", told, kind)
    state.pools.touched = True


# ------------------------------------------------------------------------ launches


def succeeded(state: State, member: Member) -> None:
    """A replica is Ready: the pool's failures are not in a row any more."""
    pool = member.pool
    pool.failures = 0
    if pool.breaker_open:
        pool.breaker_open = False
        members.note(state, member, "breaker_closed", f"replica {member.replica_id} came up")
    state.pools.touched = True


def next_due_ns(pool: Pool) -> int | None:
    """When the next replica of a pool is to be launched; None: none, or not before one under way is decided."""
    if pool.breaker_open and _on_trial(pool):
        return None
    first = _first_waiting(pool)
    return None if first is None else first.launch_ns


def due(state: State, pool: Pool) -> None:
    """Launch what is due, the longest due first."""
    for _ in range(len(state.pools.members)):
        if pool.breaker_open and _on_trial(pool):
            return
        member = _first_waiting(pool)
        if member is None or member.launch_ns > state.now_ns:
            return
        _launch(state, member)


def _launch(state: State, member: Member) -> None:
    replica = state.replicas.get(member.replica_id)
    if replica is not None and nodes.elsewhere(state.pools, member) is not None:
        replicas.remove(state, replica, f"it is moved off node {member.node_id}")
        members.give_up_actor(state, member)
        replica = None
    if replica is None:
        members.order(state, member)
        return
    member.state = "loading"
    replicas.begin_loading(state, replica)
    state.out.append(LaunchEngine(members.set_id_of(member), member.replica_id, member.slots))


def _on_trial(pool: Pool) -> bool:
    """Whether a replica is being tried: its engine comes up, or its actor is made once more."""
    for generation in generations.of_pool(pool):
        for member in generation.members.values():
            if member.state == "loading" or (member.state == "ordered" and member.failures):
                return True
    return False


def _first_waiting(pool: Pool) -> Member | None:
    first: Member | None = None
    for generation in generations.of_pool(pool):
        for member in generation.members.values():
            if member.state == "waiting" and (first is None or member.launch_ns < first.launch_ns):
                first = member
    return first
