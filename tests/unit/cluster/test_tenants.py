"""What belongs to one tenant is unknown to another: every route of the data plane, over the real scheduler."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import ALL_ROLES, IngressSettings, Key
from tests.unit.cluster.scripted import MODEL, Cluster, cluster
from tests.unit.ingress.asgi import Exchange, task_body, until

OWNER, STRANGER, COLLEAGUE = "key-of-the-owner", "key-of-a-stranger", "key-of-a-colleague"
SETTINGS = IngressSettings(
    keys=tuple(
        Key(name, tenant, hashlib.sha256(key.encode()).hexdigest(), ALL_ROLES)
        for name, tenant, key in (
            ("owner", "acme", OWNER),
            ("colleague", "acme", COLLEAGUE),
            ("stranger", "rival", STRANGER),
        )
    )
)
#: Method, path after the collection's id, and what the owner is answered.
TASK_ROUTES = [("GET", "", 200), ("GET", "/stream", 200), ("POST", "/cancel", 204)]
SESSION_ROUTES = [("GET", "", 200), ("DELETE", "", 204)]


@pytest.fixture
async def service() -> AsyncIterator[tuple[Cluster, Any]]:
    async with cluster() as (running, gateway):
        yield running, build_app(gateway, SETTINGS)


async def ask(app: Any, key: str, method: str, path: str, body: Any = b"", **headers: str) -> Exchange:
    return await Exchange(app, method, path, body, authorization=f"Bearer {key}", **headers).done()


async def submitted(app: Any, **changes: Any) -> dict[str, Any]:
    body = task_body(model_ref=MODEL, session_id=str(uuid4()), max_tokens=5, deadline_ms=60_000, **changes)
    body.pop("seed", None)
    answer = await ask(app, OWNER, "POST", "/v1/tasks", body)
    assert answer.status == 202, answer.body
    return body


def canceled(running: Cluster) -> list[str]:
    """Attempts of tasks that the engine was told to cancel."""
    return [attempt for attempt in running.adapters[0].canceled if not attempt.startswith("self-test")]


def is_unknown(answer: Exchange) -> bool:
    return answer.status == 404 and answer.json["code"] == "NOT_FOUND" and b"started" not in answer.body


def test_the_table_has_every_route_with_an_id_of_a_tenants() -> None:
    app: Any = build_app(None, SETTINGS)  # type: ignore[arg-type]  # nothing is asked of it
    of_tenants = {
        (method, collection, action)
        for (collection, action), methods in app._router.item_routes.items()
        for method in methods
        if collection in ("/v1/tasks", "/v1/sessions")
    }
    tested = {(method, "/v1/tasks", path[1:]) for method, path, _ in TASK_ROUTES}
    tested |= {(method, "/v1/sessions", path[1:]) for method, path, _ in SESSION_ROUTES}
    assert of_tenants == tested
    others = {collection for collection, _ in app._router.item_routes} - {"/v1/tasks", "/v1/sessions"}
    assert others == {"/v1/pools"}  # which belong to no tenant


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.parametrize("state", ["running", "finished"])
async def test_tasks_transcripts_and_results_are_unknown_to_other_tenants(
    service: tuple[Cluster, Any], state: str
) -> None:
    running, app = service
    if state == "running":
        running.adapters[0].gate.clear()
    task = await submitted(app, prompt="gated")
    path = f"/v1/tasks/{task['task_id']}"
    if state == "finished":
        stream = await ask(app, OWNER, "GET", path + "/stream")
        assert stream.events[-1][1] == "end"
    else:
        await until(lambda: len(running.adapters[0].active) == 1)
    for method, rest, _ in TASK_ROUTES:
        answer = await ask(app, STRANGER, method, path + rest)
        assert is_unknown(answer), (method, rest, answer.status)
        nobodys = await ask(app, STRANGER, method, f"/v1/tasks/{uuid4()}{rest}")
        assert (nobodys.status, nobodys.json) == (answer.status, answer.json), "it tells that the task exists"
    resumed = await ask(app, STRANGER, "GET", path + "/stream", last_event_id="1")
    assert is_unknown(resumed)
    if state == "running":
        assert canceled(running) == []
        running.adapters[0].gate.set()
    for key in (COLLEAGUE, OWNER):
        stream = await ask(app, key, "GET", path + "/stream")
        assert [data["t"] for _, name, data in stream.events if name == "token"] == [f"t{n} " for n in range(5)]
    for method, rest, status in TASK_ROUTES:
        assert (await ask(app, OWNER, method, path + rest)).status == status


@pytest.mark.req("ORCH-3035", "ORCH-2004", "ORCH-2005")
async def test_sessions_are_unknown_to_other_tenants(service: tuple[Cluster, Any]) -> None:
    _, app = service
    task = await submitted(app)
    await ask(app, OWNER, "GET", f"/v1/tasks/{task['task_id']}/stream")
    path = f"/v1/sessions/{task['session_id']}"
    for method, rest, _ in SESSION_ROUTES:
        answer = await ask(app, STRANGER, method, path + rest)
        assert is_unknown(answer), (method, rest)
        nobodys = await ask(app, STRANGER, method, f"/v1/sessions/{uuid4()}{rest}")
        assert (nobodys.status, nobodys.json) == (answer.status, answer.json)
    for method, rest, status in SESSION_ROUTES:
        assert (await ask(app, OWNER, method, path + rest)).status == status


@pytest.mark.req("ORCH-3035", "ORCH-3024")
async def test_a_task_id_of_another_tenant_is_no_way_to_its_task(service: tuple[Cluster, Any]) -> None:
    _, app = service
    task = await submitted(app, prompt="mine")
    await ask(app, OWNER, "GET", f"/v1/tasks/{task['task_id']}/stream")
    for headers in ({}, {"accept": "text/event-stream"}):
        answer = await ask(app, STRANGER, "POST", "/v1/tasks", task, **headers)
        assert (answer.status, answer.json["code"]) == (409, "TASK_ID_CONFLICT")
        assert b"t0" not in answer.body
    repeated = await ask(app, OWNER, "POST", "/v1/tasks", task)
    assert repeated.status == 202


@pytest.mark.req("ORCH-3035", "ORCH-2004")
async def test_one_session_id_is_two_sessions_for_two_tenants(service: tuple[Cluster, Any]) -> None:
    _, app = service
    task = await submitted(app)
    await ask(app, OWNER, "GET", f"/v1/tasks/{task['task_id']}/stream")
    path = f"/v1/sessions/{task['session_id']}"
    before = (await ask(app, OWNER, "GET", path)).json
    same = {**task, "task_id": str(uuid4())}
    assert (await ask(app, STRANGER, "POST", "/v1/tasks", same)).status == 202
    await ask(app, STRANGER, "GET", f"/v1/tasks/{same['task_id']}/stream")
    assert (await ask(app, STRANGER, "DELETE", path)).status == 204
    after = (await ask(app, OWNER, "GET", path)).json
    assert after["turns"] == before["turns"]


@pytest.mark.req("ORCH-3035")
async def test_a_strangers_leaving_cancels_nothing(service: tuple[Cluster, Any]) -> None:
    running, app = service
    running.adapters[0].gate.clear()
    task = await submitted(app, prompt="gated", cancel_on_disconnect=True)
    await until(lambda: len(running.adapters[0].active) == 1)
    app._data.departures.left(task["task_id"], "rival", "correlation")
    await app._data.departures.drain()
    assert canceled(running) == []
    running.adapters[0].gate.set()
    async with asyncio.timeout(10):
        stream = await ask(app, OWNER, "GET", f"/v1/tasks/{task['task_id']}/stream")
    assert stream.events[-1][1] == "end"
