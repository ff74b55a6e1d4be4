"""Drain: a generation takes nothing new, finishes what it has, and is let go (ORCH-2101, ORCH-3031).

Where other replicas of the set are Ready, each replica of the generation is set aside at once and goes when it
is idle. Where none is, its replicas go on with all that the set admitted, what waits included, and go as soon as
nothing waits. At the deadline what runs is stopped, and what has nobody left to serve it ends.
"""

from contracts.errors import ErrorInfo
from contracts.pools import AnswerControl, DrainRequested, FaultKind, NotePool, PoolChange
from contracts.tasks import Outcome
from orchestrator.core import endings, failover, outages, submissions
from orchestrator.core.pools import generations, members
from orchestrator.core.pools.records import Generation, Member, Pool
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.refusals import conflict, invalid, unknown_pool
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State


def requested(state: State, event: DrainRequested) -> None:
    """Start to empty a pool, or say why not. Asked for twice, the earlier deadline wins."""
    pool = state.pools.by_id.get(event.pool_id)
    error = _refusal(state, pool, event)
    state.out.append(AnswerControl("", event.request, error))
    if error is not None or pool is None or pool.drained:
        return
    until_ns = state.now_ns + event.deadline_ms * NS_PER_MS
    if pool.drain_until_ns is not None:
        _shorten(state, pool, min(until_ns, pool.drain_until_ns))
        return
    pool.drain_until_ns = until_ns
    for generation in pool.outgoing:
        generation.until_ns = min(until_ns, generation.until_ns or until_ns)
    note(state, pool, "drain_started", f"to be over within {event.deadline_ms} ms")
    let_go(state, pool, pool.active, until_ns)


def _refusal(state: State, pool: Pool | None, event: DrainRequested) -> ErrorInfo | None:
    if pool is None:
        return unknown_pool(event.pool_id, list(state.pools.by_id))
    if event.deadline_ms < 0:
        return invalid(f"deadline_ms must be 0 or more, got {event.deadline_ms}")
    if pool.incoming is not None:
        return conflict(event.pool_id, "a reload is under way; wait for its end, promote it or roll it back first")
    return None


def _shorten(state: State, pool: Pool, until_ns: int) -> None:
    pool.drain_until_ns = until_ns
    for generation in generations.of_pool(pool):
        generation.until_ns = min(until_ns, generation.until_ns or until_ns)
        for member in list(generation.members.values()):
            if member.drain_until_ns is not None:
                members.drain(state, member, until_ns)
    state.pools.touched = True


def note(state: State, pool: Pool, change: PoolChange, reason: str, kind: FaultKind | None = None) -> None:
    """Have a decision about a pool logged and counted."""
    set_id = pool.active.home.policy.set_id
    state.out.append(NotePool(set_id, pool.policy.pool_id, change, reason, kind=kind))


def let_go(state: State, pool: Pool, generation: Generation, until_ns: int) -> None:
    """A generation does not serve its pool any more; what it has may go on until `until_ns`."""
    generation.until_ns = until_ns
    if generation is not pool.active:
        pool.outgoing.append(generation)
    generations.refresh(state)
    state.pools.touched = True


def next_due_ns(state: State, pool: Pool) -> int | None:
    """The next deadline of what is let go and was not stopped yet; None: there is none.

    What waits for tasks to end, or for replicas that are awaited, needs no time: it is looked at in every step.
    """
    found: int | None = None
    for generation in generations.of_pool(pool):
        until_ns = generation.until_ns
        if until_ns is not None and any(_is_due(state, member, until_ns) for member in generation.members.values()):
            found = until_ns if found is None else min(found, until_ns)
    return found


def due(state: State, pool: Pool) -> None:
    """Let go of what is idle, and of everything once its time is up."""
    for generation in list(pool.outgoing):
        _go_on(state, generation)
        if not generation.members:
            pool.outgoing.remove(generation)
            _over(state, generation.home)
    if pool.drain_until_ns is not None:
        _go_on(state, pool.active)
        if not pool.active.members and not pool.outgoing:
            pool.active.until_ns = pool.drain_until_ns = None
            pool.drained = True
            note(state, pool, "drained", "it has no replica any more")
            _over(state, pool.active.home)


def _go_on(state: State, generation: Generation) -> None:
    """Drain the replicas of a generation as far as they can be spared."""
    home, until_ns = generation.home, generation.until_ns
    assert until_ns is not None, "a generation is let go without a deadline"
    is_over = until_ns <= state.now_ns
    may_go = is_over or _others_serve(state, home)
    if not may_go and home.places_taken:
        return
    for member in list(generation.members.values()):
        replica = state.replicas.get(member.replica_id)
        if member.replica_id in state.awaited:
            # What it runs is not known before it is back; nothing more is to be given to it then.
            if may_go and member.drain_until_ns is None:
                members.drain(state, member, until_ns)
        elif replica is None or not replica.busy:
            members.retire(state, member, home.closing or "it is replaced and idle")
        elif may_go and _is_kept(member, until_ns):
            # Else a busy one stays in service: what it runs may have to be tried again.
            members.drain(state, member, until_ns)
    if is_over and not generations.has_hope(state, home):
        end_waiting(state, home)


def _is_due(state: State, member: Member, until_ns: int) -> bool:
    return member.replica_id not in state.awaited and _is_kept(member, until_ns)


def _is_kept(member: Member, until_ns: int) -> bool:
    """Whether a replica was not told yet to go by then; one that drains for a fault would come back."""
    if member.drain_until_ns is None or member.relaunch:
        return True
    return not member.is_stopping and member.drain_until_ns > until_ns


def _others_serve(state: State, home: ReplicaSet) -> bool:
    """Whether a set has a Ready replica that stays."""
    for replica_id in home.ready:
        member = state.pools.members.get(replica_id)
        if member is None or member.generation.until_ns is None:
            return True
    return False


def _over(state: State, home: ReplicaSet) -> None:
    """The last replica of a generation is gone: its set may be without anyone who serves it."""
    if not generations.has_hope(state, home):
        end_waiting(state, home)
    generations.prune(state)
    generations.refresh(state)
    state.pools.touched = True


def end_waiting(state: State, home: ReplicaSet) -> None:
    """End what waits in a set that nobody will serve any more; it may be sent again, to whoever serves then."""
    for record in list(state.tasks.values()):
        if record.home is not home:
            continue
        if failover.is_awaited(state, record):
            # It may run; its replica is let go when it is known.
            continue
        if record.state == "queued":
            home.leave(record)
            error = outages.moved_on(home, state.now_ns)
            endings.end_unserved(state, record, Outcome("failed", tokens_out=record.resume_tokens, error=error))
        elif record.state == "measuring":
            submissions.withdraw(state, record, outages.moved_on(home, state.now_ns))
