"""What the scheduler will decide by, as plain data and as one number (ORCH-3024).

Two schedulers of the same digest that are told the same from then on command the same, apart from what
their estimates have learnt. It is for replay, fail-over and tests: reading changes nothing. Dicts are read in the
order in which they were filled, which is itself decided by the events; nothing is sorted, and sets do not occur.
"""

import hashlib
from typing import Any

import msgspec

from orchestrator.core.appointments import Appointments
from orchestrator.core.flows import Tier
from orchestrator.core.placement import Replica
from orchestrator.core.pools import generations
from orchestrator.core.pools.records import POOLS_KEY, Generation, Member, Pool
from orchestrator.core.quotas import Gcra, TenantQuota
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.scheduler import Scheduler
from orchestrator.core.state import RETENTION_KEY, State

#: Part of a snapshot: numbers and texts in lists and dicts.
Tree = dict[str, Any]


def digest(scheduler: Scheduler) -> str:
    """sha256 over the snapshot, in hexadecimal; the same in every process."""
    return hashlib.sha256(msgspec.msgpack.encode(snapshot(scheduler))).hexdigest()


def snapshot(scheduler: Scheduler) -> Tree:
    """All that decisions depend on, apart from what estimates have learnt."""
    state = scheduler.state
    return {
        "now_ns": state.now_ns,
        "sequence": state._sequence,
        "tasks": {task_id: _task(record) for task_id, record in state.tasks.items()},
        "sets": {home.policy.set_id: _set(home) for home in state.sets},
        "replicas": {replica_id: _replica(replica) for replica_id, replica in state.replicas.items()},
        "pools": {pool_id: _pool(pool) for pool_id, pool in state.pools.by_id.items()},
        "nodes": list(state.pools.nodes),
        "names": [[*names, pool_id] for names, pool_id in state.routes.carried.items()],
        "blocked": {
            tenant: [(home.policy.set_id, flow.priority) for home, flow in flows]
            for tenant, flows in state.blocked.items()
        },
        "timers": {key: state.timers.armed_at(key) for key in (RETENTION_KEY, POOLS_KEY, *state.tasks)},
        "alarm_ns": state.timers._alarm_ns,
        "kept": [record.task.task_id for record in state.retention.records()],
        "accounts": accounts(scheduler),
        "service": {
            "awaited": list(state.awaited),
            "unsure": list(state.unsure),
            "undone": list(state.undone),
            "recovery_until_ns": state.recovery_until_ns,
            "journal_down": state.journal_down,
            "ending": [state.is_ending, state.ending_until_ns, *state.ending_requests],
        },
    }


def accounts(scheduler: Scheduler) -> Tree:
    """What tenants, clients, classes and sessions have used up; who uses nothing does not show."""
    state = scheduler.state
    now_ns = state.now_ns
    return {
        "tenants": {
            name: _quota(quota, now_ns) for name, quota in state.quotas._tenants.items() if not quota.idle(now_ns)
        },
        "clients": {
            name: _bucket(bucket, now_ns) for name, bucket in state.quotas._clients.items() if not bucket.idle(now_ns)
        },
        "classes": {
            home.policy.set_id: {priority: _bucket(rate, now_ns) for priority, rate in home.class_rates.items()}
            for home in state.sets
        },
        "preemption": {home.policy.set_id: _bucket(home.preemption_rate, now_ns) for home in state.sets},
        "sessions": _sessions(state),
    }


def _task(record: TaskRecord) -> Tree:
    task, replica, heir, outcome = record.task, record.replica, record.hands_over_to, record.outcome
    return {
        "state": record.state,
        "tenant": task.tenant,
        "body": task.body_digest,
        "order": record.order,
        "key": record.key,
        "fresh": record.fresh,
        "tokens": [record.prompt_tokens, record.output_tokens, record.cost_tokens, record.asked_tokens],
        "kv": [record.kv_tokens, record.kv_bytes],
        "submissions": list(record.submissions),
        "cancels": list(record.cancels),
        "admitted_ns": record.admitted_ns,
        "deadline_ns": record.deadline_ns,
        "measure_until_ns": record.measure_until_ns,
        "attempt": record.attempt,
        "replica": "" if replica is None else replica.replica_id,
        "avoid": record.avoid,
        "started_ns": record.started_ns,
        "progressed_ns": record.progressed_ns,
        "progress": [record.tokens_out, record.tokens_digest],
        "charged_tokens": record.charged_tokens,
        "remaining_tokens": record.remaining_tokens,
        "slots_held": record.slots_held,
        "stop_reason": record.stop_reason,
        "stop_until_ns": record.stop_until_ns if record.state == "stopping" else 0,
        "preemptions": record.preemptions,
        "moves": record.moves,
        "losses": [record.losses, record.crashes, record.over_attempt, record.lost_attempt, record.is_failover],
        "numbers": [record.taken_attempt, record.skipped],
        "resume": [record.resume_tokens, record.resume_digest],
        "hands_over_to": "" if heir is None else heir.task.task_id,
        "outcome": None if outcome is None else outcome.state,
        "ended_ns": record.ended_ns,
        "transcript_bytes": record.transcript_bytes,
        "expired": record.expired,
    }


def _set(home: ReplicaSet) -> Tree:
    pin = home.pin
    return {
        "classes": {tier.policy.priority: _tier(tier) for tier in home.tiers},
        "appointments": {priority: _appointments(each) for priority, each in home.appointments.items()},
        "running": {priority: list(tasks) for priority, tasks in home.running.items()},
        "running_tokens": home.running_tokens,
        "slots": home.slots,
        "ready": list(home.ready),
        "aside": list(home.aside),
        "pools": list(home.policy.pool_ids),
        "closing": home.closing,
        "loading": dict(home.loading),
        "pin": None if pin is None else [pin.engine_version, pin.model_digest, pin.ctx, pin.sampler_profile_version],
        "reasons": dict(home.pool_reasons),
    }


def _tier(tier: Tier[TaskRecord]) -> Tree:
    return {
        "tag": tier.tag,
        "virtual": tier.virtual,
        "reserved": tier.reserved,
        "flows": {
            tenant: {
                "tag": flow.tag,
                "active": flow.active,
                "blocked": flow.blocked,
                "reserved": flow.reserved,
                "running": flow.running,
                "line": [record.task.task_id for record in flow.line.items()],
            }
            for tenant, flow in tier.flows.items()
        },
    }


def _appointments(appointments: Appointments) -> Tree:
    return {
        "at_ns": dict(appointments._at_ns),
        "held": list(appointments._held),
        "last_ns": appointments._last_ns,
    }


def _replica(replica: Replica) -> Tree:
    return {
        "state": replica.state,
        "pool": replica.pool_id,
        "sequence": replica.sequence,
        "since_ns": replica.since_ns,
        "slots": replica.slots,
        "busy": [[task_id, attempt] for task_id, attempt in replica.busy],
        "measuring": list(replica.measuring),
        "kv": [replica.kv_reserved, replica.kv_capacity, replica.pressure],
    }


def _pool(pool: Pool) -> Tree:
    reload = pool.reload
    return {
        "desired": pool.desired,
        "ordinal": pool.ordinal,
        "failures": [pool.failures, pool.breaker_open, pool.restarts],
        "drain": [pool.drain_until_ns, pool.drained],
        "scaling_ns": [pool.over_since_ns, pool.idle_since_ns, pool.scale_ns],
        "reload": None
        if reload is None
        else [reload.model_ref, reload.previous_ref, reload.canary_percent, reload.until_ns, reload.state],
        "has_incoming": pool.incoming is not None,
        "generations": [_generation(generation) for generation in generations.of_pool(pool)],
    }


def _generation(generation: Generation) -> Tree:
    return {
        "model_ref": generation.model_ref,
        "set": generation.home.policy.set_id,
        "until_ns": generation.until_ns,
        "members": {replica_id: _member(member) for replica_id, member in generation.members.items()},
    }


def _member(member: Member) -> Tree:
    return {
        "state": member.state,
        "incarnation": [member.incarnation, member.is_ordered],
        "at": [member.node_id, *member.devices],
        "slots": member.slots,
        "failures": [member.failures, member.place_failures, member.restarts],
        "times_ns": [member.launch_ns, member.ordered_ns, member.ready_ns, member.lease_ns],
        "suspended": member.suspended,
        "drain": [member.drain_until_ns, member.is_stopping, member.relaunch],
    }


def _quota(quota: TenantQuota, now_ns: int) -> Tree:
    return {
        "live": quota.live,
        "running": quota.running,
        "kv_bytes": quota.kv_bytes,
        "rate_ns": 0 if quota.rate is None else _bucket(quota.rate, now_ns),
        "tokens_ns": 0 if quota.tokens is None else _bucket(quota.tokens, now_ns),
    }


def _bucket(bucket: Gcra, now_ns: int) -> int:
    """Time until the bucket is full: what lies before now does not matter."""
    return max(0, bucket.full_ns - now_ns)


def _sessions(state: State) -> list[Tree]:
    return [
        {
            "key": list(session.key),
            "last_ns": session.last_ns,
            "live": session.live,
            "turns": session.turns,
            "replica": session.replica_id,
            "used": [session.used_tokens, session.used_ns, session.used_micros],
            "reserved_tokens": session.reserved_tokens,
            "closing": session.closing,
            "kv_at": state.residency.where(session.key),
        }
        for session in state.sessions._sessions.values()
        if state.sessions.ttl_left_ns(state.now_ns, session) > 0
    ]
