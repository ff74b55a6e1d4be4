"""Bodies that are late are cut off; others cost no timer of their own, and other cancellations stay what they are."""

import asyncio

import pytest

from orchestrator.ingress.app import build_app
from orchestrator.ingress.body_deadlines import BodyDeadlines, BodyTooSlow
from orchestrator.ingress.settings import IngressSettings
from tests.unit.ingress.asgi import SETTINGS, Exchange, task_body, until
from tests.unit.ingress.fake_gateway import FakeGateway


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


async def at_once() -> bytes:
    return b"body"


async def test_what_is_late_is_cut_off_and_what_is_not_is_returned() -> None:
    deadlines = BodyDeadlines(50)
    slow = [asyncio.ensure_future(deadlines.within(never)) for _ in range(3)]
    await asyncio.sleep(0)
    assert await deadlines.within(at_once) == b"body"
    for task in slow:
        with pytest.raises(BodyTooSlow):
            await asyncio.wait_for(task, 10)
    assert deadlines._waiting == {}
    assert deadlines._late == set()
    await until(lambda: not deadlines._is_looking)
    with pytest.raises(BodyTooSlow):
        await asyncio.wait_for(deadlines.within(never), 10)


async def test_a_cancellation_from_elsewhere_goes_on() -> None:
    deadlines = BodyDeadlines(60_000)
    task = asyncio.ensure_future(deadlines.within(never))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deadlines._waiting == {}


async def test_a_failure_while_reading_goes_on() -> None:
    async def failing() -> bytes:
        raise ValueError("gone")

    deadlines = BodyDeadlines(60_000)
    with pytest.raises(ValueError, match="gone"):
        await deadlines.within(failing)
    assert deadlines._waiting == {}


@pytest.mark.req("OC-CTRL-2030", "ORCH-2006")
@pytest.mark.parametrize(("path", "counted"), [("/v1/tasks", True), ("/v1/pools/smollm2/drain", False)])
async def test_a_late_body_is_answered_and_counted(path: str, counted: bool) -> None:
    gateway = FakeGateway()
    app = build_app(gateway, IngressSettings(keys=SETTINGS.keys, request_timeout_ms=50))
    exchange = Exchange(app, "POST", path, task_body())
    first = exchange.incoming.get_nowait()
    exchange.incoming.put_nowait({**first, "body": b'{"task_id"', "more_body": True})
    await exchange.done()
    assert (exchange.status, exchange.json["code"]) == (400, "INVALID_PARAMS")
    assert "50 ms" in exchange.json["message"]
    assert exchange.headers["connection"] == "close"
    assert gateway.rejected == ([("unknown", "INVALID_PARAMS")] if counted else [])
    assert gateway.tasks == {}
