"""Rates, quotas and budgets as the scheduler applies them: who is refused, who waits, and what it costs."""

from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import BudgetPolicy, RatePolicy, SessionPolicy, TenantPolicy
from contracts.scheduling import Admit, AnswerClose, Reject, SessionCloseRequested, Start
from orchestrator.core import quotas
from orchestrator.core.digest import accounts
from tests.unit.core.core_kit import Core, ended, of, one, queue, replica, replica_set, started


def core(*tenants: TenantPolicy, slots: int = 4, **more: Any) -> Core:
    over = more.pop("over", {})
    info = replica(slots=slots, kv_token_bytes=16 * 1024)
    return Core(replica_set(fairness="wfq", ordering="edf", **over), ready=(info,), tenants=tenants, **more)


def refused(commands: list[Any]) -> ErrorInfo:
    error: ErrorInfo = one(commands, Reject).error
    assert error.code == "ADMISSION_REJECT"
    assert error.policy_label == "reject"
    return error


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_a_tenant_at_its_concurrency_waits_and_others_pass_it() -> None:
    made = core(TenantPolicy("narrow", max_concurrent=1))
    assert of(made.submit("a", tenant="narrow"), Start)
    assert of(made.submit("b", tenant="narrow"), Admit)
    assert of(made.submit("c", tenant="other"), Start)
    why = made.scheduler.status(0, "b", "narrow")
    assert why is not None
    assert why.why == "tenant narrow runs as much as its quota allows; waits until one of its tasks ends"
    assert one(made.tell(ended("a")), Start).task_id == "b"


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_a_tenant_over_its_memory_waits_and_what_can_never_fit_is_refused() -> None:
    # 64 tokens of 16 KiB are one MB.
    made = core(TenantPolicy("small", kv_mb=1))
    assert of(made.submit("a", tenant="small", max_tokens=40), Start)
    assert of(made.submit("b", tenant="small", max_tokens=40), Admit)
    assert made.scheduler.queue_depth("set-a", "interactive") == 1
    error = one(made.submit("never", tenant="small", max_tokens=70), Reject).error
    assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
    assert error.message.endswith("tenant small has 1 MB; ask for a smaller max_tokens")
    assert one(made.tell(ended("a")), Start).task_id == "b"


RATE = RatePolicy(rps=2.0, burst=1)


@pytest.mark.req("ORCH-3006", "ORCH-3036", "ORCH-3077")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tenants": (TenantPolicy("acme", rate=RATE),)}, "over 2 requests/s of tenant acme"),
        ({"clients": {"key": RATE}}, "over the rate of client key"),
        ({"over": {"queues": (queue("interactive", rate=RATE),)}}, "over the rate of class interactive"),
    ],
)
def test_over_a_rate_it_is_told_when_exactly_to_come_again(more: dict[str, Any], message: str) -> None:
    made = core(*more.pop("tenants", ()), **more)
    assert of(made.submit("a", client="key"), Admit)
    error = refused(made.submit("b", client="key"))
    assert (error.message, error.retry_after_ms) == (f"{message}; try again in 500 ms", 500)
    made.pass_ms(499)
    assert refused(made.submit("b", client="key")).retry_after_ms == 1
    made.pass_ms(1)
    assert of(made.submit("b", client="key"), Admit)


@pytest.mark.req("ORCH-3077", "ORCH-3036")
def test_tokens_a_minute_are_charged_as_asked_and_corrected_to_what_was_used() -> None:
    made = core(TenantPolicy("acme", tokens_per_min=60))
    assert of(made.submit("a", max_tokens=50), Admit)
    error = refused(made.submit("b", max_tokens=50))
    # 1 + 50 of 60 are taken; 51 need 42 more, one a second.
    assert (error.message, error.retry_after_ms) == ("over 60 tokens/min of tenant acme; try again in 42000 ms", 42_000)
    made.tell(ended("a", tokens_in=1, tokens_out=4))
    assert of(made.submit("b", max_tokens=50), Admit)


def budget_core(**budget: Any) -> Core:
    return core(sessions=SessionPolicy(ttl_ms=9_000, budget=BudgetPolicy(**budget)))


@pytest.mark.req("ORCH-3099", "OC-CORE-1023")
def test_a_token_budget_holds_what_was_asked_for_and_then_what_was_used() -> None:
    made = budget_core(tokens=60)
    admit = one(made.submit("a", max_tokens=40), Admit)
    assert admit.budgets is not None
    assert admit.budgets.tokens == 60 - 41
    error = refused(made.submit("b", max_tokens=40))
    assert error.message.startswith(
        "a budget is used up: the session has 19 of 60 tokens left (41 are held by its unfinished tasks)"
    )
    # Its tasks may end at any time; as long as one lives, so does the session.
    assert error.retry_after_ms == 9_000
    made.tell(ended("a", tokens_in=1, tokens_out=4))
    assert of(made.submit("b", max_tokens=40), Admit)
    assert of(made.submit("other", session_id="other", max_tokens=40), Admit)


@pytest.mark.req("ORCH-3099", "OC-CORE-1023")
@pytest.mark.parametrize(
    ("budget", "word"), [({"time_ms": 100}, "100 ms of slot time"), ({"cost_micros": 9}, "micros")]
)
def test_time_and_cost_budgets_end_the_session(budget: dict[str, int], word: str) -> None:
    made = core(sessions=SessionPolicy(budget=BudgetPolicy(**budget)), over={"price_out_micros": 1_000})
    made.submit("a")
    made.pass_ms(100)
    made.tell(ended("a", tokens_in=1, tokens_out=10))
    assert word in refused(made.submit("b")).message
    made.tell(SessionCloseRequested(7, "session", "acme"))
    assert of(made.submit("c"), Admit)


@pytest.mark.req("ORCH-3021")
def test_a_session_is_closed_once() -> None:
    made = core()
    made.submit("a")
    made.tell(ended("a"))
    found = [one(made.tell(SessionCloseRequested(n, "session", "acme")), AnswerClose).found for n in (1, 2)]
    assert found == [True, False]
    assert not one(made.tell(SessionCloseRequested(3, "session", "other")), AnswerClose).found


@pytest.mark.req("ORCH-3077", "ORCH-3099", "ORCH-3006")
@pytest.mark.parametrize(
    "over", [{"max_tokens": 95}, {"deadline_ms": 1}, {"client": "key"}, {"max_tokens": 90}, {"model_ref": "none"}]
)
def test_what_is_refused_uses_up_nothing(over: dict[str, Any]) -> None:
    made = core(
        TenantPolicy("acme", rate=RatePolicy(9.0, 9), tokens_per_min=100),
        clients={"key": RATE},
        sessions=SessionPolicy(budget=BudgetPolicy(tokens=200)),
        over={"on_time_percent_min": 50},
    )
    made.submit("a", client="key")
    before = accounts(made.scheduler)
    assert of(made.submit("b", **over), Reject)
    assert accounts(made.scheduler) == before


@pytest.mark.req("ORCH-3077")
def test_a_task_that_never_ran_gives_its_reservation_back() -> None:
    made = core(TenantPolicy("acme", tokens_per_min=60), slots=1)
    made.submit("other", tenant="other")
    made.submit("a", max_tokens=50)
    made.cancel("a")
    assert of(made.submit("b", max_tokens=50), Admit)


@pytest.mark.req("ORCH-3036", "ORCH-3077")
def test_a_tenant_forgotten_while_its_prompt_is_measured_keeps_one_account() -> None:
    core = Core(ready=(replica(slots=4),), tenants=(TenantPolicy("acme", max_concurrent=1),))
    core.submit("counted", templated=True)
    # So many others come that a tenant without a live task is dropped from the table.
    for n in range(quotas.ENTRIES_MAX):
        core.scheduler.state.quotas.tenant(f"passing{n}")
    core.submit("other", tenant="other")
    assert started(core.measured("counted", 5)) == [("counted", 1, "r0")]
    assert started(core.submit("second")) == []
    assert started(core.tell(ended("counted"))) == [("second", 1, "r0")]
