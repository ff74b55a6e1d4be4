"""Starting and stopping: next class, next tenant, next task, best replica (ORCH-3075, ORCH-3079, ORCH-3091).

Fairness picks the flow, its line's order picks the task, placement picks the replica.
"""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.scheduling import Start, Stop, StopReason
from contracts.tasks import Outcome
from orchestrator.core import endings
from orchestrator.core.estimates import is_doomed
from orchestrator.core.flows import Flow
from orchestrator.core.lifecycle import advance
from orchestrator.core.placement import Replica, choose
from orchestrator.core.quotas import TenantQuota
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

#: How long a `Stop` may go unanswered before the attempt counts as over without its replica's word.
STOP_TIMEOUT_NS: Final = 2000 * NS_PER_MS


def dispatch(state: State) -> None:
    """Start whatever can start in the sets in which something changed."""
    for home in state.dispatch_due:
        home.dispatch_due = False
        while home.free_slots and not state.is_held and _start_next(state, home):
            pass
    state.dispatch_due.clear()


def _start_next(state: State, home: ReplicaSet) -> bool:
    """Take the next task off the queue; false when none can start now."""
    flow = home.fairness.select()
    if flow is None:
        return False
    record = flow.line.first()
    assert record is not None, f"flow {flow.priority}/{flow.tenant} is active and empty"
    if is_doomed(home, record, state.now_ns):
        home.leave(record)
        outcome = Outcome("failed", tokens_out=record.resume_tokens, error=too_late(record))
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
    policy = home.policy
    state.timers.arm(task_id, now_ns + min(policy.wall_timeout_ms, policy.idle_timeout_ms) * NS_PER_MS)
    record.start = Start(
        policy.set_id,
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


def too_late(record: TaskRecord) -> ErrorInfo:
    """DEADLINE_UNMET for a task that waited until its deadline could not be met any more."""
    verb = "ended" if record.attempt else "started in time to end"
    return ErrorInfo(
        code="DEADLINE_UNMET",
        message=f"not {verb} within deadline_ms {record.task.deadline_ms}",
        engine=record.task.engine,
        pool_id=record.home.policy.pools[0].pool_id,
        retriable=False,
    )
