"""Routes, authentication, correlation ids, health and documents."""

from collections.abc import MutableMapping
from typing import Any
from uuid import UUID

import pytest
import structlog
import yaml

from contracts import openapi_examples as ex
from contracts.api import API_VERSION, End
from contracts.errors import ErrorInfo
from contracts.gateway import Readiness
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import CONTROL_PLANE_DOCUMENT, DATA_PLANE_DOCUMENT, IngressSettings
from tests.unit.ingress.asgi import KEY, OTHER_KEY, Call, Exchange, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

TASK = f"/v1/tasks/{ex.TASK_ID}"
SESSION = f"/v1/sessions/{ex.SESSION_ID}"
EVERY_ANSWER = [
    ("POST", "/v1/tasks", task_body(task_id=ex.TASK_ID), {}, 202),
    ("POST", "/v1/tasks", task_body(), {"accept": "text/event-stream"}, 200),
    ("POST", "/v1/tasks", b"{", {}, 400),
    ("POST", "/v1/tasks", b"x" * 20_000, {}, 413),
    ("GET", "/v1/tasks", b"", {}, 405),
    ("GET", TASK, b"", {}, 404),
    ("GET", TASK + "/stream", b"", {}, 404),
    ("POST", TASK + "/cancel", b"", {}, 404),
    ("GET", "/v1/tasks/nonsense", b"", {}, 400),
    ("GET", SESSION, b"", {}, 404),
    ("DELETE", SESSION, b"", {}, 404),
    ("POST", SESSION, b"", {}, 405),
    ("GET", "/v1/sessions/nonsense", b"", {}, 400),
    ("GET", "/v1/nothing", b"", {}, 404),
    ("GET", "/nothing", b"", {}, 404),
    ("GET", TASK, b"", {"authorization": ""}, 401),
    ("GET", TASK, b"", {"authorization": "Bearer wrong"}, 403),
    ("GET", "/healthz", b"", {}, 200),
    ("GET", "/readyz", b"", {}, 200),
    ("GET", "/metrics", b"", {}, 200),
    ("GET", "/docs", b"", {}, 200),
    ("GET", "/openapi.json", b"", {}, 200),
    ("GET", "/openapi-control.json", b"", {}, 200),
    ("GET", "/v1/pools", b"", {}, 200),
    ("GET", "/v1/pools/smollm2/health", b"", {}, 200),
    ("POST", "/v1/pools/smollm2/drain", {"deadline_ms": 0}, {}, 202),
    ("POST", "/v1/pools/smollm2/drain", b"", {}, 400),
    ("POST", "/v1/pools/nobody/drain", {"deadline_ms": 0}, {}, 404),
    ("POST", "/v1/pools/smollm2/promote", b"", {}, 409),
    ("POST", "/v1/pools/smollm2/reload", b"x" * 20_000, {}, 413),
    ("GET", "/v1/pools/smollm2/drain", b"", {}, 405),
]


@pytest.mark.req("OC-CTRL-2052")
@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), EVERY_ANSWER)
async def test_the_correlation_id_is_on_every_answer(
    call: Call, gateway: FakeGateway, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    gateway.script = [ex.STARTED, ex.END]
    echoed = await call(method, path, body, x_correlation_id="abc-1~!", **headers)
    assert (echoed.status, echoed.headers["x-correlation-id"]) == (status, "abc-1~!")
    made = await call(method, path, body, **headers)
    assert UUID(made.headers["x-correlation-id"]).version == 4


@pytest.mark.req("OC-CTRL-2052", "ORCH-2003")
async def test_the_correlation_id_is_on_a_204_and_in_the_task(call: Call, gateway: FakeGateway) -> None:
    await call("POST", "/v1/tasks", task_body(task_id=ex.TASK_ID), x_correlation_id="first")
    answer = await call("POST", TASK + "/cancel", x_correlation_id="second")
    assert (answer.status, answer.body, answer.headers) == (204, b"", {"x-correlation-id": "second"})
    assert answer.complete
    assert gateway.tasks[ex.TASK_ID].info.correlation_id == "first"


@pytest.mark.req("OC-CTRL-2052")
@pytest.mark.parametrize("bad", ["x" * 129, "a b", "a\tb", "caf\u00e9", "a\r\nset-cookie: b"])
async def test_a_bad_correlation_id_is_replaced(call: Call, bad: str) -> None:
    answer = await call("GET", "/healthz", x_correlation_id=bad)
    assert UUID(answer.headers["x-correlation-id"])
    assert (await call("GET", "/healthz", x_correlation_id="x" * 128)).headers["x-correlation-id"] == "x" * 128


GUARDED = [
    ("POST", "/v1/tasks"),
    ("GET", TASK),
    ("GET", TASK + "/stream"),
    ("POST", TASK + "/cancel"),
    ("GET", SESSION),
    ("DELETE", SESSION),
    ("GET", "/v1/x"),
    ("GET", "/v1/pools"),
    ("GET", "/v1/pools/smollm2/health"),
    ("POST", "/v1/pools/smollm2/drain"),
    ("POST", "/v1/pools/smollm2/reload"),
    ("POST", "/v1/pools/smollm2/promote"),
    ("POST", "/v1/pools/smollm2/rollback"),
    ("GET", "/v1/replicasets"),
    ("GET", "/v1/capabilities"),
]


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_everything_under_v1_needs_a_key(call: Call, method: str, path: str) -> None:
    missing = await call(method, path, authorization="")
    assert (missing.status, missing.json["code"]) == (401, "UNAUTHENTICATED")
    assert missing.headers["www-authenticate"].startswith("Bearer")
    wrong = await call(method, path, authorization="Bearer nope")
    assert (wrong.status, wrong.json["code"]) == (403, "FORBIDDEN")


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 202),
        ({"authorization": f"bearer   {KEY}"}, 202),
        ({"authorization": "", "x_api_key": KEY}, 202),
        ({"authorization": "Basic abc", "x_api_key": KEY}, 202),
        ({"authorization": "Bearer wrong", "x_api_key": KEY}, 403),
        ({"authorization": f"Bearer {KEY}x"}, 403),
        ({"authorization": f"Bearer {KEY.upper()}"}, 403),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": KEY}, 401),
    ],
)
async def test_how_a_key_is_presented(call: Call, headers: dict[str, str], status: int) -> None:
    assert (await call("POST", "/v1/tasks", task_body(), **headers)).status == status


@pytest.mark.req("OC-CTRL-2040")
async def test_a_refused_key_counts_as_a_rejected_submission(call: Call, gateway: FakeGateway) -> None:
    await call("POST", "/v1/tasks", task_body(), authorization="")
    await call("GET", TASK, authorization="")
    assert gateway.rejected == [("unknown", "UNAUTHENTICATED")]


@pytest.mark.req("ORCH-3035")
async def test_another_tenants_task_is_unknown(call: Call) -> None:
    await call("POST", "/v1/tasks", task_body(task_id=ex.TASK_ID))
    rival = {"authorization": f"Bearer {OTHER_KEY}"}
    for method, path in (("GET", TASK), ("GET", TASK + "/stream"), ("POST", TASK + "/cancel")):
        assert (await call(method, path, **rival)).status == 404
    assert (await call("GET", TASK)).status == 200


async def test_without_authentication_all_is_the_default_tenant(gateway: FakeGateway) -> None:
    app = build_app(gateway, IngressSettings(auth_enabled=False))
    body = task_body()
    answer = await Exchange(app, "POST", "/v1/tasks", body, authorization="").done()
    assert answer.status == 202
    assert gateway.tasks[body["task_id"]].info.tenant == "default"


@pytest.mark.req("OC-CTRL-2050", "ORCH-3029", "ORCH-3094", "OC-CTRL-2041")
async def test_the_admission_log_has_its_fields_and_no_secret(call: Call, gateway: FakeGateway) -> None:
    gateway.admission = {
        "queue_position": 3,
        "predicted_start_ms": 420,
        "backoff_ms": 0,
        "on_time_probability": 0.9,
    }
    body = task_body(prompt="my private prompt")
    with structlog.testing.capture_logs() as logs:
        await call("POST", "/v1/tasks", body, x_correlation_id="abc")
        await call("POST", "/v1/tasks", body, authorization="Bearer wrong-key")
        await call("POST", "/v1/tasks", body | {"ctx": 0})
    admitted: list[MutableMapping[str, Any]] = [line for line in logs if line["event"] == "task_admitted"]
    assert admitted == [
        {
            "event": "task_admitted",
            "log_level": "info",
            "job_id": body["task_id"],
            "session_id": body["session_id"],
            "tenant_id": "acme",
            "engine": "llamacpp",
            "accelerator": "gpu",
            "priority": "interactive",
            "deadline_ms": 30_000,
            "queue_position": 3,
            "predicted_start_ms": 420,
            "on_time_probability": 0.9,
            "correlation_id": "abc",
        }
    ]
    for secret in (KEY, "wrong-key", "private"):
        assert secret not in repr(logs)


@pytest.mark.req("ORCH-3094", "OC-CTRL-2041")
async def test_a_refusal_is_logged_with_its_reason(call: Call, gateway: FakeGateway) -> None:
    gateway.refusal = ErrorInfo("DEADLINE_UNMET", "It would end too late.", "llamacpp", earliest_deadline_ms=9000)
    with structlog.testing.capture_logs() as logs:
        answer = await call("POST", "/v1/tasks", task_body(prompt="my private prompt"))
    assert answer.json["earliest_deadline_ms"] == 9000
    (line,) = logs
    assert (line["event"], line["code"], line["why"]) == ("task_refused", "DEADLINE_UNMET", "It would end too late.")
    assert (line["tenant_id"], line["deadline_ms"]) == ("acme", 30_000)
    assert "private" not in repr(line)


@pytest.mark.req("ORCH-2006")
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/tasks", "POST"),
        ("DELETE", TASK, "GET"),
        ("POST", TASK + "/stream", "GET"),
        ("GET", TASK + "/cancel", "POST"),
        ("PUT", SESSION, "GET, DELETE"),
        ("POST", "/healthz", "GET"),
        ("OPTIONS", "/docs", "GET"),
        ("POST", "/v1/pools", "GET"),
        ("POST", "/v1/pools/smollm2/health", "GET"),
        ("GET", "/v1/pools/smollm2/drain", "POST"),
        ("PUT", "/v1/pools/smollm2/reload", "POST"),
        ("GET", "/v1/pools/smollm2/promote", "POST"),
        ("GET", "/v1/pools/smollm2/rollback", "POST"),
        ("DELETE", "/v1/replicasets", "GET"),
        ("POST", "/v1/capabilities", "GET"),
    ],
)
async def test_a_wrong_method_is_405_with_allow(call: Call, method: str, path: str, allowed: str) -> None:
    answer = await call(method, path)
    assert (answer.status, answer.json["code"], answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allowed)


@pytest.mark.req("ORCH-2006", "ORCH-3044")
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/tasks/",
        TASK + "/",
        TASK + "/nothing",
        TASK + "/stream/",
        "/v1//stream",
        "/v1/sessions",
        "/v1/sessions/",
        SESSION + "/stream",
        "/v1/pools/",
        "/v1/pools/smollm2",
        "/v1/pools/smollm2/",
        "/v1/pools/smollm2/health/",
        "/v1/pools//health",
        "/v1/pools/smollm2/nothing",
        "/v1/replicasets/x",
        "/v1/chat/completions",
    ],
)
async def test_an_unknown_path_is_404_with_the_envelope(call: Call, path: str) -> None:
    answer = await call("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("bad", ["1", "not-a-uuid", "{" + ex.TASK_ID + "}", "urn:uuid:" + ex.TASK_ID, "%00", "\u00e9"])
async def test_a_path_id_must_be_a_uuid(call: Call, bad: str) -> None:
    answer = await call("GET", f"/v1/tasks/{bad}/stream")
    assert (answer.status, answer.json["code"]) == (400, "INVALID_PARAMS")


@pytest.mark.req("ORCH-2008")
async def test_status_and_case_of_the_id(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, End(tokens_out=0, decode_ms=0, finish_reason="stop", tokens_in=1)]
    await call("POST", "/v1/tasks", task_body(task_id=ex.TASK_ID, labels={"a": "b"}))
    answer = await call("GET", f"/v1/tasks/{ex.TASK_ID.upper()}")
    assert answer.json["task_id"] == ex.TASK_ID
    assert (answer.json["state"], answer.json["engine"], answer.json["labels"]) == ("finished", "llamacpp", {"a": "b"})


@pytest.mark.req("ORCH-3002")
async def test_readiness_and_metrics(call: Call, gateway: FakeGateway) -> None:
    ready = await call("GET", "/readyz", authorization="")
    assert (ready.status, ready.json) == (200, {"ready": True, "pools": {"smollm2": "ready"}})
    gateway.ready = Readiness(False, {"smollm2": "loading"})
    waiting = await call("GET", "/readyz", authorization="")
    assert (waiting.status, waiting.json) == (503, {"ready": False, "pools": {"smollm2": "loading"}})
    metrics = await call("GET", "/metrics", authorization="")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert metrics.body == await gateway.metrics()


@pytest.mark.req("ORCH-3044", "ORCH-3096")
async def test_the_documents(call: Call) -> None:
    data = (await call("GET", "/openapi.json", authorization="")).json
    control = (await call("GET", "/openapi-control.json", authorization="")).json
    assert "/v1/tasks" in data["paths"]
    assert "/v1/pools/{id}/drain" in control["paths"]
    page = await call("GET", "/docs", authorization="")
    text = page.body.decode()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for document in (data, control):
        assert document["info"]["version"] == API_VERSION
        assert document["info"]["title"] in text
        for path, item in document["paths"].items():
            assert path in text
            for method in item.keys() - {"parameters"}:
                assert f'id="{item[method]["operationId"]}"' in text
        for name in document["components"]["schemas"]:
            assert text.count(f'id="schema-{name}"') == 1
    for address in ("/openapi.json", "/openapi-control.json"):
        assert f'href="{address}"' in text
    for schema, document in (("TaskRequest", data), ("PoolHealth", control)):
        for field in document["components"]["schemas"][schema]["properties"]:
            assert f"<code>{field}</code>" in text
    assert "curl -sS -N" in text
    assert "-X DELETE \\\n  -H" in text.replace("&quot;", '"')
    assert "$LLORCH_URL/v1/pools/smollm2/rollback" in text
    assert SESSION in text
    assert "<script" not in text
    assert "src=" not in text
    assert "https://" not in text


def test_a_type_of_one_name_is_the_same_in_both_documents() -> None:
    """The page shows each type once."""
    data, control = (
        yaml.safe_load(path.read_text(encoding="utf-8"))["components"]["schemas"]
        for path in (DATA_PLANE_DOCUMENT, CONTROL_PLANE_DOCUMENT)
    )
    shared = data.keys() & control.keys()
    assert "ErrorInfo" in shared
    assert [name for name in shared if data[name]["properties"].keys() != control[name]["properties"].keys()] == []


async def test_a_mount_point_is_left_out_of_the_path(app: Any) -> None:
    exchange = Exchange(app, "GET", "/api/healthz")
    exchange.scope["root_path"] = "/api"
    assert (await exchange.done()).status == 200


async def test_lifespan_and_other_protocols(app: Any) -> None:
    exchange = Exchange(app, "GET", "/")
    exchange.scope = {"type": "lifespan"}
    exchange.incoming.get_nowait()
    exchange.incoming.put_nowait({"type": "lifespan.startup"})
    exchange.incoming.put_nowait({"type": "lifespan.shutdown"})
    await exchange.done()
    assert [message["type"] for message in exchange.messages] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    exchange = Exchange(app, "GET", "/")
    exchange.scope = {"type": "websocket"}
    with pytest.raises(NotImplementedError):
        await exchange.done()
