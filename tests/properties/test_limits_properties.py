"""Rates, residency, sessions and breakers against plain models, over random histories."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from contracts.policies import BreakerPolicy, BudgetPolicy, RatePolicy, SessionPolicy, TenantPolicy
from orchestrator.core.breakers import Breaker
from orchestrator.core.changes import Changes
from orchestrator.core.quotas import Gcra, TenantQuota
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.residency import Residency, SessionKey
from orchestrator.core.sessions import EXPIRED_PER_SWEEP, Session, Sessions

#: The machine that runs this may be busy: only the number of examples bounds it.
RUNS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HISTORIES = settings(RUNS, max_examples=60, stateful_step_count=40)

#: (nanoseconds since the one before, units)
STEPS = st.lists(st.tuples(st.integers(0, 60) | st.just(10**15), st.integers(1, 12)), max_size=30)
INTERVALS = st.integers(1, 40)
BURSTS = st.integers(1, 8)


@pytest.mark.req("ORCH-3006", "ORCH-3077")
@RUNS
@given(INTERVALS, BURSTS, STEPS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_no_window_lets_more_through_than_burst_and_rate(
    interval_ns: int, burst: int, steps: list[tuple[int, int]], returns: list[bool]
) -> None:
    """What is given back counts against what was taken, where it is given back."""
    bucket = Gcra(interval_ns, burst)
    now_ns = 0
    taken: list[tuple[int, int]] = []
    for (gap_ns, units), back in zip(steps, returns, strict=False):
        now_ns += gap_ns
        if back:
            units = min(units, sum(net for _, net in taken))
            bucket.give_back(now_ns, units)
            taken.append((now_ns, -units))
        elif bucket.wait_ns(now_ns, units) == 0:
            bucket.take(now_ns, units)
            taken.append((now_ns, units))
    for last, (end_ns, last_units) in enumerate(taken):
        total = 0
        for start_ns, units in reversed(taken[: last + 1]):
            total += units
            if last_units > 0:
                assert (total - max(burst, last_units)) * interval_ns <= end_ns - start_ns


@pytest.mark.req("ORCH-3006", "ORCH-3077")
@RUNS
@given(INTERVALS, BURSTS, STEPS, st.integers(1, 12))
def test_a_wait_is_that_of_a_token_bucket_to_the_nanosecond(
    interval_ns: int, burst: int, steps: list[tuple[int, int]], asked: int
) -> None:
    """The model holds its credit in nanoseconds: `interval_ns` of it buy one unit."""
    bucket = Gcra(interval_ns, burst)
    credit_ns = full_ns = burst * interval_ns
    now_ns = 0
    for gap_ns, units in steps:
        now_ns += gap_ns
        credit_ns = min(full_ns, credit_ns + gap_ns)
        model_ns = max(0, min(units, burst) * interval_ns - credit_ns)
        assert bucket.wait_ns(now_ns, units) == model_ns
        if not model_ns:
            bucket.take(now_ns, units)
            credit_ns -= units * interval_ns
    wait_ns = bucket.wait_ns(now_ns, asked)
    assert bucket.wait_ns(now_ns + wait_ns, asked) == 0
    assert wait_ns == 0 or bucket.wait_ns(now_ns + wait_ns - 1, asked) == 1
    assert bucket.idle(now_ns) == (credit_ns == full_ns)


def tenant_state(quota: TenantQuota) -> tuple[object, ...]:
    assert quota.rate is not None
    assert quota.tokens is not None
    return quota.live, quota.running, quota.kv_bytes, quota.rate.full_ns, quota.tokens.full_ns


@pytest.mark.req("ORCH-3036", "ORCH-3077")
@RUNS
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 200), st.integers(0, 200)), max_size=30))
def test_refusing_changes_nothing_and_the_told_wait_is_enough(steps: list[tuple[int, int, int]]) -> None:
    quota = TenantQuota("acme", TenantPolicy("acme", 1, 3, RatePolicy(5, 2), 600, 1))
    now_ns = 0
    admitted: list[int] = []
    for gap_ns, tokens, used in steps:
        now_ns += gap_ns
        before = tenant_state(quota)
        wait_ns, bound = quota.wait_ns(now_ns, tokens)
        quota.may_start(tokens)
        quota.fits(tokens)
        quota.idle(now_ns)
        assert tenant_state(quota) == before
        assert (wait_ns > 0) == bool(bound)
        assert quota.wait_ns(now_ns + wait_ns, tokens) == (0, "")
        assert wait_ns == 0 or quota.wait_ns(now_ns + wait_ns - 1, tokens)[0] == 1
        if wait_ns == 0:
            quota.admit(now_ns, tokens)
            admitted.append(tokens)
        elif admitted:
            quota.settle(now_ns, admitted.pop(), used)
        assert quota.live == len(admitted)


class ResidencyMachine(RuleBasedStateMachine):
    """The model is one list of (replica, key, tokens), least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency()
        self.capacity: dict[str, int] = {}
        self.held: list[tuple[str, SessionKey, int]] = []

    replicas = st.sampled_from(["r0", "r1", "r2"])
    keys = st.sampled_from([("t", name) for name in "abcdef"])

    @rule(replica_id=replicas, tokens=st.integers(0, 100))
    def add(self, replica_id: str, tokens: int) -> None:
        self.residency.add_replica(replica_id, tokens)
        self.capacity[replica_id] = tokens
        self.held = [entry for entry in self.held if entry[0] != replica_id]

    @rule(replica_id=replicas)
    def remove(self, replica_id: str) -> None:
        self.residency.remove_replica(replica_id)
        self.capacity.pop(replica_id, None)
        self.held = [entry for entry in self.held if entry[0] != replica_id]

    @rule(replica_id=replicas, key=keys, tokens=st.integers(0, 60))
    def touch(self, replica_id: str, key: SessionKey, tokens: int) -> None:
        self.residency.touch(replica_id, key, tokens)
        self.held = [entry for entry in self.held if entry[1] != key]
        if 0 < tokens <= self.capacity.get(replica_id, 0):
            self.held.append((replica_id, key, tokens))
            while self.used(replica_id) > self.capacity[replica_id]:
                self.held.remove(next(entry for entry in self.held if entry[0] == replica_id))

    @rule(key=keys)
    def forget(self, key: SessionKey) -> None:
        self.residency.forget(key)
        self.held = [entry for entry in self.held if entry[1] != key]

    def used(self, replica_id: str) -> int:
        return sum(tokens for where, _, tokens in self.held if where == replica_id)

    @invariant()
    def agrees(self) -> None:
        assert len(self.residency) == len(self.held)
        for replica_id, key, tokens in self.held:
            assert self.residency.where(key) == replica_id
            assert self.residency.tokens(replica_id, key) == tokens
        for replica_id, capacity in self.capacity.items():
            permille = self.residency.used_permille(replica_id)
            assert permille <= 1000
            assert permille == (self.used(replica_id) * 1000 // capacity if capacity else 0)


class _Model:
    """One session as the sessions' machine remembers it."""

    def __init__(self) -> None:
        self.last_ns = 0
        self.activity = 0
        self.used = 0
        self.closing = False
        self.live: list[int] = []


BUDGET_TOKENS = 300
SESSIONS_MAX = 3
TTL_NS = 50 * NS_PER_MS


class SessionsMachine(RuleBasedStateMachine):
    """Tasks come, are refused or reserve, end or not, while sessions expire, are closed and make room."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency()
        self.residency.add_replica("r0", 200)
        self.sessions = Sessions(
            SessionPolicy(50, 3, SESSIONS_MAX, BudgetPolicy(BUDGET_TOKENS, 100, 1000)), self.residency, Changes()
        )
        self.now_ns = 0
        self.activities = 0
        self.model: dict[str, _Model] = {}
        self.tasks: list[tuple[str, Session, int]] = []

    names = st.sampled_from(list("abcdef"))

    @rule(gap_ms=st.integers(0, 60))
    def time_passes(self, gap_ms: int) -> None:
        self.now_ns += gap_ms * NS_PER_MS

    @rule(name=names, asked=st.integers(1, 150))
    def submit(self, name: str, asked: int) -> None:
        self.expire(name)
        kept = len(self.sessions)
        found = self.sessions.find(self.now_ns, "t", name)
        left = self.sessions.budgets(found)
        refusal = self.sessions.refusal(found, asked)
        assert len(self.sessions) == kept
        known = self.model.get(name)
        assert (found is None) == (known is None)
        assert left is not None
        assert left.tokens == BUDGET_TOKENS - (0 if known is None else known.used + sum(known.live))
        if left.tokens < asked:
            assert refusal is not None
        elif left.time_ms and left.cost_micros:
            assert refusal is None
        if refusal is None:
            self.reserve(name, asked)

    def reserve(self, name: str, asked: int) -> None:
        session = self.sessions.open(self.now_ns, "t", name)
        model = self.model.setdefault(name, _Model())
        model.closing = False
        self.active(model)
        self.make_room()
        self.sessions.reserve(session, asked)
        model.live.append(asked)
        self.tasks.append((name, session, asked))

    @rule(data=st.data(), used=st.integers(0, 150), kv_tokens=st.integers(0, 250), served=st.booleans())
    def finish(self, data: st.DataObject, used: int, kv_tokens: int, served: bool) -> None:
        if not self.tasks:
            return
        name, session, asked = self.tasks.pop(data.draw(st.integers(0, len(self.tasks) - 1)))
        used = min(used, asked)
        if served:
            self.sessions.turn_served(self.now_ns, session, "r0", kv_tokens)
        self.sessions.settle(self.now_ns, session, asked, used, used * 100_000, used)
        model = self.model[name]
        model.live.remove(asked)
        model.used += used
        self.active(model)
        if model.closing and not model.live:
            del self.model[name]
        self.make_room()

    @rule(name=names)
    def close(self, name: str) -> None:
        self.expire(name)
        model = self.model.get(name)
        if self.sessions.find(self.now_ns, "t", name) is None:
            assert model is None
            return
        assert model is not None
        assert self.sessions.close("t", name) is not model.closing
        assert self.residency.where(("t", name)) == ""
        model.closing = True
        if not model.live:
            del self.model[name]

    @rule()
    def sweep(self) -> None:
        """Expired sessions are dropped in the order of their last activity, a few at most."""
        kept = len(self.sessions)
        self.sessions.sweep(self.now_ns)
        assert kept - EXPIRED_PER_SWEEP <= len(self.sessions) <= kept
        old = sorted((m.activity, name) for name, m in self.model.items() if self.is_over(m))
        for _, name in old[:EXPIRED_PER_SWEEP]:
            del self.model[name]

    def is_over(self, model: _Model) -> bool:
        return not model.live and self.now_ns - model.last_ns >= TTL_NS

    def expire(self, name: str) -> None:
        """The one session that is looked at; the others' time is noticed later."""
        model = self.model.get(name)
        if model is not None and self.is_over(model):
            assert self.sessions.find(self.now_ns, "t", name) is None
            self.sessions.close("t", name)
            del self.model[name]

    def active(self, model: _Model) -> None:
        self.activities += 1
        model.activity = self.activities
        model.last_ns = self.now_ns

    def make_room(self) -> None:
        idle = sorted((m.activity, name) for name, m in self.model.items() if not m.live)
        while len(self.model) > SESSIONS_MAX and len(idle) > 1:
            del self.model[idle.pop(0)[1]]

    @invariant()
    def is_bounded(self) -> None:
        live = sum(1 for model in self.model.values() if model.live)
        assert len(self.sessions) == len(self.model)
        assert len(self.sessions) <= max(SESSIONS_MAX, live + 1)
        assert len(self.residency) <= len(self.sessions)
        assert self.residency.used_permille("r0") <= 1000
        for name, session, _ in self.tasks:
            model = self.model[name]
            assert session.live == len(model.live)
            assert session.reserved_tokens == sum(model.live)
            assert session.used_tokens + session.reserved_tokens <= BUDGET_TOKENS
            left = self.sessions.budgets(session)
            assert left is not None
            assert min(left.tokens or 0, left.time_ms or 0, left.cost_micros or 0) >= 0


BREAKER = BreakerPolicy(violations_percent=40, window_ms=20, samples_min=3, open_ms=30, probes=2)


class _BreakerModel:
    """Keeps every sample, and counts anew each time."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, bool]] = []
        self.open_until_ms: int | None = None
        self.out = self.good = self.last_probe_ms = 0

    def state(self, now_ms: int) -> str:
        if self.open_until_ms is None:
            return "closed"
        return "open" if now_ms < self.open_until_ms else "half-open"

    def allows(self, now_ms: int) -> bool:
        if self.state(now_ms) != "half-open":
            return self.state(now_ms) == "closed"
        return self.out + self.good < BREAKER.probes or now_ms >= self.last_probe_ms + BREAKER.open_ms

    def admitted(self, now_ms: int) -> None:
        if self.state(now_ms) == "half-open" and self.allows(now_ms):
            lost = self.out + self.good == BREAKER.probes
            self.out = 1 if lost else self.out + 1
            self.last_probe_ms = now_ms

    def observe(self, now_ms: int, violated: bool) -> None:
        if self.open_until_ms is None:
            self.samples.append((now_ms, violated))
            half_ms = BREAKER.window_ms // 2
            counted = [bad for at_ms, bad in self.samples if at_ms // half_ms >= now_ms // half_ms - 1]
            enough = len(counted) >= BREAKER.samples_min
            if enough and sum(counted) / len(counted) >= BREAKER.violations_percent / 100:
                self.trip(now_ms)
        elif self.out and violated:
            self.trip(now_ms)
        elif self.out:
            self.out -= 1
            self.good += 1
            if self.good == BREAKER.probes:
                self.open_until_ms = None

    def trip(self, now_ms: int) -> None:
        self.open_until_ms = now_ms + BREAKER.open_ms
        self.samples = []
        self.out = self.good = 0


@pytest.mark.req("ORCH-3040")
@RUNS
@given(st.lists(st.tuples(st.integers(0, 12) | st.just(40), st.sampled_from(["admit", "good", "bad"])), max_size=60))
def test_a_breaker_does_what_its_model_does(steps: list[tuple[int, str]]) -> None:
    breaker, model = Breaker(BREAKER), _BreakerModel()
    now_ms = 0
    for gap_ms, what in steps:
        now_ms += gap_ms
        now_ns = now_ms * NS_PER_MS
        if what == "admit":
            breaker.admitted(now_ns)
            model.admitted(now_ms)
        else:
            breaker.observe(now_ns, what == "bad")
            model.observe(now_ms, what == "bad")
        assert breaker.state(now_ns) == model.state(now_ms)
        assert breaker.allows(now_ns) == model.allows(now_ms)
        wait_ns = breaker.wait_ns(now_ns)
        assert wait_ns <= BREAKER.open_ms * NS_PER_MS
        assert breaker.allows(now_ns + wait_ns)
        assert wait_ns == 0 or not breaker.allows(now_ns + wait_ns - 1)


@pytest.mark.req("ORCH-3022", "ORCH-3023")
class TestResidency(ResidencyMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = HISTORIES


@pytest.mark.req("ORCH-3021", "ORCH-3099", "OC-CORE-1023")
class TestSessions(SessionsMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = HISTORIES
