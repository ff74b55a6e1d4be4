"""The control plane over a fake gateway: what is told, what is taken on, what is refused."""

from typing import Any

import msgspec
import pytest
import structlog

from contracts import openapi_control_examples as ex
from contracts.config_base import Identifier
from contracts.control import Capabilities, DrainRequest, PoolHealth, ReloadRequest, ReplicaSetStatus
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import POOL_ID_PATTERN
from orchestrator.ingress.frontend import Frontend
from tests.unit.ingress.asgi import KEY, SETTINGS, Call
from tests.unit.ingress.fake_gateway import FakeGateway

POOL = "/v1/pools/smollm2"


@pytest.mark.req("ORCH-2103", "OC-CTRL-2001")
async def test_health_tells_the_state_and_the_last_error(call: Call, gateway: FakeGateway) -> None:
    gateway.healths["smollm2"] = ex.WAITING
    answer = await call("GET", POOL + "/health")
    assert answer.status == 200
    assert {"live", "ready", "draining", "metrics"} <= answer.json.keys()
    assert (answer.json["live"], answer.json["ready"], answer.json["draining"]) == (True, False, False)
    assert answer.json["metrics"]["queue_depth"] == 2
    assert answer.json["last_error"]["kind"] == "model"
    assert answer.json["last_error"]["stderr"] == ["error loading model: invalid magic number"]
    assert answer.json["replicas"][0]["retry_in_ms"] == 1800
    assert answer.json["accelerator"] == "cpu-dev"
    assert msgspec.json.decode(answer.body, type=PoolHealth) == ex.WAITING


async def test_pools_are_listed_once_each_in_the_order_of_their_ids(call: Call, gateway: FakeGateway) -> None:
    gateway.healths["a-pool"] = msgspec.structs.replace(ex.DRAINED, pool_id="a-pool")
    answer = await call("GET", "/v1/pools")
    assert answer.status == 200
    found = msgspec.json.decode(answer.body, type=list[PoolHealth])
    assert [health.pool_id for health in found] == ["a-pool", "smollm2"]
    assert found[0].drained


@pytest.mark.req("ORCH-2104", "OC-CTRL-2004")
async def test_replica_sets_are_a_list(call: Call, gateway: FakeGateway) -> None:
    answer = await call("GET", "/v1/replicasets")
    assert answer.status == 200
    assert {"id", "engine", "load", "slots_total", "slots_free", "slo"} <= answer.json[0].keys()
    assert answer.json[0]["slo"]["interactive"] == {"first_token_ms": 800, "attainment": 0.99}
    assert msgspec.json.decode(answer.body, type=list[ReplicaSetStatus]) == await gateway.replica_sets()


@pytest.mark.req("ORCH-3095", "ORCH-3096", "OC-CTRL-2060", "OC-CTRL-2061")
async def test_capabilities_have_the_version_of_the_documents(call: Call, gateway: FakeGateway) -> None:
    gateway.told_api_version = "0.0.1"  # A scheduler of another release, amid an upgrade.
    answer = await call("GET", "/v1/capabilities")
    assert answer.status == 200
    told = msgspec.json.decode(answer.body, type=Capabilities)
    for document in ("/openapi.json", "/openapi-control.json"):
        assert told.api_version == (await call("GET", document)).json["info"]["version"]
    assert {"engine", "ctx_max", "supported_workloads", "rate_limits", "features"} <= answer.json["engines"][0].keys()
    assert told.engines[0].accelerators == ["cpu-dev"]


TAKEN_ON: list[tuple[str, Any, object]] = [
    ("drain", {"deadline_ms": 30_000}, DrainRequest(30_000)),
    ("drain", {"deadline_ms": 0}, DrainRequest(0)),
    ("reload", {"new_model_ref": ex.NEXT_MODEL}, ReloadRequest(ex.NEXT_MODEL)),
    ("reload", {"new_model_ref": ex.NEXT_MODEL, "canary_percent": None}, ReloadRequest(ex.NEXT_MODEL)),
    ("reload", {"new_model_ref": ex.NEXT_MODEL, "canary_percent": 10}, ReloadRequest(ex.NEXT_MODEL, 10)),
]


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3033", "OC-CTRL-2002", "OC-CTRL-2003")
@pytest.mark.parametrize(("action", "body", "asked"), TAKEN_ON)
async def test_what_is_taken_on_is_202(call: Call, gateway: FakeGateway, action: str, body: Any, asked: object) -> None:
    answer = await call("POST", f"{POOL}/{action}", body)
    assert answer.status == 202
    assert answer.json == {"pool_id": "smollm2", "status": "accepted"}
    assert answer.headers["location"] == POOL + "/health"
    assert gateway.asked == [(action, "smollm2", asked)]


@pytest.mark.req("ORCH-3031", "ORCH-3033")
@pytest.mark.parametrize("action", ["promote", "rollback"])
async def test_a_canary_is_settled_by_one_call_without_a_body(call: Call, gateway: FakeGateway, action: str) -> None:
    await call("POST", POOL + "/reload", {"new_model_ref": ex.NEXT_MODEL, "canary_percent": 10})
    answer = await call("POST", f"{POOL}/{action}")
    assert (answer.status, answer.json["pool_id"]) == (202, "smollm2")
    assert gateway.asked[-1] == (action, "smollm2", None)
    again = await call("POST", f"{POOL}/{action}")
    assert (again.status, again.json["code"]) == (409, "CONFLICT")


REFUSED: list[tuple[str, Any, str]] = [
    ("drain", {}, "`deadline_ms`"),
    ("drain", {"deadline_ms": -1}, "$.deadline_ms"),
    ("drain", {"deadline_ms": 86_400_001}, "$.deadline_ms"),
    ("drain", {"deadline_ms": 1.5}, "$.deadline_ms"),
    ("drain", {"deadline_ms": "10"}, "$.deadline_ms"),
    ("drain", {"deadline_ms": None}, "$.deadline_ms"),
    ("drain", {"deadline_ms": 1, "force": True}, "`force`"),
    ("drain", b"", "JSON"),
    ("drain", b"{", "JSON"),
    ("drain", b"\xff", "JSON"),
    ("drain", [], "$"),
    ("reload", {}, "`new_model_ref`"),
    ("reload", {"new_model_ref": ""}, "$.new_model_ref"),
    ("reload", {"new_model_ref": "x" * 257}, "$.new_model_ref"),
    ("reload", {"new_model_ref": ex.NEXT_MODEL, "canary_percent": 0}, "$.canary_percent"),
    ("reload", {"new_model_ref": ex.NEXT_MODEL, "canary_percent": 100}, "$.canary_percent"),
    ("reload", {"new_model_ref": ex.NEXT_MODEL, "canary": 10}, "`canary`"),
    ("reload", {"new_model_ref": "nobody-has-this"}, ex.NEXT_MODEL),
    ("reload", b"{", "JSON"),
]


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2006", "OC-CTRL-2030")
@pytest.mark.parametrize(("action", "body", "hint"), REFUSED)
async def test_a_bad_request_names_the_field_and_changes_nothing(
    call: Call, gateway: FakeGateway, action: str, body: Any, hint: str
) -> None:
    answer = await call("POST", f"{POOL}/{action}", body)
    assert (answer.status, answer.json["code"], answer.json["retriable"]) == (400, "INVALID_PARAMS", False)
    assert hint in answer.json["message"]
    assert gateway.asked == []


async def test_a_body_over_the_limit_is_413(call: Call, gateway: FakeGateway) -> None:
    answer = await call("POST", POOL + "/drain", b" " * (SETTINGS.body_max_bytes + 1))
    assert (answer.status, answer.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert gateway.asked == gateway.rejected == []


CALLS = [
    ("GET", "health", b""),
    ("POST", "drain", {"deadline_ms": 1}),
    ("POST", "reload", {"new_model_ref": ex.NEXT_MODEL}),
    ("POST", "promote", b""),
    ("POST", "rollback", b""),
]
BAD_IDS = ["UPPER", "-first", "a b", "a%2fb", "..", "\u00e9", "x" * 64, "smollm2\n", "%00"]


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030")
@pytest.mark.parametrize(("method", "action", "body"), CALLS)
async def test_an_unknown_pool_is_404(call: Call, gateway: FakeGateway, method: str, action: str, body: Any) -> None:
    answer = await call(method, f"/v1/pools/nobody/{action}", body)
    assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND")
    assert "there are: smollm2" in answer.json["message"]  # The scheduler's own answer.
    gateway.control_error = AssertionError("what no pool can be called is not asked for")
    for bad in BAD_IDS:
        answer = await call(method, f"/v1/pools/{bad}/{action}", body)
        assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND"), bad


def test_paths_take_the_ids_that_the_configuration_takes() -> None:
    (field,) = Identifier.__metadata__
    assert [rule.pattern for rule in field.metadata] == [POOL_ID_PATTERN]


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ErrorInfo("CONFLICT", "A reload is under way.", "llamacpp", "smollm2", True), 409),
        (ErrorInfo("POOL_UNAVAILABLE", "No scheduler.", retriable=True, retry_after_ms=1000), 503),
    ],
)
async def test_the_schedulers_refusals_pass_through(
    call: Call, gateway: FakeGateway, error: ErrorInfo, status: int
) -> None:
    gateway.control_error = OrchError(error)
    for method, action, body in CALLS:
        answer = await call(method, f"{POOL}/{action}", body)
        assert answer.status == status
        assert msgspec.json.decode(answer.body, type=ErrorInfo) == error
        assert ("retry-after" in answer.headers) == (status == 503)
    for path in ("/v1/pools", "/v1/replicasets", "/v1/capabilities"):
        assert (await call("GET", path)).status == status


async def test_a_failure_inside_tells_no_details(call: Call, gateway: FakeGateway) -> None:
    gateway.control_error = RuntimeError("secret detail")
    answer = await call("POST", POOL + "/drain", {"deadline_ms": 1})
    assert (answer.status, answer.json["code"]) == (500, "INTERNAL")
    assert b"secret" not in answer.body


@pytest.mark.req("OC-CTRL-2040", "OC-CTRL-2041", "OC-CTRL-2052")
async def test_who_asked_for_what_is_logged(call: Call) -> None:
    with structlog.testing.capture_logs() as logs:
        await call("POST", POOL + "/drain", {"deadline_ms": 1}, x_correlation_id="abc")
        await call("POST", POOL + "/promote", x_correlation_id="def")
    common = {"log_level": "info", "pool_id": "smollm2", "tenant_id": "acme", "client": "test"}
    assert logs == [
        common | {"event": "pool_request_accepted", "action": "drain", "correlation_id": "abc"},
        common
        | {
            "event": "pool_request_refused",
            "action": "promote",
            "correlation_id": "def",
            "code": "CONFLICT",
            "why": "pool `smollm2` has nothing to promote",
        },
    ]
    assert KEY not in repr(logs)


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2103", "ORCH-2104", "ORCH-3033", "ORCH-3095")
async def test_python_callers_have_the_control_plane_too(gateway: FakeGateway) -> None:
    frontend = Frontend(gateway, SETTINGS)
    assert (await frontend.pool_health("smollm2"))["ready"] is True
    assert [pool["pool_id"] for pool in await frontend.pools()] == ["smollm2"]
    assert (await frontend.replica_sets())[0]["load"] == 0.25
    assert (await frontend.capabilities())["engines"][0]["engine"] == "llamacpp"
    assert await frontend.reload("smollm2", ex.NEXT_MODEL, 10) == {"pool_id": "smollm2", "status": "accepted"}
    await frontend.promote("smollm2")
    await frontend.reload("smollm2", ex.NEXT_MODEL)
    await frontend.rollback("smollm2")
    await frontend.drain("smollm2", 0)
    assert [action for action, _, _ in gateway.asked] == ["reload", "promote", "reload", "rollback", "drain"]
    assert gateway.asked[0][2] == ReloadRequest(ex.NEXT_MODEL, 10)
    for refused in (frontend.drain("smollm2", -1), frontend.reload("smollm2", ""), frontend.promote("Not an id")):
        with pytest.raises(OrchError, match=r"INVALID_PARAMS|NOT_FOUND"):
            await refused
