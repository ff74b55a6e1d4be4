"""What must be true after every step, recomputed from scratch; slow, for tests and simulation."""

from typing import TYPE_CHECKING

from orchestrator.core import task_invariants
from orchestrator.core.dispatch import next_of
from orchestrator.core.flows import Flow
from orchestrator.core.lifecycle import ON_REPLICA, is_over
from orchestrator.core.placement import load
from orchestrator.core.pools import invariants as pool_invariants
from orchestrator.core.pools.records import POOLS_KEY
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.scheduler import Scheduler
from orchestrator.core.state import RETENTION_KEY, State

if TYPE_CHECKING:
    from orchestrator.core.placement import Replica


def check(scheduler: Scheduler) -> None:
    """Raise `AssertionError`, with what is wrong, if the scheduler contradicts itself."""
    state = scheduler.state
    for key, record in state.tasks.items():
        assert record.task.task_id == key, f"task {record.task.task_id} is filed under {key}"
        task_invariants.check(state, record)
    for home in state.sets:
        _check_queues(state, home)
        _check_replicas(state, home)
        _check_work(state, home)
    _check_slots(state)
    _check_quotas(state)
    _check_retention(state)
    _check_timers(state)
    pool_invariants.check(state)


def _check_queues(state: State, home: ReplicaSet) -> None:
    set_id = home.policy.set_id
    members: dict[int, list[TaskRecord]] = {}
    measuring: dict[str, int] = {}
    for record in state.tasks.values():
        if record.home is home and record.state == "queued":
            members.setdefault(id(record.flow), []).append(record)
        elif record.home is home and record.state == "measuring":
            measuring[record.task.priority] = measuring.get(record.task.priority, 0) + 1
    fresh_total = queued_total = 0
    for tier in home.tiers:
        name = f"{set_id}/{tier.policy.priority}"
        queued = [record for flow in tier.flows.values() for record in _check_flow(f"{name}/{flow.tenant}", flow)]
        for flow in tier.flows.values():
            mine = members.pop(id(flow), [])
            assert len(mine) == len(flow.line), f"{name}/{flow.tenant}: {len(mine)} queued, {len(flow.line)} in line"
        assert tier.waiting == len(queued), f"{name}: {tier.waiting} counted, {len(queued)} wait"
        assert tier.cost_tokens == sum(r.cost_tokens for r in queued), f"{name}: token sum is wrong"
        promised = measuring.get(tier.policy.priority, 0)
        assert tier.reserved == promised, f"{name}: {tier.reserved} reserved for {promised} measuring"
        fresh = sum(r.fresh for r in queued) + promised
        assert fresh <= tier.policy.capacity, f"{name}: {fresh} wait, bound {tier.policy.capacity}"
        fresh_total += fresh
        queued_total += len(queued)
    assert not members, f"{set_id}: tasks wait in flows that are gone"
    assert fresh_total <= home.policy.capacity, f"{set_id}: {fresh_total} wait, bound {home.policy.capacity}"
    if not state.is_held:
        _check_work_conserved(home)
    assert not home.dispatch_due, f"{set_id}: a dispatch is left over"


def _check_flow(name: str, flow: Flow[TaskRecord]) -> list[TaskRecord]:
    waiting = flow.line.items()
    assert all(r.state == "queued" for r in waiting), f"{name}: a task in line is not queued"
    places = [(r.key, r.order) for r in waiting]
    assert places == sorted(places), f"{name}: not in order"
    assert [flow.line.position(r) for r in waiting] == list(range(len(waiting))), f"{name}: positions are wrong"
    assert flow.active == (bool(waiting) and not flow.blocked), f"{name}: active {flow.active}, {len(waiting)} wait"
    return waiting


def _check_work_conserved(home: ReplicaSet) -> None:
    """A task waits only for a slot, for its tenant's quota, or for room in the KV of the replicas of its side.

    Suspects also wait for each other, and where a flow has nothing else, the others have their turns before it: then
    any of them may be the one whose turn it is and that finds no room.
    """
    if home.fairness.select() is None or not home.free_slots:
        return
    active = [flow for tier in home.tiers for flow in tier.flows.values() if flow.active]
    selected = home.fairness.select()
    if selected is not None and next_of(home, selected) is not None:
        active = [selected]
    turns = [record for record in [next_of(home, flow) for flow in active] if record is not None]
    rooms = [(record.task.task_id, _takers(home, record)) for record in turns]
    assert not rooms or not all(takers for _, takers in rooms), f"{home.policy.set_id}: {rooms} could start"


def _takers(home: ReplicaSet, record: TaskRecord) -> list[str]:
    candidates = home.canaries.index_for(record.task.session_id).candidates()
    return [replica.replica_id for replica in candidates if replica.takes(record)]


def _check_replicas(state: State, home: ReplicaSet) -> None:
    set_id = home.policy.set_id
    mine = [r for r in state.replicas.values() if r.home is home]
    ready = {r.replica_id: r for r in mine if r.state == "ready"}
    assert home.ready == ready, f"{set_id}: {list(home.ready)} are not the Ready replicas"
    assert home.slots == sum(r.slots for r in ready.values()), f"{set_id}: slot sum is wrong"
    for index in home.canaries.indexes:
        indexed = index.replicas()
        assert all(r.index is index and r.state == "ready" for r in indexed), f"{set_id}: a replica is misplaced"
        free = sum(r.slots - len(r.busy) for r in indexed)
        assert index.free_slots == free, f"{set_id}: {index.free_slots} free slots counted, {free} are"
        best = index.least_loaded()
        lowest = min(indexed, key=_rank, default=None)
        assert best is lowest, f"{set_id}: least loaded is {lowest.replica_id if lowest else None}"
    assert sum(len(index) for index in home.canaries.indexes) == len(ready), f"{set_id}: a Ready replica is not indexed"
    loading = {r.replica_id: r.since_ns for r in mine if r.state == "loading"}
    assert home.loading == loading, f"{set_id}: {home.loading} are not the loading replicas"
    aside = {r.replica_id: r for r in mine if r.state == "aside"}
    assert home.aside == aside, f"{set_id}: {list(home.aside)} are not the replicas set aside"
    up = ready | aside
    assert (home.pin is not None) == bool(up), f"{set_id}: pinned to {home.pin} with {len(up)} up"
    for replica in up.values():
        _check_pinned(home, replica)
    running = {r.task.task_id for r in state.tasks.values() if r.home is home and r.state in ON_REPLICA}
    counted = [task_id for of_class in home.running.values() for task_id in of_class]
    assert sorted(counted) == sorted(running), f"{set_id}: {counted} are not what runs"


def _check_work(state: State, home: ReplicaSet) -> None:
    running = [r for r in state.tasks.values() if r.home is home and r.state in ON_REPLICA]
    left = sum(r.remaining_tokens for r in running)
    assert home.running_tokens == left, f"{home.policy.set_id}: {home.running_tokens} tokens left to make, not {left}"
    assert all(r.charged_tokens == r.cost_tokens for r in running), f"{home.policy.set_id}: a running task is uncharged"


def _check_pinned(home: ReplicaSet, replica: "Replica") -> None:
    info, pin = replica.info, home.pin
    assert info is not None, f"{replica.replica_id}: Ready without properties"
    assert pin is not None, f"{home.policy.set_id}: Ready replicas without a pin"
    assert (info.engine_version, info.model_digest, info.ctx, info.sampler_profile_version) == (
        pin.engine_version,
        pin.model_digest,
        pin.ctx,
        pin.sampler_profile_version,
    ), f"{replica.replica_id}: differs from its set's pin"
    reserved = sum(record.kv_tokens for record in replica.busy.values())
    assert replica.kv_reserved == reserved, f"{replica.replica_id}: {replica.kv_reserved} KV tokens, not {reserved}"
    assert reserved <= replica.kv_capacity, f"{replica.replica_id}: {reserved} of {replica.kv_capacity} KV tokens"


def _rank(replica: "Replica") -> tuple[int, int, int, int, int]:
    distance = replica.info.distance if replica.info is not None else 0
    return (load(replica), replica.pressure, distance, len(replica.busy), replica.sequence)


def _check_slots(state: State) -> None:
    held: dict[str, int] = {}
    for replica in state.replicas.values():
        assert len(replica.busy) <= replica.slots, f"{replica.replica_id}: {len(replica.busy)} of {replica.slots} slots"
        for (task_id, attempt), record in replica.busy.items():
            assert state.tasks.get(task_id) is record, f"{replica.replica_id}: slot of unknown task {task_id}"
            highest = max(record.attempt, record.taken_attempt)
            assert attempt <= highest, f"{replica.replica_id}: slot of attempt {attempt} of {task_id}"
            held[task_id] = held.get(task_id, 0) + 1
        suspects = [r.task.task_id for (_, n), r in replica.busy.items() if r.crashes and _is_present(replica, r, n)]
        assert len(suspects) <= 1, f"{replica.replica_id}: suspects {suspects} run together"
        for task_id, record in replica.measuring.items():
            assert state.tasks.get(task_id) is record, f"{replica.replica_id}: measures unknown task {task_id}"
            assert record.state == "measuring", f"{replica.replica_id}: measures {task_id}, which is {record.state}"
    for task_id, record in state.tasks.items():
        assert record.slots_held == held.get(task_id, 0), f"task {task_id}: holds {record.slots_held} slots"


def _is_present(replica: "Replica", record: TaskRecord, attempt: int) -> bool:
    """Whether a slot is that of the attempt which its task runs now."""
    return record.replica is replica and record.attempt == attempt and record.state in ON_REPLICA


def _check_quotas(state: State) -> None:
    """What holds a slot counts. Only what is about to stop, or has, may exceed a quota: a link came back with it."""
    running: dict[str, int] = {}
    present: dict[str, int] = {}
    present_bytes: dict[str, int] = {}
    for replica in state.replicas.values():
        for (_, attempt), record in replica.busy.items():
            name = record.quota.name
            running[name] = running.get(name, 0) + 1
            if _is_present(replica, record, attempt):
                present[name] = present.get(name, 0) + 1
                present_bytes[name] = present_bytes.get(name, 0) + record.kv_bytes
    for record in state.tasks.values():
        quota = record.quota
        assert quota.running == running.get(quota.name, 0), f"tenant {quota.name}: {quota.running} counted as running"
        most, here = quota.policy.max_concurrent, present.get(quota.name, 0)
        assert most is None or here <= most, f"tenant {quota.name}: {here} run, quota {most}"
        held_bytes = present_bytes.get(quota.name, 0)
        # One by itself may be larger than all that its tenant may have.
        fits = here <= 1 or quota.kv_bytes_max is None or held_bytes <= quota.kv_bytes_max
        assert fits, f"tenant {quota.name}: KV over quota"


def _check_retention(state: State) -> None:
    kept = state.retention.records()
    are_kept = {id(record) for record in kept}
    assert len(kept) <= state.results.tasks_max, f"{len(kept)} ended tasks kept"
    assert state.retention.bytes == sum(r.transcript_bytes for r in kept), "byte sum of ended tasks is wrong"
    assert state.retention.bytes <= state.results.bytes_max, f"{state.retention.bytes} bytes kept"
    for record in state.tasks.values():
        if is_over(record):
            lingers = record.expired and record.slots_held > 0
            assert (id(record) in are_kept) != lingers, f"task {record.task.task_id}: kept twice or not at all"
    for record in kept:
        age_ns = state.now_ns - record.ended_ns
        assert age_ns < state.results.ttl_ms * NS_PER_MS, f"task {record.task.task_id}: {age_ns} ns old"


def _check_timers(state: State) -> None:
    timers = state.timers
    live = [task_id for task_id, record in state.tasks.items() if not is_over(record)]
    for task_id in live:
        at_ns = timers.armed_at(task_id)
        assert at_ns is not None, f"task {task_id}: has no wake-up"
        assert at_ns > state.now_ns, f"task {task_id}: overslept"
    expected = len(live) + (timers.armed_at(RETENTION_KEY) is not None) + (timers.armed_at(POOLS_KEY) is not None)
    assert len(timers) == expected, f"{len(timers)} wake-ups for {expected}"
    assert bool(len(state.retention)) == (timers.armed_at(RETENTION_KEY) is not None), "retention has no wake-up"
