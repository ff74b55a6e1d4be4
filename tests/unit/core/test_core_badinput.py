"""Bad input: unknown, late, doubled and impossible events change nothing; bad settings are refused at construction."""

from typing import Any

import pytest

from contracts.policies import BreakerPolicy, BudgetPolicy, PreemptionPolicy, RatePolicy, SessionPolicy, TenantPolicy
from contracts.scheduling import (
    Admit,
    AnyEvent,
    Finish,
    PromptMeasured,
    Reject,
    ReplicaLost,
    ReplicaReported,
    ReplicaUnready,
    SetTimer,
    SlotReleased,
    Start,
    TimerFired,
    TokensProgressed,
)
from orchestrator.core.digest import digest
from orchestrator.core.scheduler import Scheduler
from tests.unit.core.core_kit import MS, Core, config, ended, of, one, queue, replica, replica_set


def core() -> Core:
    made = Core(
        replica_set(fairness="wfq", ordering="edf", preemption=PreemptionPolicy("hard")),
        ready=(replica(interruptible_decode=True),),
    )
    made.submit("runs")
    made.submit("waits", priority="batch")
    made.submit("over", priority="batch")
    made.cancel("over")
    return made


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize(
    "event",
    [
        TokensProgressed("unknown", 1, 5, 5),
        TokensProgressed("runs", 2, 5, 5),
        TokensProgressed("runs", 1, 0, 5),
        TokensProgressed("waits", 0, 5, 5),
        TokensProgressed("over", 1, 5, 5),
        ended("unknown"),
        ended("runs", 2),
        ended("runs", 1, "elsewhere"),
        ended("waits", 1),
        SlotReleased("runs", 1, "r0"),
        SlotReleased("unknown", 1, "r0"),
        PromptMeasured("unknown", 1, 5),
        PromptMeasured("runs", 1, 5),
        ReplicaLost("unknown", "gone"),
        ReplicaUnready("unknown", "gone"),
        ReplicaReported("unknown", 500),
        TimerFired(),
    ],
)
def test_what_is_late_or_of_nothing_known_changes_nothing(event: AnyEvent) -> None:
    made = core()
    made.tell(TimerFired())
    before = digest(made.scheduler)
    assert [c for c in made.tell(event) if not isinstance(c, SetTimer)] == []
    assert digest(made.scheduler) == before


@pytest.mark.req("ORCH-3024", "ORCH-3026")
def test_an_end_that_is_told_twice_counts_once() -> None:
    made = core()
    assert one(made.tell(ended("runs")), Finish).task_id == "runs"
    before = digest(made.scheduler)
    assert not of(made.tell(ended("runs")), Finish)
    assert digest(made.scheduler) == before


def test_progress_never_goes_back() -> None:
    made = core()
    made.tell(TokensProgressed("runs", 1, 5, 55))
    made.tell(TokensProgressed("runs", 1, 3, 33))
    record = made.scheduler.state.tasks["runs"]
    assert (record.tokens_out, record.tokens_digest) == (5, 55)


@pytest.mark.req("ORCH-3036")
def test_a_tenant_that_is_not_configured_is_refused_and_leaves_nothing() -> None:
    made = Core(ready=(replica(),), tenants=(TenantPolicy("acme"),), default_tenant=None)
    error = one(made.submit("t", tenant="ghost"), Reject).error
    assert (error.code, error.retriable) == ("FORBIDDEN", False)
    assert error.message == "tenant 'ghost' is not configured here; ask the operator to add it"
    assert len(made.scheduler.state.quotas) == 0
    assert of(made.submit("t"), Admit)


def test_a_clock_that_goes_back_stands_still() -> None:
    made = core()
    made.now_ms -= 900
    commands = made.tell(ended("runs"))
    start = one(commands, Start)
    assert (start.task_id, start.waited_ms, start.slack_ms) == ("waits", 0, 600_000)
    assert made.scheduler.state.now_ns == (made.now_ms + 900) * MS


@pytest.mark.req("ORCH-3079")
def test_a_deadline_of_one_millisecond_ends_without_harm() -> None:
    made = core()
    made.submit("short", deadline_ms=1)
    assert one(made.pass_ms(1), Finish).outcome.state == "failed"
    assert one(made.tell(ended("runs")), Start).task_id == "waits"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tenants": (TenantPolicy("acme", weight=0),)}, "tenant acme: weight must be at least 1, got 0"),
        ({"tenants": (TenantPolicy("acme", weight=-2),)}, "weight must be at least 1"),
        ({"tenants": (TenantPolicy("a"), TenantPolicy("a"))}, "tenant a is configured twice"),
        ({"tenants": (TenantPolicy("a", max_concurrent=0),)}, "max_concurrent must be at least 1"),
        ({"default_tenant": TenantPolicy("", weight=0)}, "weight must be at least 1"),
        ({"clients": {"key": RatePolicy(0.0, 1)}}, "client key: rps must be a number"),
        ({"default_client": RatePolicy(1.0, 0)}, "burst must be at least 1"),
        ({"sessions": SessionPolicy(ttl_ms=0)}, "ttl_ms must be at least 1"),
        ({"sessions": SessionPolicy(budget=BudgetPolicy(tokens=-1))}, "budget tokens must be at least 0"),
    ],
)
def test_impossible_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(config(**settings))


@pytest.mark.req("ORCH-3075")
@pytest.mark.parametrize("weight", [0, -1])
def test_a_class_needs_a_weight(weight: int) -> None:
    with pytest.raises(ValueError, match="a weight must be at least 1"):
        Scheduler(config(replica_set(queues=(queue("interactive", weight=weight),))))


def test_impossible_breakers_and_preemption_rates_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="violations_percent must be 1 to 100"):
        Scheduler(config(replica_set(breaker=BreakerPolicy(violations_percent=0))))
    with pytest.raises(ValueError, match="must be at least 1"):
        Scheduler(config(replica_set(preemption=PreemptionPolicy("hard", max_per_min=0))))
