"""Reload: a pool comes up with another model beside the one it serves, then takes over (ORCH-3031, ORCH-3033).

New replicas are made in the replica set of the new model; the old ones are not touched. Once all new ones are Ready
the pool switches in one step, or, as a canary, serves a share of the sessions until it is promoted. What fails
before that is rolled back. A reload that is done is undone by a reload to what was served before.
"""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.pools import AnswerControl, FaultKind, PromoteRequested, ReloadRequested, RollbackRequested
from orchestrator.core.pools import drains, generations, members
from orchestrator.core.pools.records import Generation, Member, Pool, ReloadRecord
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.refusals import conflict, invalid, unknown_pool
from orchestrator.core.state import State

#: A new replica that failed to launch so often in a row fails the reload.
FAILURES_MAX: Final = 2


# ------------------------------------------------------------------------ requests


def requested(state: State, event: ReloadRequested) -> None:
    """Start a reload, or say why not."""
    pool = state.pools.by_id.get(event.pool_id)
    if pool is None:
        error: ErrorInfo | None = unknown_pool(event.pool_id, list(state.pools.by_id))
    else:
        error = _under_way(pool) or _refusal(state, pool, event.model_ref, event.canary_percent)
    state.out.append(AnswerControl("", event.request, error))
    if error is None and pool is not None:
        _begin(state, pool, event.model_ref, event.canary_percent)


def promote(state: State, event: PromoteRequested) -> None:
    """A canary takes over, or is told why not."""
    pool = state.pools.by_id.get(event.pool_id)
    error: ErrorInfo | None = None
    if pool is None:
        error = unknown_pool(event.pool_id, list(state.pools.by_id))
    elif generations.canary_percent(pool) is None:
        error = conflict(event.pool_id, "no canary is on; start one by a reload with canary_percent")
    elif pool.incoming is None or not _all_ready(pool.incoming):
        error = conflict(event.pool_id, "not all replicas of the canary are Ready; wait or roll it back")
    state.out.append(AnswerControl("", event.request, error))
    if error is None and pool is not None:
        _switch(state, pool)


def rollback(state: State, event: RollbackRequested) -> None:
    """Undo the last reload, or say why not: at once while it is under way, by another reload once it is done."""
    pool = state.pools.by_id.get(event.pool_id)
    error: ErrorInfo | None = None
    if pool is None:
        error = unknown_pool(event.pool_id, list(state.pools.by_id))
    elif pool.reload is None or pool.reload.state == "rolled_back":
        error = conflict(event.pool_id, "there is no reload to roll back")
    elif pool.incoming is None:
        error = _under_way(pool)
    state.out.append(AnswerControl("", event.request, error))
    if error is not None or pool is None or pool.reload is None:
        return
    if pool.incoming is not None:
        _roll_back(state, pool, "it was asked for")
    else:
        _begin(state, pool, pool.reload.previous_ref, None)


def _under_way(pool: Pool) -> ErrorInfo | None:
    pool_id, reload = pool.policy.pool_id, pool.reload
    if pool.incoming is not None and reload is not None:
        then = "promote it or roll it back" if reload.state == "canary" else "wait for its end or roll it back"
        return conflict(pool_id, f"a reload to {reload.model_ref} is under way; {then} first")
    if pool.drain_until_ns is not None:
        return conflict(pool_id, "it is being drained; reload it once it is drained")
    return None


def _refusal(state: State, pool: Pool, model_ref: str, canary_percent: int | None) -> ErrorInfo | None:
    known = known_refs(state, pool)
    engine = pool.active.home.policy.engine
    if model_ref not in known:
        return invalid(f"model {model_ref!r} is not known for {engine}; known: {', '.join(known)}", engine)
    if canary_percent is None:
        return None
    if not 1 <= canary_percent <= 99:
        return invalid(f"canary_percent must be 1 to 99, got {canary_percent}", engine)
    if pool.drained:
        return invalid("a drained pool serves nothing beside a canary; leave canary_percent out", engine)
    if model_ref == pool.active.model_ref:
        return invalid(f"a canary needs another model than {model_ref}, which the pool serves; name one", engine)
    return None


def known_refs(state: State, pool: Pool) -> list[str]:
    """What a pool may be reloaded to: the models configured for its engine and those of that engine's pools."""
    engine = pool.active.home.policy.engine
    refs = list(state.config.models.get(engine, ()))
    for other in state.pools.by_id.values():
        if other.active.home.policy.engine == engine:
            refs += [other.policy.model_ref, other.active.model_ref]
    return sorted(dict.fromkeys([ref for ref in refs if ref]))


# ------------------------------------------------------------------------ the way of a reload


def _begin(state: State, pool: Pool, model_ref: str, canary_percent: int | None) -> None:
    until_ns = state.now_ns + pool.policy.reload_timeout_ms * NS_PER_MS
    home = generations.set_for(state, pool, model_ref)
    incoming = pool.incoming = Generation(model_ref, home, state.now_ns)
    pool.reload = ReloadRecord(model_ref, pool.active.model_ref, canary_percent, until_ns)
    generations.refresh(state)
    share = "" if canary_percent is None else f" for {canary_percent} % of the sessions"
    drains.note(state, pool, "reload_started", f"from {pool.active.model_ref} to {model_ref}{share}")
    # Also a pool that is scaled to zero must prove that it can serve the model.
    for _ in range(max(1, pool.desired)):
        members.order_new(state, pool, incoming)
    state.pools.touched = True


def member_ready(state: State, member: Member) -> None:
    """A replica is Ready; with the last of the new ones the pool switches, or the canary begins."""
    pool = member.pool
    incoming, reload = pool.incoming, pool.reload
    if incoming is None or reload is None or member.generation is not incoming or reload.state != "loading":
        return
    # The pool may have grown since the reload began: what takes over must have its size.
    for _ in range(pool.desired - len(incoming.members)):
        members.order_new(state, pool, incoming)
    if not _all_ready(incoming):
        return
    if reload.canary_percent is None:
        _switch(state, pool)
        return
    reload.state = "canary"
    generations.refresh(state)
    state.pools.touched = True
    drains.note(state, pool, "canary_started", f"{reload.model_ref} for {reload.canary_percent} % of the sessions")


def _all_ready(generation: Generation) -> bool:
    return all(each.state == "ready" for each in generation.members.values())


def member_failed(state: State, member: Member) -> None:
    """A replica failed to launch once more; a new one that does so repeatedly fails the reload."""
    pool = member.pool
    fault = member.fault
    if pool.incoming is member.generation and member.failures >= FAILURES_MAX and fault is not None:
        why = f"{member.replica_id} failed {member.failures} times, the last by {fault.kind}: {fault.reason}"
        _roll_back(state, pool, why, fault.kind)


def _switch(state: State, pool: Pool) -> None:
    """The new replicas take over: from here on the pool's names lead to them."""
    incoming, reload, left = pool.incoming, pool.reload, pool.active
    assert incoming is not None, f"pool {pool.policy.pool_id} has nothing to switch to"
    assert reload is not None, f"pool {pool.policy.pool_id} switches without a reload"
    pool.active, pool.incoming = incoming, None
    pool.drained = False
    pool.desired = max(1, pool.desired)
    reload.state = "done"
    generations.carry_names(state, pool, left.home)
    drains.note(state, pool, "reload_done", f"{incoming.model_ref} is served, no more {left.model_ref}")
    drains.let_go(state, pool, left, state.now_ns + pool.policy.drain_ms * NS_PER_MS)
    members.reconcile(state, pool)


def _roll_back(state: State, pool: Pool, why: str, kind: FaultKind | None = None) -> None:
    """The new replicas go; what the pool served it goes on serving."""
    incoming, reload = pool.incoming, pool.reload
    assert incoming is not None, f"pool {pool.policy.pool_id} has nothing to roll back"
    assert reload is not None, f"pool {pool.policy.pool_id} rolls back without a reload"
    pool.incoming = None
    # Failures of what is rolled back must not slow down what is left.
    pool.failures, pool.breaker_open = 0, False
    reload.state, reload.why = "rolled_back", why
    drains.note(state, pool, "rolled_back", f"{reload.model_ref}: {why}", kind)
    drains.let_go(state, pool, incoming, state.now_ns + pool.policy.drain_ms * NS_PER_MS)


def next_due_ns(pool: Pool) -> int | None:
    """When `due` has something to do for the pool; None: nothing."""
    return pool.reload.until_ns if pool.reload is not None and pool.reload.state == "loading" else None


def due(state: State, pool: Pool) -> None:
    """Roll a reload back whose time is up."""
    until_ns = next_due_ns(pool)
    incoming = pool.incoming
    if until_ns is None or incoming is None or state.now_ns < until_ns:
        return
    ready = len([member for member in incoming.members.values() if member.state == "ready"])
    why = f"{ready} of {len(incoming.members)} replicas were Ready after {pool.policy.reload_timeout_ms} ms"
    kind: FaultKind | None = None
    for member in incoming.members.values():
        if member.unplaced:
            why += f"; {member.replica_id} has no place: {member.unplaced}; drain the pool first, or lower its replicas"
            break
        if member.fault is not None:
            why += f"; {member.replica_id}: {member.fault.kind}: {member.fault.reason}"
            kind = member.fault.kind
            break
    _roll_back(state, pool, why, kind)
