"""What must be true after every step, recomputed from scratch; slow, for tests and simulation."""

from typing import TYPE_CHECKING

from orchestrator.core.lifecycle import ON_REPLICA, is_over
from orchestrator.core.queues import FifoFlow
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.scheduler import Scheduler
from orchestrator.core.state import RETENTION_KEY, State
from orchestrator.core.submissions import SUBMISSIONS_MAX

if TYPE_CHECKING:
    from orchestrator.core.placement import Replica


def check(scheduler: Scheduler) -> None:
    """Raise `AssertionError`, with what is wrong, if the scheduler contradicts itself."""
    state = scheduler.state
    for key, record in state.tasks.items():
        assert record.task.task_id == key, f"task {record.task.task_id} is filed under {key}"
        _check_task(record)
    for home in state.sets:
        _check_queues(state, home)
        _check_replicas(state, home)
    _check_slots(state)
    _check_retention(state)
    _check_timers(state)


def _check_task(record: TaskRecord) -> None:
    name = f"task {record.task.task_id} ({record.state})"
    assert (record.admission is None) == (record.state == "measuring"), f"{name}: admission {record.admission}"
    assert (record.outcome is not None) == is_over(record), f"{name}: outcome {record.outcome}"
    if record.outcome is not None:
        assert record.outcome.state == record.state, f"{name}: outcome says {record.outcome.state}"
    assert not record.cancels or record.state == "stopping", f"{name}: leaves cancels {record.cancels} unanswered"
    if record.state == "measuring":
        assert 1 <= len(record.submissions) <= SUBMISSIONS_MAX, f"{name}: {len(record.submissions)} submissions"
        assert record.replica is not None, f"{name}: nobody measures it"
        assert record.replica.measuring.get(record.task.task_id) is record, f"{name}: its replica does not know"
    else:
        assert not record.submissions, f"{name}: leaves submissions {record.submissions} unanswered"
    if record.state in ON_REPLICA:
        replica = record.replica
        assert replica is not None, f"{name}: runs nowhere"
        assert replica.state == "ready", f"{name}: runs on a replica that is {replica.state}"
        assert replica.busy.get((record.task.task_id, record.attempt)) is record, f"{name}: holds no slot"
    elif record.state != "measuring":
        assert record.replica is None, f"{name}: still tied to a replica"
        assert record.remaining_tokens == 0, f"{name}: still counted as running work"


def _check_queues(state: State, home: ReplicaSet) -> None:
    set_id = home.policy.set_id
    fresh_total = 0
    queued_total = 0
    for flow in home.flows:
        assert isinstance(flow, FifoFlow)
        name = f"{set_id}/{flow.priority}"
        waiting = flow.waiting()
        queued_total += len(waiting)
        members = [r for r in state.tasks.values() if r.flow is flow]
        queued = [r for r in members if r.state == "queued"]
        measuring = sum(r.state == "measuring" for r in members)
        assert len(waiting) == len(queued) == len(flow), f"{name}: {len(queued)} queued, {len(waiting)} in line"
        assert all(r.state == "queued" for r in waiting), f"{name}: a task in line is not queued"
        assert [r.order for r in waiting] == sorted(r.order for r in waiting), f"{name}: not in arrival order"
        assert [flow.position(r) for r in waiting] == list(range(len(waiting))), f"{name}: positions are wrong"
        assert flow.tokens == sum(r.expected_tokens for r in waiting), f"{name}: token sum is wrong"
        assert flow.reserved == measuring, f"{name}: {flow.reserved} reserved for {measuring} measuring"
        fresh = sum(r.attempt == 0 for r in waiting) + measuring
        fresh_total += fresh
        assert fresh <= flow.policy.capacity, f"{name}: {fresh} wait, bound {flow.policy.capacity}"
    assert fresh_total <= home.policy.capacity, f"{set_id}: {fresh_total} wait, bound {home.policy.capacity}"
    assert not (home.ready.free_slots and queued_total), f"{set_id}: a slot is free and {queued_total} wait"
    assert not home.dispatch_due, f"{set_id}: a dispatch is left over"


def _check_replicas(state: State, home: ReplicaSet) -> None:
    set_id = home.policy.set_id
    mine = [r for r in state.replicas.values() if r.home is home]
    ready = [r for r in mine if r.state == "ready"]
    index = home.ready
    indexed = {r.replica_id: r for r in index.replicas()}
    assert indexed == {r.replica_id: r for r in ready}, f"{set_id}: the index does not hold the Ready replicas"
    assert index.slots == sum(r.slots for r in ready), f"{set_id}: slot sum is wrong"
    assert index.free_slots == sum(r.slots - len(r.busy) for r in ready), f"{set_id}: free slot sum is wrong"
    loading = {r.replica_id: r.since_ns for r in mine if r.state == "loading"}
    assert home.loading == loading, f"{set_id}: {home.loading} are not the loading replicas"
    assert (home.pin is not None) == bool(ready), f"{set_id}: pinned to {home.pin} with {len(ready)} Ready"
    if ready:
        best = index.least_loaded()
        lowest = min(ready, key=_load)
        assert best is lowest, f"{set_id}: least loaded is {lowest.replica_id}"
    for replica in ready:
        info, pin = replica.info, home.pin
        assert info is not None, f"{replica.replica_id}: Ready without properties"
        assert pin is not None, f"{set_id}: Ready replicas without a pin"
        assert (info.engine_version, info.model_digest, info.ctx, info.sampler_profile_version) == (
            pin.engine_version,
            pin.model_digest,
            pin.ctx,
            pin.sampler_profile_version,
        ), f"{replica.replica_id}: differs from its set's pin"
    running = sum(r.remaining_tokens for r in state.tasks.values() if r.home is home and r.state in ON_REPLICA)
    assert home.running_tokens == running, f"{set_id}: running tokens {home.running_tokens}, not {running}"


def _load(replica: "Replica") -> tuple[int, int, int]:
    busy = len(replica.busy)
    return (busy * (1 << 32) // replica.slots, busy, replica.sequence)


def _check_slots(state: State) -> None:
    held: dict[str, int] = {}
    for replica in state.replicas.values():
        assert len(replica.busy) <= replica.slots, f"{replica.replica_id}: {len(replica.busy)} of {replica.slots} slots"
        for (task_id, attempt), record in replica.busy.items():
            assert state.tasks.get(task_id) is record, f"{replica.replica_id}: slot of unknown task {task_id}"
            assert attempt <= record.attempt, f"{replica.replica_id}: slot of attempt {attempt} of {task_id}"
            held[task_id] = held.get(task_id, 0) + 1
        for task_id, record in replica.measuring.items():
            assert state.tasks.get(task_id) is record, f"{replica.replica_id}: measures unknown task {task_id}"
            assert record.state == "measuring", f"{replica.replica_id}: measures {task_id}, which is {record.state}"
    for task_id, record in state.tasks.items():
        assert record.slots_held == held.get(task_id, 0), f"task {task_id}: holds {record.slots_held} slots"


def _check_retention(state: State) -> None:
    kept = state.retention.records()
    assert len(kept) <= state.results.tasks_max, f"{len(kept)} ended tasks kept"
    assert state.retention.bytes == sum(r.transcript_bytes for r in kept), "byte sum of ended tasks is wrong"
    assert state.retention.bytes <= state.results.bytes_max, f"{state.retention.bytes} bytes kept"
    for record in state.tasks.values():
        if is_over(record):
            lingers = record.expired and record.slots_held > 0
            assert (record in kept) != lingers, f"task {record.task.task_id}: kept twice or not at all"
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
    expected = len(live) + (timers.armed_at(RETENTION_KEY) is not None)
    assert len(timers) == expected, f"{len(timers)} wake-ups for {expected}"
    assert bool(len(state.retention)) == (timers.armed_at(RETENTION_KEY) is not None), "retention has no wake-up"
