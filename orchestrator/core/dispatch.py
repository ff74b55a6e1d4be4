"""Starting and stopping: next class, next tenant, next task, best replica (ORCH-3075, ORCH-3079, ORCH-3091).

Fairness picks the flow, its line's order picks the task, placement picks the replica.
"""

from typing import Final

from contracts.scheduling import Start, Stop, StopReason
from contracts.tasks import Outcome
from orchestrator.core import endings, failover, timeouts
from orchestrator.core.choice import choose, is_kept_apart
from orchestrator.core.estimates import is_doomed
from orchestrator.core.flows import Flow
from orchestrator.core.lifecycle import advance
from orchestrator.core.placement import Replica
from orchestrator.core.quotas import TenantQuota
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

#: How long a `Stop` may go unanswered before the attempt counts as over without its replica's word.
STOP_TIMEOUT_NS: Final = 2000 * NS_PER_MS
#: How many suspects at the front of a line are passed over that no replica may take now.
SUSPECTS_MAX: Final = 64


def dispatch(state: State) -> None:
    """Start whatever can start in the sets in which something changed."""
    for home in state.dispatch_due:
        home.dispatch_due = False
        parked: list[Flow[TaskRecord]] = []
        while home.free_slots and not state.is_held and _start_next(state, home, parked):
            pass
        for flow in parked:
            flow.block(False)
    state.dispatch_due.clear()


def _start_next(state: State, home: ReplicaSet, parked: list[Flow[TaskRecord]]) -> bool:
    """Take the next task off the queue; false when none can start now.

    A flow of which only suspects may start, without a place for any, stands aside for the rest of the step.
    """
    flow = home.fairness.select()
    if flow is None:
        return False
    record = next_of(home, flow)
    if record is None:
        flow.block(True)
        parked.append(flow)
        return True
    if is_doomed(home, record, state.now_ns):
        home.leave(record)
        outcome = Outcome("failed", tokens_out=record.resume_tokens, error=failover.too_late(state, record))
        endings.end_unserved(state, record, outcome)
        return True
    if not record.quota.may_start(record.kv_bytes):
        _block(state, home, flow)
        return True
    placed = choose(home, record, state.now_ns)
    if placed is None:
        return False
    home.take(record)
    start(state, record, placed[0], warm=placed[1])
    return True


def next_of(home: ReplicaSet, flow: Flow[TaskRecord]) -> TaskRecord | None:
    """The task of an active flow that starts next: its first one, or the first behind suspects that are kept apart.

    Those keep their places; what waits behind them goes by, since they wait for each other, not for room.
    """
    first = flow.line.first()
    assert first is not None, f"flow {flow.priority}/{flow.tenant} is active and empty"
    if not is_kept_apart(home, first):
        return first
    for record in flow.line.head(SUSPECTS_MAX + 1):
        if not is_kept_apart(home, record):
            return record
    return None


def start(state: State, record: TaskRecord, replica: Replica, *, warm: bool, handed_over: bool = False) -> None:
    """Run the next attempt of a task that left its line on a replica with room for it."""
    advance(record, "running")
    home, now_ns, task_id = record.home, state.now_ns, record.task.task_id
    waited_ns = now_ns - record.admitted_ns
    if record.queue_time_ns is None:
        record.queue_time_ns = waited_ns
        if not handed_over:
            endings.learn_wait(record, waited_ns)
    record.fresh = False
    failover.starts_next(record)
    record.attempt += 1
    record.replica = replica
    record.served_by = replica.info
    record.started_ns = record.progressed_ns = now_ns
    record.tokens_out = record.tokens_digest = 0
    record.slots_held += 1
    record.quota.started(record.kv_bytes)
    busy = len(replica.busy)
    replica.index.take(replica, (task_id, record.attempt), record)
    home.running[record.task.priority][task_id] = record
    state.timers.arm(task_id, timeouts.of_attempt(record)[0])
    record.start = Start(
        home.policy.set_id,
        task_id,
        record.attempt,
        replica.replica_id,
        record.resume_tokens,
        record.resume_digest,
        warm,
        "handed-over" if handed_over else "affinity" if warm else "least-loaded",
        waited_ns // NS_PER_MS,
        (record.deadline_ns - now_ns) // NS_PER_MS,
        busy,
        replica.slots,
    )
    state.out.append(record.start)


def stop(state: State, record: TaskRecord, reason: StopReason, for_task: str = "") -> None:
    """Have a running attempt stopped. It is over when the replica confirms, or after `STOP_TIMEOUT_NS`."""
    replica = record.replica
    assert replica is not None, f"task {record.task.task_id} runs nowhere"
    advance(record, "stopping")
    record.stop_reason = reason
    record.stop_until_ns = state.now_ns + STOP_TIMEOUT_NS
    state.timers.arm(record.task.task_id, record.stop_until_ns)
    set_id, task_id = record.home.policy.set_id, record.task.task_id
    state.changes.task(task_id)
    state.out.append(Stop(set_id, task_id, record.attempt, replica.replica_id, reason, for_task))


def _block(state: State, home: ReplicaSet, flow: Flow[TaskRecord]) -> None:
    """A tenant is at its quota of running tasks: its flow stands aside until one of them ends (ORCH-3036)."""
    flow.block(True)
    state.blocked.setdefault(flow.tenant, []).append((home, flow))


def unblock(state: State, quota: TenantQuota) -> None:
    """A task of a tenant let go of a slot; what the tenant has waiting may go on, in any set."""
    for home, flow in state.blocked.pop(quota.name, ()):
        flow.block(False)
        state.want_dispatch(home)
