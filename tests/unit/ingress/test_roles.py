"""What a key may do: the roles that the OpenAPI documents name are those that the service asks for."""

import hashlib
from typing import Any

import pytest
import yaml

from contracts import openapi_examples as ex
from contracts.config import KeyRole
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import (
    ALL_ROLES,
    CONTROL_PLANE_DOCUMENT,
    DATA_PLANE_DOCUMENT,
    IngressSettings,
    Key,
)
from tests.unit.ingress.asgi import Exchange, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

KEYS = {role: Key(role, "acme", hashlib.sha256(role.encode()).hexdigest(), (role,)) for role in ALL_ROLES}
SETTINGS = IngressSettings(keys=tuple(KEYS.values()))


def operations() -> list[tuple[str, str, str | None]]:
    """Method, path and needed role of every operation that needs a key."""
    found = []
    for path in (DATA_PLANE_DOCUMENT, CONTROL_PLANE_DOCUMENT):
        for address, item in yaml.safe_load(path.read_text(encoding="utf-8"))["paths"].items():
            found += [
                (method.upper(), address, operation.get("x-required-role"))
                for method, operation in item.items()
                if method != "parameters" and address.startswith("/v1/")
            ]
    return found


OPERATIONS = operations()


def body_of(path: str) -> Any:
    last = path.rpartition("/")[2]
    return {"drain": {"deadline_ms": 0}, "reload": {"new_model_ref": "m"}, "tasks": task_body()}.get(last, b"")


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.parametrize("held", ALL_ROLES)
@pytest.mark.parametrize(("method", "path", "needed"), OPERATIONS)
async def test_an_operation_asks_for_the_role_that_its_document_names(
    method: str, path: str, needed: str | None, held: KeyRole
) -> None:
    app = build_app(FakeGateway(), SETTINGS)
    path = path.replace("{id}", "smollm2" if "pools" in path else ex.TASK_ID)
    answer = await Exchange(app, method, path, body_of(path), authorization=f"Bearer {held}").done()
    if needed in (held, None):
        assert answer.status not in (401, 403)
    else:
        assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN")
        assert f"`{needed}`" in answer.json["message"]


def test_every_role_opens_something() -> None:
    assert {needed for _, _, needed in OPERATIONS} == {*ALL_ROLES, None}
    assert [path for _, path, needed in OPERATIONS if needed is None] == ["/v1/capabilities"]


@pytest.mark.req("ORCH-3035")
async def test_every_route_under_v1_is_in_a_document() -> None:
    app: Any = build_app(FakeGateway(), SETTINGS)
    routes = {(method, path) for path, methods in app._router.routes.items() for method in methods if "/v1/" in path}
    for (collection, action), methods in app._router.item_routes.items():
        routes |= {(method, f"{collection}/{{id}}" + (f"/{action}" if action else "")) for method in methods}
    assert routes == {(method, path) for method, path, _ in OPERATIONS}


@pytest.mark.req("OC-CTRL-2040")
async def test_a_refused_role_counts_as_a_rejected_submission() -> None:
    gateway = FakeGateway()
    app = build_app(gateway, SETTINGS)
    await Exchange(app, "POST", "/v1/tasks", task_body(), authorization="Bearer observe").done()
    assert gateway.rejected == [("unknown", "FORBIDDEN")]
    assert gateway.tasks == {}


@pytest.mark.req("OC-CTRL-2040")
@pytest.mark.parametrize(
    ("key", "metrics", "pools"),
    [("observe", 200, True), ("submit", 403, False), ("unknown", 403, False), ("", 401, False)],
)
async def test_metrics_can_be_protected_while_probes_still_work(key: str, metrics: int, pools: bool) -> None:
    app = build_app(FakeGateway(), IngressSettings(keys=tuple(KEYS.values()), protect_metrics=True))
    authorization = f"Bearer {key}" if key else ""
    assert (await Exchange(app, "GET", "/metrics", authorization=authorization).done()).status == metrics
    readiness = await Exchange(app, "GET", "/readyz", authorization=authorization).done()
    assert readiness.status == 200
    assert readiness.json == {"ready": True, "pools": {"smollm2": "ready"} if pools else {}}
    assert (await Exchange(app, "GET", "/healthz", authorization=authorization).done()).status == 200


async def test_metrics_are_open_unless_protected() -> None:
    app = build_app(FakeGateway(), SETTINGS)
    for path in ("/metrics", "/readyz", "/healthz"):
        assert (await Exchange(app, "GET", path, authorization="").done()).status == 200
