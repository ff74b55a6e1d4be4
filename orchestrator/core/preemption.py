"""Hard preemption: a running task of a lower class gives its slot to one that would be late (ORCH-3086).

Only where it can be undone: the engine can be interrupted, and what was delivered can be made again
byte for byte. The stopped task waits again, keeps its place by deadline, and goes on where it was. Budgets
against thrash: so many a minute in a set, so many in a task's life, and protected classes.
"""

from itertools import islice
from typing import Final

from contracts.scheduling import Pause, PauseCause
from orchestrator.core import dispatch, outlook, timeouts
from orchestrator.core.estimates import in_time_at_once, is_doomed
from orchestrator.core.lifecycle import advance
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

#: How many running tasks are looked at, latest started first: they lose the least.
VICTIMS_MAX: Final = 64


def can_rescue(state: State, record: TaskRecord) -> bool:
    """Whether a task that would be late by waiting can be on time with a slot taken for it."""
    home = record.home
    return (
        home.policy.preemption.mode == "hard"
        and not state.is_held
        and not record.rescued
        and not home.preemption_rate.wait_ns(state.now_ns)
        and in_time_at_once(home, record, state.now_ns)
        and find_victim(home, record, state.now_ns) is not None
    )


def wake_ns(record: TaskRecord, now_ns: int) -> int:
    """When a waiting task is to be looked at again: at its end, or while a slot taken for it would still help.

    What is promised at admission may not come true: running tasks turn out longer than expected.
    """
    home = record.home
    end_ns = timeouts.of_waiting(record)
    if home.policy.preemption.mode != "hard" or record.rescued:
        return end_ns
    service_ns = home.predictor.service_ns(record.prompt_tokens, record.output_tokens)
    last_ns = record.deadline_ns - service_ns - service_ns // 2
    return min(end_ns, last_ns) if last_ns > now_ns else end_ns


def rescue(state: State, record: TaskRecord) -> None:
    """Take a slot for a waiting task that will be late otherwise, if one may be taken."""
    if not can_rescue(state, record):
        return
    home = record.home
    victim = find_victim(home, record, state.now_ns)
    assert victim is not None, "there was a victim just now"
    home.preemption_rate.take(state.now_ns)
    victim.preemptions += 1
    victim.hands_over_to = record
    record.rescued = True
    dispatch.stop(state, victim, "preempt", for_task=record.task.task_id)


def find_victim(home: ReplicaSet, record: TaskRecord, now_ns: int) -> TaskRecord | None:
    """A running task of the lowest class that may be stopped; those that can still be on time come first."""
    tier = home.tier_of[record.task.priority]
    late: TaskRecord | None = None
    for lower in reversed(home.tiers):
        if lower is tier:
            break
        if lower.policy.priority in home.policy.preemption.protect:
            continue
        for victim in islice(reversed(home.running[lower.policy.priority].values()), VICTIMS_MAX):
            if not _may_be_stopped(victim, record):
                continue
            if not is_doomed(home, victim, now_ns):
                return victim
            late = late or victim
    return late


def _may_be_stopped(victim: TaskRecord, record: TaskRecord) -> bool:
    replica, home = victim.replica, victim.home
    return (
        victim.state == "running"
        and victim.preemptions < home.policy.preemption.per_task_max
        and (victim.determinism == "strict" or not (victim.tokens_out or victim.resume_tokens))
        and replica is not None
        and replica.state == "ready"
        and replica.index is home.canaries.index_for(record.task.session_id)
        and replica.info is not None
        and replica.info.interruptible_decode
        and replica.kv_reserved - victim.kv_tokens + record.kv_tokens <= replica.kv_capacity
        and (not record.crashes or replica.suspect() in (None, victim))
    )


def preempted(state: State, record: TaskRecord) -> None:
    """A preempted attempt has stopped."""
    wait_again(state, record, "preempt")


def wait_again(state: State, record: TaskRecord, cause: PauseCause) -> None:
    """The task of an attempt that is over or lost waits again, to go on where it was, byte for byte (ORCH-3086)."""
    join_again(state, record)
    home = record.home
    wait_ms = outlook.of_waiting(home, record, state.now_ns).start_ms
    state.out.append(Pause(home.policy.set_id, record.task.task_id, record.attempt, wait_ms, cause))


def join_again(state: State, record: TaskRecord) -> None:
    """A task without its attempt takes its old place in its line, and knows what was delivered of it."""
    home = record.home
    advance(record, "queued")
    record.replica = None
    record.stop_reason = None
    if record.tokens_out > record.resume_tokens:
        record.resume_tokens, record.resume_digest = record.tokens_out, record.tokens_digest
    # The attempt is on the house: what it made is made again, and paid for then.
    home.correct(record, 0)
    state.timers.arm(record.task.task_id, max(record.deadline_ns, state.now_ns + 1))
    home.join(record)
    state.want_dispatch(home)
