"""`/v1/sessions/{id}`, and what is told of a session's budgets."""

from typing import Any

import pytest

from contracts import openapi_examples as ex
from orchestrator.ingress.frontend import Frontend
from tests.unit.ingress.asgi import OTHER_KEY, SETTINGS, Call, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

SESSION = f"/v1/sessions/{ex.SESSION_ID}"


@pytest.mark.req("ORCH-2004", "ORCH-3023", "OC-CORE-1024")
async def test_a_session_tells_its_life_its_kept_context_and_its_budgets(call: Call) -> None:
    await call("POST", "/v1/tasks", task_body())
    answer = await call("GET", SESSION.upper().replace("/V1/SESSIONS", "/v1/sessions"))
    assert answer.status == 200
    assert answer.json == {
        "ttl_ms_remaining": 584_000,
        "turns": 3,
        "kv_bytes": 14_208_000,
        "kv_warmth": True,
        "tokens_budget_remaining": 19_200,
    }


@pytest.mark.req("ORCH-2005")
async def test_a_session_can_be_ended_once(call: Call) -> None:
    await call("POST", "/v1/tasks", task_body())
    ended = await call("DELETE", SESSION)
    assert (ended.status, ended.body) == (204, b"")
    for method in ("GET", "DELETE"):
        answer = await call(method, SESSION)
        assert (answer.status, answer.json["code"], answer.json["retriable"]) == (404, "NOT_FOUND", False)


@pytest.mark.req("ORCH-2004", "ORCH-2005", "ORCH-3035")
async def test_another_tenants_session_is_unknown(call: Call) -> None:
    await call("POST", "/v1/tasks", task_body())
    for method in ("GET", "DELETE"):
        assert (await call(method, SESSION, authorization=f"Bearer {OTHER_KEY}")).status == 404
    assert (await call("GET", SESSION)).status == 200


@pytest.mark.req("ORCH-2004")
async def test_a_session_id_must_be_a_uuid(call: Call) -> None:
    for method in ("GET", "DELETE"):
        answer = await call(method, "/v1/sessions/mine")
        assert (answer.status, answer.json["code"]) == (400, "INVALID_PARAMS")
        assert "session_id" in answer.json["message"]


@pytest.mark.req("ORCH-3099", "OC-CORE-1024")
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(
    ("told", "headers"),
    [
        ({}, {}),
        ({"tokens_budget_remaining": 0}, {"x-budget-tokens-remaining": "0"}),
        (
            {"tokens_budget_remaining": 19_200, "time_budget_remaining_ms": 2500, "cost_budget_remaining": 0.03},
            {
                "x-budget-tokens-remaining": "19200",
                "x-budget-time-remaining-ms": "2500",
                "x-budget-cost-remaining": "0.030000",
            },
        ),
    ],
)
async def test_bounded_budgets_are_headers_of_an_admission(
    call: Call, gateway: FakeGateway, told: dict[str, Any], headers: dict[str, str], accept: str
) -> None:
    gateway.admission |= told
    gateway.script = [ex.STARTED, ex.END]
    answer = await call("POST", "/v1/tasks", task_body(), accept=accept)
    found = {name: value for name, value in answer.headers.items() if name.startswith("x-budget")}
    assert found == headers
    if answer.status == 202:
        assert {name: value for name, value in answer.json.items() if "budget" in name} == told


@pytest.mark.req("ORCH-3006", "ORCH-3081")
async def test_the_scheduler_is_told_which_key_it_was_and_the_client_its_chance(
    call: Call, gateway: FakeGateway
) -> None:
    gateway.admission["on_time_probability"] = 0.83
    body = task_body()
    answer = await call("POST", "/v1/tasks", body)
    assert answer.json["on_time_probability"] == 0.83
    assert gateway.tasks[body["task_id"]].info.client == "test"


@pytest.mark.req("ORCH-2004", "ORCH-2005")
async def test_python_callers_have_sessions_too(gateway: FakeGateway) -> None:
    frontend = Frontend(gateway, SETTINGS)
    await frontend.submit(task_body(), "acme")
    assert (await frontend.session(ex.SESSION_ID, "acme"))["turns"] == 3
    await frontend.close_session(ex.SESSION_ID, "acme")
    assert gateway.open_sessions == set()
