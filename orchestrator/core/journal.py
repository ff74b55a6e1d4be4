"""Which records of tasks, sessions, accounts and pools a step changed (ORCH-3051).

Told from the step's commands, since whatever changes what is kept has a command; the few exceptions are noted as
they happen (`Changes`). A record is the whole of its subject as the step left it, one for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.journal import (
    ForgottenSession,
    ForgottenTask,
    KeptAccount,
    KeptGeneration,
    KeptPool,
    KeptReplica,
    KeptSession,
    KeptTask,
    Record,
)
from contracts.pools import NotePool, OrderReplica
from contracts.scheduling import Admit, AnyCommand, DropTranscript, Finish, Forget, Pause, SetTimer, Start
from orchestrator.core.pools import generations

if TYPE_CHECKING:
    from orchestrator.core.pools.records import Generation, Member, Pool
    from orchestrator.core.quotas import Gcra, TenantQuota
    from orchestrator.core.records import TaskRecord
    from orchestrator.core.residency import SessionKey
    from orchestrator.core.sessions import Session
    from orchestrator.core.state import State

#: By subject, so that there is one of each. Task ids have no blank, the keys of all others begin with one.
_Found = dict[str, Record]


def records(state: State, commands: list[AnyCommand]) -> list[Record]:
    """What is to be made durable before anybody hears of the step that gave `commands`; to be asked before the next.

    Nothing for most steps. Of a task that was forgotten in the step only that is told.
    """
    found: _Found = {}
    for command in commands:
        # The most frequent ones first. Commands have no subclasses, and to ask for the type itself costs a quarter.
        if type(command) is SetTimer:
            continue
        if type(command) is Start:
            _task_changed(found, state, command.task_id)
        elif type(command) is Finish:
            _finished(found, state, command.task_id)
        elif type(command) is Admit:
            if not command.replayed:
                _admitted(found, state, command.task_id)
        elif type(command) is Forget:
            found[command.task_id] = ForgottenTask(command.task_id)
        elif type(command) is Pause or type(command) is DropTranscript:
            _task_changed(found, state, command.task_id)
        elif type(command) is NotePool:
            _pool_changed(found, state, command.pool_id)
        elif type(command) is OrderReplica:
            _pool_changed(found, state, command.order.pool_id)
    if state.changes.any:
        _noted(found, state)
    return list(found.values()) if found else []


def _task_changed(found: _Found, state: State, task_id: str) -> TaskRecord | None:
    """A task's record, unless it is there already or the task was given up; None if the task is forgotten."""
    record = state.tasks.get(task_id)
    if record is not None and record.admission is not None and not record.expired and task_id not in found:
        found[task_id] = kept_task(record)
    return record


def _finished(found: _Found, state: State, task_id: str) -> None:
    record = _task_changed(found, state, task_id)
    if record is None:
        return
    if record.session is not None:
        _session_changed(found, state, record.session.key)
    _tenant_changed(found, record.quota)


def _admitted(found: _Found, state: State, task_id: str) -> None:
    record = _task_changed(found, state, task_id)
    if record is None:
        return
    task = record.task
    if record.session is not None:
        _session_changed(found, state, record.session.key)
    _tenant_changed(found, record.quota)
    client = state.quotas.client(task.client)
    if client is not None:
        found[f" client {task.client}"] = KeptAccount("client", task.client, client.full_ns)
    rate = record.home.class_rates.get(task.priority)
    if rate is not None:
        name = class_account(record.home.policy.set_id, task.priority)
        found[f" class {name}"] = KeptAccount("class", name, rate.full_ns)


def class_account(set_id: str, priority: str) -> str:
    """The name of the account of a class."""
    return f"{set_id} {priority}"


def _tenant_changed(found: _Found, quota: TenantQuota) -> None:
    if quota.rate is not None or quota.tokens is not None:
        found[f" tenant {quota.name}"] = KeptAccount("tenant", quota.name, _full_ns(quota.rate), _full_ns(quota.tokens))


def _full_ns(bucket: Gcra | None) -> int:
    return 0 if bucket is None else bucket.full_ns


def _session_changed(found: _Found, state: State, key: SessionKey) -> None:
    name = f" session {key[0]} {key[1]}"
    if name in found:
        return
    session = state.sessions.known(key)
    found[name] = ForgottenSession(key[0], key[1]) if session is None else kept_session(state, session)


def _pool_changed(found: _Found, state: State, pool_id: str) -> None:
    name = f" pool {pool_id}"
    pool = state.pools.by_id.get(pool_id)
    if pool is not None and name not in found:
        found[name] = kept_pool(pool)


def _noted(found: _Found, state: State) -> None:
    for task_id in state.changes.tasks:
        _task_changed(found, state, task_id)
    for key in state.changes.sessions:
        _session_changed(found, state, key)
    for pool_id in state.changes.pools:
        _pool_changed(found, state, pool_id)


# ------------------------------------------------------------------------ records


def kept_task(record: TaskRecord) -> KeptTask:
    """The record of an admitted task."""
    told = record.admission
    assert told is not None, f"task {record.task.task_id} is not admitted"
    # By position, in the order of the contract: by name it would cost twice as much, several times for every task.
    return KeptTask(
        record.task,
        record.order,
        told,
        record.admitted_ns,
        record.deadline_ns,
        record.prompt_tokens,
        record.output_tokens,
        record.attempt,
        record.start,
        record.served_by,
        record.started_ns,
        record.queue_time_ns,
        record.resume_tokens,
        record.resume_digest,
        record.preemptions,
        record.moves,
        record.losses,
        record.crashes,
        record.outcome,
        record.ended_ns,
        record.transcript_bytes,
        record.over_attempt,
        record.lost_attempt,
        record.stop_reason,
        record.is_failover,
        record.skipped,
    )


def kept_session(state: State, session: Session) -> KeptSession:
    """The record of a session."""
    return KeptSession(
        session.key[0],
        session.key[1],
        session.last_ns,
        session.last_ns + state.sessions.ttl_ns,
        session.turns,
        session.used_tokens,
        session.used_ns,
        session.used_micros,
        session.closing,
    )


def kept_pool(pool: Pool) -> KeptPool:
    """The record of a managed pool, with the replicas that serve or may run something.

    Those of a reload that is not over have been given nothing, unless it is a canary.
    """
    policy = pool.policy
    others = list(pool.outgoing)
    if pool.incoming is not None and generations.canary_percent(pool) is not None:
        others.append(pool.incoming)
    return KeptPool(
        policy.pool_id,
        pool.active.model_ref,
        pool.desired,
        pool.drained or pool.drain_until_ns is not None,
        pool.ordinal,
        _kept_replicas(pool.active),
        policy.model_ref,
        tuple([KeptGeneration(each.model_ref, _kept_replicas(each)) for each in others]),
    )


def _kept_replicas(generation: Generation) -> tuple[KeptReplica, ...]:
    return tuple([_kept_replica(member) for member in generation.members.values() if member.is_ordered])


def _kept_replica(member: Member) -> KeptReplica:
    return KeptReplica(member.replica_id, member.incarnation, member.node_id, member.devices, member.slots)
