"""What must be true of pools after every step, recomputed from scratch; slow, for tests and simulation."""

from orchestrator.core.pools import due, generations, nodes
from orchestrator.core.pools.records import POOLS_KEY, Member, Pool
from orchestrator.core.state import State


def check(state: State) -> None:
    """Raise `AssertionError`, with what is wrong, if what is known of pools contradicts itself."""
    _check_tables(state)
    _check_gpus(state)
    for member in state.pools.members.values():
        _check_member(state, member)
    _check_replicas(state)
    for pool in state.pools.by_id.values():
        _check_pool(state, pool)
    _check_timer(state)


def _check_tables(state: State) -> None:
    pools = state.pools
    filed: dict[str, Member] = {}
    for pool_id, pool in pools.by_id.items():
        assert pool.policy.pool_id == pool_id, f"pool {pool.policy.pool_id} is filed under {pool_id}"
        for generation in generations.of_pool(pool):
            for replica_id, member in generation.members.items():
                assert replica_id not in filed, f"{replica_id} is in two generations"
                assert member.generation is generation, f"{replica_id} is filed in another generation"
                assert member.pool is pool, f"{replica_id} is filed in another pool"
                filed[replica_id] = member
    for replica_id, member in filed.items():
        assert pools.members.get(replica_id) is member, f"{replica_id} is in a generation and not a member"
    assert len(filed) == len(pools.members), f"{list(pools.members)} are not those of the generations, {list(filed)}"
    draining = {r: m for r, m in pools.members.items() if m.drain_until_ns is not None}
    assert pools.draining == draining, f"{list(pools.draining)} drain, not {list(draining)}"
    assert not pools.touched, "pools were left unsettled"


def _check_gpus(state: State) -> None:
    held: dict[tuple[str, int], str] = {}
    for replica_id, member in state.pools.members.items():
        for index in member.devices:
            other = held.setdefault((member.node_id, index), replica_id)
            assert other == replica_id, f"GPU {index} of {member.node_id} is held by {other} and {replica_id}"
    uuids: dict[str, str] = {}
    for replica_id, replica in state.replicas.items():
        for uuid in replica.info.gpu_uuids if replica.info is not None else ():
            other = uuids.setdefault(uuid, replica_id)
            assert other == replica_id, f"{other} and {replica_id} share GPU {uuid}"


def _check_member(state: State, member: Member) -> None:
    name = f"{member.replica_id} ({member.state})"
    replica = state.replicas.get(member.replica_id)
    assert member.state != "retired", f"{name}: is still a member"
    if member.node_id:
        assert member.node_id in state.pools.nodes, f"{name}: stands on {member.node_id}, which is gone"
        assert member.devices == nodes.mask_of(member.pool.policy), f"{name}: stands on {member.devices}"
    else:
        assert not member.devices, f"{name}: holds GPUs {member.devices} of no node"
        assert member.state in ("pending", "waiting"), f"{name}: stands nowhere"
    assert member.state != "pending" or member.unplaced, f"{name}: does not say why"
    assert member.is_ordered or member.state in ("pending", "waiting"), f"{name}: has no order"
    assert member.incarnation or not member.is_ordered, f"{name}: is ordered as no incarnation"
    if member.state in ("loading", "ready"):
        assert replica is not None, f"{name}: is not registered"
    if replica is None:
        assert not member.suspended, f"{name}: is suspended and not registered"
        return
    assert member.is_ordered, f"{name}: is registered without an order"
    assert member.state != "ordered", f"{name}: is registered and still awaited"
    assert replica.home is member.generation.home, f"{name}: serves another set than its generation"
    is_up = replica.state in ("ready", "aside")
    assert is_up == (member.state == "ready"), f"{name}: its replica is {replica.state}"
    assert (replica.state == "loading") == (member.state == "loading"), f"{name}: its replica is {replica.state}"
    if is_up:
        aside = member.suspended or member.drain_until_ns is not None
        assert aside == (replica.state == "aside"), f"{name}: is {replica.state}, to be aside: {aside}"


def _check_replicas(state: State) -> None:
    for replica_id, replica in state.replicas.items():
        if replica.pool_id in state.pools.by_id:
            assert replica_id in state.pools.members, f"{replica_id} is registered ({replica.state}) and not a member"
            assert replica.home in state.sets, f"{replica_id} serves a set that is gone"


def _check_pool(state: State, pool: Pool) -> None:
    name = f"pool {pool.policy.pool_id}"
    scaling = pool.scaling
    assert scaling.replicas_min <= pool.desired <= max(1, scaling.replicas_max), f"{name}: {pool.desired} desired"
    assert pool.breaker_open or pool.failures < pool.policy.restart.breaker_failures, f"{name}: the breaker is closed"
    if state.pools.nodes_known and not pool.drained and pool.drain_until_ns is None:
        there = [m for m in pool.active.members.values() if m.drain_until_ns is None or m.relaunch]
        assert len(there) >= pool.desired, f"{name}: {len(there)} replicas, {pool.desired} desired"
        is_known = not any(member.replica_id in state.awaited for member in there)
        assert not is_known or len(there) == pool.desired, f"{name}: {len(there)} replicas, {pool.desired} desired"
    if pool.drained:
        assert not pool.active.members, f"{name}: is drained and has {list(pool.active.members)}"


def _check_timer(state: State) -> None:
    """A lease that was renewed leaves the timer early; it must never be late."""
    armed_ns, due_ns = state.timers.armed_at(POOLS_KEY), due.next_due_ns(state)
    assert (armed_ns is None) == (due_ns is None), f"the timer of pools is armed for {armed_ns}, due is {due_ns}"
    if armed_ns is not None and due_ns is not None:
        assert armed_ns > state.now_ns, "the timer of pools is overdue"
        latest_ns = max(due_ns, state.now_ns + due.TIMER_NS_MIN)
        assert armed_ns <= latest_ns, f"the timer of pools is armed for {armed_ns}, due is {due_ns}"
