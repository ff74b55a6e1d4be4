"""What can be read of the scheduler's state; reading changes nothing."""

import msgspec
from msgspec import Struct

from contracts.api import TaskStatus
from contracts.tasks import Budgets, ReplicaInfo
from orchestrator.core import outlook
from orchestrator.core.lifecycle import is_over
from orchestrator.core.pools import health
from orchestrator.core.records import NS_PER_MS, TaskRecord, ceil_ms, round_ms
from orchestrator.core.state import State


class StartedView(Struct, frozen=True):
    """What a stream tells when its task runs (ORCH-3029). Position and prediction are those told at admission.

    `failover`: the attempt makes the tokens of one again that died, on an engine that never saw the task (ORCH-3009).
    """

    task_id: str
    attempt: int
    replica: ReplicaInfo
    queue_position: int
    predicted_start_ms: int
    queue_time_ns: int
    queue_depth: int
    time_budget_remaining_ms: int
    on_time_probability: float
    kv_warmth: bool
    preempted: bool
    budgets: Budgets | None
    determinism: str = "strict"
    failover: bool = False


class SessionView(Struct, frozen=True):
    """A session: how long it lives on without a task, what it did, and what it has left (ORCH-3021, ORCH-3099)."""

    ttl_ms_remaining: int
    turns: int
    kv_bytes: int
    kv_warmth: bool
    budgets: Budgets | None


def find(state: State, task_id: str, tenant: str) -> TaskRecord | None:
    """The record of a task, if it is this tenant's."""
    record = state.tasks.get(task_id)
    return record if record is not None and record.task.tenant == tenant else None


def status(state: State, now_ns: int, record: TaskRecord) -> TaskStatus:
    """State, position and outcome; a position only while it waits, a replica once it started."""
    now_ns = max(now_ns, state.now_ns)
    task, replica, outcome = record.task, record.served_by, record.outcome
    seen = outlook.of_waiting(record.home, record, now_ns) if record.state == "queued" else None
    so_far = TaskStatus(
        task_id=task.task_id,
        state=record.state,
        engine=task.engine,
        model_ref=task.model_ref,
        priority=task.priority,
        queue_position=seen.position if seen else None,
        predicted_start_ms=seen.start_ms if seen else None,
        replica_id=replica.replica_id if replica else None,
        pool_id=replica.pool_id if replica else None,
        engine_version=replica.engine_version if replica else None,
        model_digest=replica.model_digest if replica else None,
        accelerator=replica.accelerator if replica else None,
        attempt=record.attempt,
        tokens_in=0,
        tokens_out=record.made_tokens,
        decode_ms=0,
        queue_time_ms=round_ms(record.queue_time_ns) if record.queue_time_ns is not None else None,
        labels=task.labels,
        why=why(record),
        on_time_probability=None if is_over(record) else on_time(state, now_ns, record),
        preempted=record.preemptions > 0,
        resumable=(record.preemptions + record.moves + record.lost_attempt > 0) and not is_over(record),
    )
    if outcome is None:
        return so_far
    return msgspec.structs.replace(
        so_far,
        tokens_in=outcome.tokens_in,
        tokens_out=outcome.tokens_out if task.decodes else 0,
        decode_ms=outcome.decode_ms if task.decodes else 0,
        first_token_ms=outcome.first_token_ms,
        finish_reason=outcome.finish_reason,
        error=outcome.error,
    )


def why(record: TaskRecord) -> str:
    """In one line, why the task is where it is."""
    if record.state == "measuring":
        return "a replica counts the tokens of its prompt, to see whether it fits"
    if record.outcome is not None:
        error = record.outcome.error
        return error.message if error is not None else f"{record.state}: {record.outcome.finish_reason}"
    if record.state == "stopping":
        return f"being stopped: {record.stop_reason}"
    if record.state == "running" and record.start is not None:
        return record.start.why
    flow = record.flow
    if flow.blocked:
        return f"tenant {flow.tenant} runs as much as its quota allows; waits until one of its tasks ends"
    paused = "preempted by a task of a higher class; " if record.preemptions else ""
    if record.moves:
        paused += "moved off a drained replica; "
    if record.lost_attempt and record.lost_attempt == record.attempt:
        paused += "its last attempt was lost; "
    if record.crashes:
        paused += f"kept apart from other such tasks, since {record.crashes} of its attempts ended in a crash; "
    if record.home.closing:
        paused += f"{record.home.closing}, what was admitted before is still served; "
    policy = record.home.policy
    return (
        f"{paused}waits by {policy.ordering} in class {flow.priority} of tenant {flow.tenant},"
        f" {len(flow.line)} in line, {record.home.waiting} in all, {policy.fairness} between them"
    )


def on_time(state: State, now_ns: int, record: TaskRecord) -> float | None:
    """Chance of an admitted task to be on time; None before admission and after the end."""
    if record.admission is None or is_over(record):
        return None
    return outlook.on_time_now(record.home, record, max(now_ns, state.now_ns))


def started(state: State, now_ns: int, record: TaskRecord) -> StartedView | None:
    """None for a task that never started."""
    told, replica, waited_ns = record.admission, record.served_by, record.queue_time_ns
    if told is None or replica is None or waited_ns is None:
        return None
    chance = on_time(state, now_ns, record)
    return StartedView(
        task_id=record.task.task_id,
        attempt=record.attempt,
        replica=replica,
        queue_position=told.queue_position,
        predicted_start_ms=told.predicted_start_ms,
        queue_time_ns=waited_ns,
        queue_depth=record.home.tier_of[record.task.priority].waiting,
        time_budget_remaining_ms=max(0, record.deadline_ns - max(now_ns, state.now_ns)) // NS_PER_MS,
        on_time_probability=1.0 if chance is None else chance,
        kv_warmth=record.start is not None and record.start.warm and not record.is_failover,
        preempted=record.preemptions > 0,
        budgets=state.sessions.budgets(record.session),
        determinism=record.determinism,
        failover=record.is_failover,
    )


def session(state: State, now_ns: int, tenant: str, session_id: str) -> SessionView | None:
    """None if there is no such session."""
    now_ns = max(now_ns, state.now_ns)
    found = state.sessions.find(now_ns, tenant, session_id)
    if found is None or found.closing:
        return None
    replica_id = state.residency.where(found.key)
    replica = state.replicas.get(replica_id)
    token_bytes = replica.info.kv_token_bytes if replica is not None and replica.info is not None else 0
    return SessionView(
        ttl_ms_remaining=ceil_ms(state.sessions.ttl_left_ns(now_ns, found)),
        turns=found.turns,
        kv_bytes=state.residency.tokens(replica_id, found.key) * token_bytes,
        kv_warmth=bool(replica_id),
        budgets=state.sessions.budgets(found),
    )


def shares(state: State) -> list[tuple[str, str, str, float]]:
    """Per flow, what share of its set's tokens it was given of late."""
    return [
        (home.policy.set_id, tier.policy.priority, flow.tenant, home.fairness.share(flow))
        for home in state.sets
        for tier in home.tiers
        for flow in tier.flows.values()
    ]


def breakers(state: State, now_ns: int) -> list[tuple[str, str, str]]:
    """Where every breaker stands."""
    now_ns = max(now_ns, state.now_ns)
    return [line for home in state.sets for line in home.breakers.states(now_ns)]


def readiness(state: State) -> dict[str, str]:
    """Per pool: "ready", "loading", "draining", "drained" or "unavailable: <why>" (ORCH-3010, OC-POOL-3003)."""
    pools: dict[str, str] = {}
    for pool_id, home in state.set_of_pool.items():
        pools[pool_id] = f"unavailable: {home.pool_reasons.get(pool_id, 'no replica has come up yet')}"
    for replica in state.replicas.values():
        if replica.state == "ready" or (replica.state == "loading" and pools[replica.pool_id] != "ready"):
            pools[replica.pool_id] = replica.state
    for pool_id, pool in state.pools.by_id.items():
        pools[pool_id] = health.readiness(pool, state.pools)
    return pools
