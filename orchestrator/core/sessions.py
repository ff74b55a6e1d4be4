"""Sessions: short-lived, bounded in number, each with its budgets and its last good replica.

ORCH-3021 bounds their lives, ORCH-3023 their KV to the replica that has it, ORCH-3099 and OC-CORE-1023
what they may use up.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from contracts.journal import KeptSession
from contracts.policies import BudgetPolicy, SessionPolicy
from contracts.tasks import Budgets
from orchestrator.core.changes import Changes
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.residency import Residency, SessionKey

#: How many expired sessions one sweep drops: more than one submission can add.
EXPIRED_PER_SWEEP: Final = 4


class Session:
    """One session of a tenant.

    `live` counts its waiting and running tasks, `reserved_tokens` what they may still use. `turns` were served
    since its KV was last given up, the last one by `replica_id` ("": none). `closing`: it ends with its last task.
    """

    __slots__ = (
        "closing",
        "key",
        "last_ns",
        "live",
        "replica_id",
        "reserved_tokens",
        "turns",
        "used_micros",
        "used_ns",
        "used_tokens",
    )

    def __init__(self, key: SessionKey, now_ns: int) -> None:
        self.key = key
        self.last_ns = now_ns
        self.live = 0
        self.turns = 0
        self.replica_id = ""
        self.used_tokens = 0
        self.used_ns = 0
        self.used_micros = 0
        self.reserved_tokens = 0
        self.closing = False


class Sessions:
    """All sessions. One without live tasks ends after its time to live, or when others need its place.

    Their number stays within `sessions_max`, except that sessions with live tasks are never dropped.
    """

    __slots__ = ("_bounded", "_changes", "_idle", "_policy", "_residency", "_sessions", "_sweep_ns", "ttl_ns")

    def __init__(self, policy: SessionPolicy, residency: Residency, changes: Changes) -> None:
        _check("ttl_ms", policy.ttl_ms, 1)
        _check("turns_max", policy.turns_max, 1)
        _check("sessions_max", policy.sessions_max, 1)
        _check("budget tokens", policy.budget.tokens, 0)
        _check("budget time_ms", policy.budget.time_ms, 0)
        _check("budget cost_micros", policy.budget.cost_micros, 0)
        self._policy = policy
        self._residency = residency
        self._changes = changes
        self.ttl_ns = policy.ttl_ms * NS_PER_MS
        budget = policy.budget
        self._bounded = not (budget.tokens is None and budget.time_ms is None and budget.cost_micros is None)
        #: No session expires before this.
        self._sweep_ns = 0
        self._sessions: dict[SessionKey, Session] = {}
        # those without live tasks, by last activity
        self._idle: OrderedDict[SessionKey, Session] = OrderedDict()

    # -- life

    def open(self, now_ns: int, tenant: str, session_id: str) -> Session:
        """The session, made or refreshed; one whose time was over starts anew. `reserve` is to follow."""
        key = (tenant, session_id)
        session = self._sessions.get(key)
        if session is not None and self.ttl_left_ns(now_ns, session) <= 0:
            self._drop(session)
            session = None
        if session is None:
            session = self._sessions[key] = self._idle[key] = Session(key, now_ns)
            self._make_room()
        else:
            session.closing = False
            self._refresh(now_ns, session)
        return session

    def find(self, now_ns: int, tenant: str, session_id: str) -> Session | None:
        """The session as it is; None: there is none, or its time is over.

        One that is `closing` is found too: what it used up counts for a task that would open it again.
        """
        session = self._sessions.get((tenant, session_id))
        if session is None or self.ttl_left_ns(now_ns, session) <= 0:
            return None
        return session

    def known(self, key: SessionKey) -> Session | None:
        """The session as it is kept, its time over or not; None: there is none."""
        return self._sessions.get(key)

    def ttl_left_ns(self, now_ns: int, session: Session) -> int:
        """How long the session would live on without a task; it does not age while one is live."""
        return self.ttl_ns if session.live else session.last_ns + self.ttl_ns - now_ns

    def close(self, tenant: str, session_id: str) -> bool:
        """End the session; False: there is none, or it is closing already.

        Its KV is forgotten at once. What it used up is forgotten with its last live task, so that closing
        resets no budget under tasks that run.
        """
        session = self._sessions.get((tenant, session_id))
        if session is None or session.closing:
            return False
        if session.live:
            session.closing = True
            self._changes.session(session.key)
            self._give_up_kv(session)
        else:
            self._drop(session)
        return True

    def sweep(self, now_ns: int) -> None:
        """Drop some of the expired sessions; constant time, to be called at every step."""
        if now_ns < self._sweep_ns:
            return
        for _ in range(EXPIRED_PER_SWEEP):
            if not self._idle:
                self._sweep_ns = now_ns + self.ttl_ns
                return
            oldest = next(iter(self._idle.values()))
            if self.ttl_left_ns(now_ns, oldest) > 0:
                self._sweep_ns = oldest.last_ns + self.ttl_ns
                return
            self._drop(oldest)

    def __len__(self) -> int:
        return len(self._sessions)

    # -- budgets

    def refusal(self, session: Session | None, asked_tokens: int) -> str | None:
        """Why a task that may use `asked_tokens` (prompt + `max_tokens`) is over a budget; None: it fits.

        `session` is None for one that would be new.
        """
        if not self._bounded:
            return None
        budget = self._policy.budget
        held = used = used_ns = used_micros = 0
        if session is not None:
            held, used = session.reserved_tokens, session.used_tokens
            used_ns, used_micros = session.used_ns, session.used_micros
        if budget.tokens is not None and budget.tokens - used - held < asked_tokens:
            left = max(0, budget.tokens - used - held)
            return (
                f"the session has {left} of {budget.tokens} tokens left ({held} are held by its unfinished"
                f" tasks) and this task may use {asked_tokens}: ask for fewer, or use another session"
            )
        if budget.time_ms is not None and (budget.time_ms - 1) * NS_PER_MS < used_ns:
            return f"the session has used up its {budget.time_ms} ms of slot time: use another session"
        if budget.cost_micros is not None and budget.cost_micros <= used_micros:
            return f"the session has used up its budget of {budget.cost_micros} cost micros: use another session"
        return None

    def reserve(self, session: Session, asked_tokens: int) -> None:
        """A task that `refusal` lets pass is live and may use `asked_tokens`; answered by one `settle`."""
        session.live += 1
        session.reserved_tokens += asked_tokens
        self._idle.pop(session.key, None)

    def settle(
        self, now_ns: int, session: Session, asked_tokens: int, used_tokens: int, slot_ns: int, cost_micros: int
    ) -> None:
        """A task that reserved `asked_tokens` is over; the rest is what it used."""
        session.live -= 1
        session.reserved_tokens -= asked_tokens
        session.used_tokens += used_tokens
        session.used_ns += slot_ns
        session.used_micros += cost_micros
        session.last_ns = now_ns
        if session.live:
            return
        if session.closing:
            self._drop(session)
            return
        self._idle[session.key] = session
        self._make_room()

    def budgets(self, session: Session | None) -> Budgets | None:
        """What is left, less what is reserved; None: nothing is bounded."""
        if not self._bounded:
            return None
        budget = self._policy.budget
        if session is None:
            return Budgets(budget.tokens, budget.time_ms, budget.cost_micros)
        return _left(budget, session)

    # -- turns and their KV

    def turn_served(self, now_ns: int, session: Session, replica_id: str, kv_tokens: int) -> None:
        """An attempt of the session finished on the replica, which now holds `kv_tokens` of its KV.

        The turn that reaches `turns_max` gives the KV up; the one after it starts cold, wherever there is room.
        """
        if session.closing or self._sessions.get(session.key) is not session:
            return
        self._refresh(now_ns, session)
        session.turns += 1
        if session.turns >= self._policy.turns_max:
            self._give_up_kv(session)
        else:
            session.replica_id = replica_id
            self._residency.touch(replica_id, session.key, kv_tokens)

    # -- recovery

    def restore(self, now_ns: int, kept: KeptSession, *, is_needed: bool) -> None:
        """Take up a session that an earlier scheduler kept, the one used longest ago first.

        One whose time is over is left out, unless `is_needed` by a task of it that lives: then `resume` follows.
        """
        if not is_needed and (kept.closing or kept.until_ns <= now_ns or kept.last_ns + self.ttl_ns <= now_ns):
            return
        session = Session((kept.tenant, kept.session_id), min(now_ns, kept.last_ns))
        session.turns = kept.turns
        session.used_tokens = kept.used_tokens
        session.used_ns = kept.used_ns
        session.used_micros = kept.used_micros
        session.closing = kept.closing
        self._sessions[session.key] = session
        if not is_needed:
            self._idle[session.key] = session
            self._make_room()

    def resume(self, now_ns: int, tenant: str, session_id: str, asked_tokens: int) -> Session:
        """A task that was admitted before lives in the session, which is as it was when it was kept."""
        key = (tenant, session_id)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session(key, now_ns)
        self.reserve(session, asked_tokens)
        return session

    # -- parts

    def _refresh(self, now_ns: int, session: Session) -> None:
        session.last_ns = now_ns
        if not session.live:
            self._idle.move_to_end(session.key)

    def _give_up_kv(self, session: Session) -> None:
        self._residency.forget(session.key)
        session.turns = 0
        session.replica_id = ""

    def _drop(self, session: Session) -> None:
        self._residency.forget(session.key)
        self._idle.pop(session.key, None)
        del self._sessions[session.key]
        self._changes.session(session.key)

    def _make_room(self) -> None:
        """The oldest go first; the last one is what a task is just starting or ending in."""
        while len(self._sessions) > self._policy.sessions_max and len(self._idle) > 1:
            self._drop(next(iter(self._idle.values())))


def _left(budget: BudgetPolicy, session: Session) -> Budgets:
    return Budgets(
        None if budget.tokens is None else max(0, budget.tokens - session.used_tokens - session.reserved_tokens),
        None if budget.time_ms is None else max(0, budget.time_ms - -(-session.used_ns // NS_PER_MS)),
        None if budget.cost_micros is None else max(0, budget.cost_micros - session.used_micros),
    )


def _check(field: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"sessions: {field} must be at least {least}, got {value}")
