"""A scripted data plane, on a real socket, for the client and the command line."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

STARTED = {
    "queue_position": 2,
    "predicted_start_ms": 5,
    "engine": "llamacpp",
    "engine_version": "b1",
    "model_digest": "sha256:00",
    "pool_id": "dev",
    "replica_id": "dev-0",
    "accelerator": "cpu-dev",
    "seed": 7,
    "attempt": 1,
    "sampler_profile_version": "v1",
    "queue_time_ms": 1,
    "kv_warmth": False,
}


@dataclass
class Script:
    """What the server does, and what it was asked.

    `cuts` says after how many tokens each connection in turn is cut off; the one after them is whole.
    """

    results: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=lambda: ["Grü", "ße", " aus", " Bonn", "."])
    cuts: list[int] = field(default_factory=list)
    #: Statuses that something else answers with first, in the place of the service.
    away: list[int] = field(default_factory=list)
    away_for: int = 0
    refusal: tuple[int, dict[str, Any] | str] | None = None
    #: Status and envelope of attaches that are refused first.
    not_now: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    hang_after: int | None = None
    ready: bool = True
    frames: list[dict[str, Any]] = field(default_factory=list)
    session: dict[str, Any] | None = None
    why: str | None = None
    resumed_at: list[str | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)


def event(name: str, data: object, id_: int | None = None) -> bytes:
    head = "" if id_ is None else f"id: {id_}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def proxy_of(script: Script) -> Any:
    """What answers in the place of the service as long as `away` says."""

    @web.middleware
    async def proxy(request: web.Request, handler: Any) -> web.StreamResponse:
        if not script.away:
            answer: web.StreamResponse = await handler(request)
            return answer
        script.away_for += 1
        return web.Response(status=script.away.pop(0), text="<html>not here</html>")

    return proxy


def application(script: Script) -> web.Application:
    async def submit(request: web.Request) -> web.StreamResponse:
        script.bodies.append(await request.json())
        script.keys.append(request.headers.get("Authorization"))
        if script.refusal is not None:
            status, body = script.refusal
            return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))
        if request.headers.get("Accept") == "text/event-stream":
            return await stream(request)
        admission = {"task_id": "t", "queue_position": 1, "predicted_start_ms": 2, "backoff_ms": 0}
        return web.json_response(admission, status=202)

    async def stream(request: web.Request) -> web.StreamResponse:
        last = request.headers.get("Last-Event-ID")
        script.resumed_at.append(last)
        if request.method == "GET" and script.not_now:
            status, envelope = script.not_now.pop(0)
            return web.json_response(envelope, status=status)
        first = int(last) + 1 if last else 0
        stop = first + script.cuts.pop(0) if script.cuts else None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n" + event("started", STARTED) + event("novelty", {"x": 1}))
        for frame in script.frames:
            await response.write(event("metrics", frame))
        for i, text in list(enumerate(script.texts))[first:stop]:
            if i == script.hang_after:
                script.hanging.set()
                await asyncio.sleep(30)
            data = event("token", {"t": text, "i": i}, i)
            # In two writes, the border inside a character where there is one.
            await response.write(data[:-7])
            await response.write(data[-7:])
        if stop is not None:
            assert request.transport is not None
            request.transport.abort()
        elif script.error is not None:
            await response.write(event("error", script.error))
        else:
            end = {"tokens_out": len(script.texts), "decode_ms": 9, "finish_reason": "stop", "tokens_in": 3}
            end |= script.results
            await response.write(event("metrics", {"queue_depth": 0}) + event("end", end))
        return response

    async def cancel(request: web.Request) -> web.Response:
        script.canceled.append(request.match_info["id"])
        return web.Response(status=204)

    async def status(request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        return web.json_response(
            {"task_id": id_, "state": "running", "engine": "llamacpp", "model_ref": "m", "priority": "batch"}
            | {"attempt": 1, "tokens_in": 0, "tokens_out": 0, "decode_ms": 0}
            | ({"why": script.why} if script.why else {})
        )

    async def readyz(_: web.Request) -> web.Response:
        body = {"ready": script.ready, "pools": {"dev": "1 of 1 replicas ready" if script.ready else "loading"}}
        return web.json_response(body, status=200 if script.ready else 503)

    app = web.Application(middlewares=[proxy_of(script)])
    app.router.add_post("/v1/tasks", submit)
    app.router.add_get("/v1/tasks/{id}/stream", stream)
    app.router.add_get("/v1/tasks/{id}", status)
    app.router.add_post("/v1/tasks/{id}/cancel", cancel)
    add_sessions(app, script)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_page)
    return app


async def metrics_page(_: web.Request) -> web.Response:
    text = (
        "# TYPE queue_depth gauge\n"
        'queue_depth{engine="llamacpp",pool_id="a",priority="batch"} 3\n'
        'queue_depth{engine="llamacpp",pool_id="b",priority="batch"} 4\n'
    )
    return web.Response(text=text)


def add_sessions(app: web.Application, script: Script) -> None:
    async def session(_request: web.Request) -> web.Response:
        if script.session is None:
            return web.json_response({"code": "NOT_FOUND", "message": "no such session"}, status=404)
        return web.json_response(script.session)

    async def close_session(_request: web.Request) -> web.Response:
        script.session = None
        return web.Response(status=204)

    app.router.add_get("/v1/sessions/{id}", session)
    app.router.add_delete("/v1/sessions/{id}", close_session)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(script: Script) -> AsyncIterator[str]:
    """URL of a server on the test's own loop."""
    test_server = TestServer(application(script), shutdown_timeout=0)
    await test_server.start_server()
    yield str(test_server.make_url("/"))
    await test_server.close()


@pytest.fixture
def threaded_server(script: Script) -> Iterator[str]:
    """URL of a server on a thread, for commands that run a loop of their own."""
    loop = asyncio.new_event_loop()
    test_server = TestServer(application(script), shutdown_timeout=0)
    loop.run_until_complete(test_server.start_server())
    url = str(test_server.make_url("/"))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield url
    asyncio.run_coroutine_threadsafe(test_server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def refused() -> Callable[[str], dict[str, Any]]:
    """An error envelope."""
    return lambda code: {"code": code, "message": "because", "retriable": True, "retry_after_ms": 1500}
