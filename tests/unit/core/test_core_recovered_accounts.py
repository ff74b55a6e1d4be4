"""What tasks were promised and have used, across a recovery and under another configuration (ORCH-3051)."""

import pytest

from contracts.journal import KeptTask
from contracts.policies import BudgetPolicy, RatePolicy, SessionPolicy, TenantPolicy
from contracts.scheduling import (
    Finish,
    Forget,
    Reject,
    RunningAttempt,
    Start,
)
from tests.unit.core.core_kit import MS, TENANT, ended, of, one, queue, replica, replica_set, started
from tests.unit.core.durable_kit import Durable

pytestmark = pytest.mark.req("ORCH-3051")


def busy(waiting: int = 2) -> Durable:
    """One task runs on r0, others wait."""
    core = Durable(ready=(replica(),))
    core.submit("run")
    for n in range(waiting):
        core.submit(f"w{n}")
    return core


# ------------------------------------------------------------------------ what was promised and used


@pytest.mark.req("ORCH-3036", "ORCH-3077", "ORCH-3006")
def test_rates_go_on_where_they_were_and_nothing_is_charged_twice() -> None:
    tenants = (TenantPolicy(TENANT, rate=RatePolicy(1.0, 2), tokens_per_min=600),)
    core = Durable(ready=(replica(),), tenants=tenants, clients={"key": RatePolicy(0.5, 1)})
    core.submit("a", client="key")
    before = {(each.kind, each.name): each for each in core.journal.kept().accounts}
    core.restart(after_ms=100)
    quota = core.scheduler.state.quotas.tenant(TENANT)
    assert quota is not None
    assert quota.rate is not None
    assert quota.tokens is not None
    kept = before["tenant", TENANT]
    assert (quota.rate.full_ns, quota.tokens.full_ns) == (kept.requests_full_ns, kept.tokens_full_ns)
    assert quota.live == 1
    assert "client key" in one(core.submit("b", client="key"), Reject).error.message
    core.back(replica(), RunningAttempt("a", 1))
    core.tell(ended("a", tokens_in=1, tokens_out=0))
    # Charged 11 tokens at 0.1 s each, of which one was used.
    assert quota.tokens.full_ns == kept.tokens_full_ns - 10 * 100 * MS
    assert quota.live == 0


@pytest.mark.req("ORCH-3036")
def test_quotas_of_running_work_hold_after_a_recovery() -> None:
    tenants = (TenantPolicy(TENANT, max_concurrent=1, kv_mb=1),)
    info = replica(slots=4, kv_tokens=400, kv_token_bytes=20_000)
    core = Durable(ready=(info,), tenants=tenants)
    for name in ("a", "b"):
        core.submit(name, max_tokens=30)
    core.restart()
    assert started(core.back(info, RunningAttempt("a", 1))) == []
    assert core.scheduler.state.quotas.tenant(TENANT).kv_bytes == 31 * 20_000  # type: ignore[union-attr]
    assert started(core.tell(ended("a"))) == [("b", 1, "r0")]


@pytest.mark.req("ORCH-3099", "ORCH-3021")
def test_sessions_keep_what_they_used_and_what_their_tasks_hold() -> None:
    policy = SessionPolicy(ttl_ms=60_000, budget=BudgetPolicy(tokens=30))
    core = Durable(ready=(replica(),), sessions=policy)
    core.submit("a")
    core.tell(ended("a", tokens_in=1, tokens_out=9))
    core.submit("b")
    core.restart()
    view = core.scheduler.session(core.now_ms * MS, TENANT, "session")
    assert view is not None
    assert (view.turns, view.budgets and view.budgets.tokens) == (1, 9)
    assert "budget is used up" in one(core.submit("c"), Reject).error.message


@pytest.mark.req("ORCH-3021")
def test_an_expired_session_is_left_out_unless_a_task_of_it_lives() -> None:
    core = Durable(ready=(replica(),), sessions=SessionPolicy(ttl_ms=1_000))
    core.submit("a", session_id="old")
    core.tell(ended("a"))
    core.submit("b", session_id="live")
    core.restart(after_ms=5_000)
    now_ns = core.now_ms * MS
    assert core.scheduler.session(now_ns, TENANT, "old") is None
    assert core.scheduler.session(now_ns, TENANT, "live") is not None


# ------------------------------------------------------------------------ another configuration


def test_bounds_that_are_smaller_now_refuse_nothing_that_was_accepted() -> None:
    core = busy(waiting=6)
    core.restart(replica_set(capacity=2, queues=(queue("interactive", 2, "drop-lru"), queue("batch"))))
    assert all(core.state_of(f"w{n}") == "queued" for n in range(6))
    # A new one may take the place of those that found one in today's queue, not of the others.
    core.submit("new")
    states = [core.state_of(f"w{n}") for n in range(6)]
    assert states.count("dropped") == 1
    assert states[2:] == ["queued"] * 4
    core.back(replica(), RunningAttempt("run", 1))
    assert one(core.tell(ended("run")), Start)


@pytest.mark.parametrize("change", ["class", "model"])
def test_tasks_of_what_is_not_configured_any_more_end_and_say_so(change: str) -> None:
    core = busy(waiting=1)
    core.submit("old")
    core.tell(ended("run"))
    if change == "class":
        commands = core.restart(replica_set(queues=(queue("batch"),)))
    else:
        commands = core.restart(replica_set(set_id="set-b", model_refs=("other",)))
    for task_id in ("w0", "old"):
        (error,) = [each.outcome.error for each in of(commands, Finish) if each.task_id == task_id]
        assert error is not None
        assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", False)
        assert "is not served any more" in error.message
    # What had ended stays known, and so does how these ended.
    assert core.scheduler.outcome("run", TENANT) == core.task("run").outcome
    assert core.scheduler.status(core.now_ms * MS, "run", TENANT) is not None
    assert {each.task.task_id for each in core.told(KeptTask)} == {"w0", "old"}
    commands = core.pass_ms(70_000)
    assert {each.task_id for each in of(commands, Forget)} == {"run", "w0", "old"}


def test_what_never_started_goes_where_it_would_be_taken_now() -> None:
    """A set's id names its context; a larger one serves what the smaller one accepted."""
    core = busy(waiting=1)
    core.restart(replica_set(set_id="set-200", ctx=200))
    assert core.state_of("w0") == "queued"
    assert core.state_of("run") == "failed"
    assert started(core.back(replica(ctx=200))) == [("w0", 1, "r0")]


def test_tasks_of_a_tenant_that_is_gone_are_served_out() -> None:
    core = busy(waiting=1)
    core.restart(default_tenant=None)
    core.back(replica(), RunningAttempt("run", 1))
    assert started(core.tell(ended("run"))) == [("w0", 1, "r0")]
    assert one(core.submit("new"), Reject).error.code == "FORBIDDEN"
