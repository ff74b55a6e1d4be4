"""Sessions: how long they live, which KV they keep, and what they may use up."""

import pytest

from contracts.policies import BudgetPolicy, SessionPolicy
from contracts.tasks import Budgets
from orchestrator.core.changes import Changes
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.residency import Residency
from orchestrator.core.sessions import EXPIRED_PER_SWEEP, Session, Sessions

TTL_NS = 1000 * NS_PER_MS
KEY = ("acme", "s")


def kit(
    turns_max: int = 8, sessions_max: int = 100, budget: BudgetPolicy | None = None, kv_tokens: int = 1000
) -> tuple[Sessions, Residency]:
    residency = Residency()
    residency.add_replica("r0", kv_tokens)
    residency.add_replica("r1", kv_tokens)
    policy = SessionPolicy(1000, turns_max, sessions_max, budget or BudgetPolicy())
    return Sessions(policy, residency, Changes()), residency


def start(sessions: Sessions, now_ns: int = 0, name: str = "s", asked: int = 10) -> Session:
    session = sessions.open(now_ns, "acme", name)
    sessions.reserve(session, asked)
    return session


def end(sessions: Sessions, session: Session, now_ns: int = 0, asked: int = 10, used: int = 10) -> None:
    sessions.settle(now_ns, session, asked, used, 0, 0)


@pytest.mark.req("ORCH-3021")
def test_a_session_ends_a_while_after_its_last_activity_and_starts_anew() -> None:
    sessions, residency = kit(budget=BudgetPolicy(tokens=100))
    first = start(sessions)
    sessions.turn_served(0, first, "r0", 50)
    end(sessions, first, now_ns=5)
    assert sessions.find(5 + TTL_NS - 1, *KEY) is first
    assert sessions.ttl_left_ns(5 + TTL_NS - 1, first) == 1
    assert sessions.find(5 + TTL_NS, *KEY) is None
    assert (first.turns, first.replica_id, first.used_tokens) == (1, "r0", 10)
    assert residency.where(first.key) == "r0"
    again = sessions.open(5 + TTL_NS, *KEY)
    assert again is not first
    assert (again.turns, again.replica_id, again.used_tokens) == (0, "", 0)
    assert residency.where(KEY) == ""


@pytest.mark.req("ORCH-3021")
def test_opening_again_refreshes_and_a_live_task_keeps_it_alive() -> None:
    sessions, _ = kit()
    session = sessions.open(0, *KEY)
    assert sessions.open(TTL_NS - 1, *KEY) is session
    assert sessions.find(2 * TTL_NS - 2, *KEY) is session
    sessions.reserve(session, 1)
    assert sessions.find(50 * TTL_NS, *KEY) is session
    assert sessions.ttl_left_ns(50 * TTL_NS, session) == TTL_NS
    sessions.sweep(50 * TTL_NS)
    assert len(sessions) == 1
    end(sessions, session, 50 * TTL_NS, 1)
    assert sessions.find(51 * TTL_NS - 1, *KEY) is session
    assert sessions.find(51 * TTL_NS, *KEY) is None


@pytest.mark.req("ORCH-3021")
def test_the_same_session_id_of_another_tenant_is_another_session() -> None:
    sessions, _ = kit()
    assert sessions.open(0, "acme", "s") is not sessions.open(0, "other", "s")
    assert len(sessions) == 2


@pytest.mark.req("ORCH-3021")
def test_after_so_many_turns_the_kv_is_given_up_and_the_budget_stays() -> None:
    sessions, residency = kit(turns_max=3, budget=BudgetPolicy(tokens=100))
    for turn in (1, 2):
        session = start(sessions)
        sessions.turn_served(0, session, "r0", 20 * turn)
        end(sessions, session)
        assert (session.turns, session.replica_id) == (turn, "r0")
        assert residency.tokens("r0", KEY) == 20 * turn
    session = start(sessions)
    sessions.turn_served(0, session, "r0", 60)
    end(sessions, session)
    assert (session.turns, session.replica_id) == (0, "")
    assert residency.where(session.key) == ""
    assert residency.used_permille("r0") == 0
    assert sessions.budgets(session) == Budgets(tokens=70)


@pytest.mark.req("ORCH-3023")
def test_a_session_served_elsewhere_is_warm_there_alone() -> None:
    sessions, residency = kit()
    session = start(sessions)
    sessions.turn_served(0, session, "r0", 50)
    sessions.turn_served(0, session, "r1", 70)
    assert residency.where(session.key) == "r1"
    assert (residency.used_permille("r0"), residency.used_permille("r1")) == (0, 70)
    residency.remove_replica("r1")
    assert residency.where(session.key) == ""
    assert session.replica_id == "r1"


@pytest.mark.req("ORCH-3021")
def test_the_oldest_idle_sessions_make_room_and_live_ones_never_do() -> None:
    sessions, residency = kit(sessions_max=3)
    live = start(sessions, name="live")
    for n in range(4):
        session = sessions.open(n, "acme", f"s{n}")
        sessions.turn_served(n, session, "r0", 10)
    assert len(sessions) == 3
    assert [sessions.find(9, "acme", f"s{n}") is None for n in range(4)] == [True, True, False, False]
    assert residency.where(("acme", "s1")) == ""
    assert sessions.find(9, "acme", "live") is live


@pytest.mark.req("ORCH-3021")
def test_activity_of_an_idle_session_makes_it_the_last_to_go() -> None:
    sessions, _ = kit(sessions_max=3)
    opened, served = sessions.open(0, "acme", "opened"), sessions.open(0, "acme", "served")
    sessions.open(1, "acme", "quiet")
    sessions.open(2, "acme", "opened")
    sessions.turn_served(2, served, "r0", 10)
    sessions.open(3, "acme", "new")
    assert sessions.find(3, "acme", "quiet") is None
    assert sessions.find(TTL_NS + 1, "acme", "opened") is opened
    sessions.sweep(TTL_NS + 2)
    assert [sessions.find(TTL_NS + 2, "acme", name) for name in ("opened", "served")] == [None, None]
    assert len(sessions) == 1


@pytest.mark.req("ORCH-3021")
def test_live_sessions_may_exceed_the_bound_and_the_excess_goes_as_they_end() -> None:
    sessions, _ = kit(sessions_max=2)
    live = [start(sessions, name=f"s{n}") for n in range(5)]
    assert len(sessions) == 5
    for n, session in enumerate(live):
        end(sessions, session, now_ns=n)
    assert [sessions.find(9, "acme", f"s{n}") for n in range(5)] == [None, None, None, *live[3:]]


@pytest.mark.req("ORCH-3021")
def test_sweeps_drop_the_expired_a_few_at_a_time() -> None:
    sessions, residency = kit()
    many = 3 * EXPIRED_PER_SWEEP
    for n in range(many):
        sessions.turn_served(n, sessions.open(n, "acme", f"s{n}"), "r0", 1)
    sessions.sweep(TTL_NS - 1)
    assert len(sessions) == many
    sessions.sweep(TTL_NS)
    assert len(sessions) == many - 1
    sessions.sweep(10 * TTL_NS)
    assert len(sessions) == many - 1 - EXPIRED_PER_SWEEP
    for _ in range(3):
        sessions.sweep(10 * TTL_NS)
    assert (len(sessions), len(residency)) == (0, 0)


def test_closing_ends_a_session_and_its_kv() -> None:
    sessions, residency = kit(budget=BudgetPolicy(tokens=100))
    assert not sessions.close(*KEY)
    session = start(sessions)
    sessions.turn_served(0, session, "r0", 50)
    end(sessions, session)
    assert sessions.close(*KEY)
    assert sessions.find(0, *KEY) is None
    assert (len(sessions), len(residency)) == (0, 0)
    assert not sessions.close(*KEY)


@pytest.mark.req("ORCH-3099", "OC-CORE-1023")
def test_closing_resets_no_budget_while_a_task_is_live() -> None:
    sessions, residency = kit(budget=BudgetPolicy(tokens=100))
    session = start(sessions, asked=60)
    sessions.turn_served(0, session, "r0", 50)
    assert sessions.close(*KEY)
    assert not sessions.close(*KEY)
    assert residency.where(KEY) == ""
    found = sessions.find(0, *KEY)
    assert found is session
    assert sessions.refusal(found, 41) is not None
    sessions.turn_served(0, session, "r0", 50)
    assert residency.where(KEY) == ""
    end(sessions, session, asked=60, used=60)
    assert sessions.find(0, *KEY) is None
    sessions.turn_served(0, session, "r0", 50)
    assert len(residency) == 0


@pytest.mark.req("ORCH-3099")
def test_a_session_that_is_opened_again_while_closing_goes_on_with_its_budget() -> None:
    sessions, _ = kit(budget=BudgetPolicy(tokens=100))
    session = start(sessions, asked=60)
    sessions.close(*KEY)
    assert start(sessions, asked=30) is session
    end(sessions, session, asked=60, used=60)
    end(sessions, session, asked=30, used=20)
    assert sessions.find(0, *KEY) is session
    assert sessions.budgets(session) == Budgets(tokens=20)


@pytest.mark.req("ORCH-3099", "OC-CORE-1023")
def test_tokens_are_reserved_then_settled_to_what_was_used() -> None:
    sessions, _ = kit(budget=BudgetPolicy(tokens=100))
    assert sessions.budgets(None) == Budgets(tokens=100)
    assert sessions.refusal(None, 100) is None
    assert sessions.refusal(None, 101) is not None
    session = start(sessions, asked=60)
    assert sessions.refusal(session, 40) is None
    refusal = sessions.refusal(session, 41)
    assert refusal is not None
    assert "40 of 100 tokens left (60 are held" in refusal
    assert "may use 41" in refusal
    end(sessions, session, asked=60, used=25)
    assert sessions.budgets(session) == Budgets(tokens=75)
    assert (session.live, session.reserved_tokens, session.used_tokens) == (0, 0, 25)


@pytest.mark.req("ORCH-3099", "OC-CORE-1023")
def test_time_and_cost_refuse_once_they_are_used_up() -> None:
    sessions, _ = kit(budget=BudgetPolicy(time_ms=10, cost_micros=500))
    session = start(sessions)
    sessions.settle(0, session, 10, 10, 9 * NS_PER_MS - 1, 499)
    assert sessions.budgets(session) == Budgets(time_ms=1, cost_micros=1)
    assert sessions.refusal(session, 10**9) is None
    sessions.reserve(session, 10)
    sessions.settle(0, session, 10, 10, NS_PER_MS, 0)
    refusal = sessions.refusal(session, 1)
    assert refusal is not None
    assert "10 ms of slot time" in refusal
    sessions, _ = kit(budget=BudgetPolicy(cost_micros=500))
    session = start(sessions)
    sessions.settle(0, session, 10, 10, 0, 700)
    assert sessions.budgets(session) == Budgets(cost_micros=0)
    refusal = sessions.refusal(session, 1)
    assert refusal is not None
    assert "500 cost micros" in refusal


@pytest.mark.req("ORCH-3099")
def test_without_bounds_there_are_no_budgets_to_tell() -> None:
    sessions, _ = kit()
    session = start(sessions, asked=10**9)
    assert sessions.budgets(session) is None
    assert sessions.budgets(None) is None
    assert sessions.refusal(session, 10**9) is None


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (SessionPolicy(ttl_ms=0), "ttl_ms must be at least 1, got 0"),
        (SessionPolicy(turns_max=0), "turns_max must be at least 1, got 0"),
        (SessionPolicy(sessions_max=0), "sessions_max must be at least 1, got 0"),
        (SessionPolicy(budget=BudgetPolicy(tokens=-1)), "budget tokens must be at least 0, got -1"),
        (SessionPolicy(budget=BudgetPolicy(time_ms=-1)), "budget time_ms must be at least 0, got -1"),
        (SessionPolicy(budget=BudgetPolicy(cost_micros=-1)), "budget cost_micros must be at least 0, got -1"),
    ],
)
def test_bad_numbers_are_refused(policy: SessionPolicy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sessions(policy, Residency(), Changes())


@pytest.mark.req("ORCH-3022")
def test_the_least_recently_used_sessions_make_room_in_a_cache() -> None:
    residency = Residency()
    residency.add_replica("r0", 100)
    for name in ("a", "b", "c"):
        residency.touch("r0", ("t", name), 30)
    residency.touch("r0", ("t", "a"), 35)
    assert residency.used_permille("r0") == 950
    residency.touch("r0", ("t", "d"), 40)
    assert [residency.tokens("r0", ("t", name)) for name in "abcd"] == [35, 0, 0, 40]
    assert residency.used_permille("r0") == 750
    residency.touch("r0", ("t", "e"), 25)
    assert residency.used_permille("r0") == 1000
    residency.touch("r0", ("t", "e"), 26)
    assert [residency.tokens("r0", ("t", name)) for name in "ade"] == [0, 40, 26]


@pytest.mark.req("ORCH-3022")
def test_what_cannot_be_held_is_not_kept() -> None:
    residency = Residency()
    residency.add_replica("r0", 100)
    residency.touch("r0", KEY, 50)
    residency.touch("r0", KEY, 101)
    assert residency.where(KEY) == ""
    residency.touch("r0", KEY, 100)
    assert residency.tokens("r0", KEY) == 100
    residency.touch("gone", KEY, 50)
    assert residency.where(KEY) == ""
    residency.add_replica("r1", 0)
    residency.touch("r1", KEY, 0)
    assert (len(residency), residency.used_permille("r1"), residency.used_permille("gone")) == (0, 0, 0)


@pytest.mark.req("ORCH-3022", "ORCH-3023")
def test_a_replica_that_comes_up_again_is_empty() -> None:
    residency = Residency()
    residency.add_replica("r0", 100)
    residency.touch("r0", KEY, 50)
    residency.add_replica("r0", 100)
    assert (residency.where(KEY), residency.tokens("r0", KEY), residency.used_permille("r0")) == ("", 0, 0)
    residency.remove_replica("unknown")
