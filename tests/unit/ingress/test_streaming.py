"""Event streams: framing, order, re-attachment, silence, and clients that leave."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from contracts import openapi_examples as ex
from contracts.api import End, Metrics, Token
from contracts.errors import ErrorInfo
from contracts.gateway import Tokens
from orchestrator.ingress.app import build_app
from orchestrator.ingress.sse import format_event
from tests.unit.ingress.asgi import SETTINGS, Call, Exchange, task_body, until
from tests.unit.ingress.fake_gateway import FakeGateway

STREAM = f"/v1/tasks/{ex.TASK_ID}/stream"
TEXTS = [" A", "", "\u00e9\n\r\u2028", '"\\', "\x00\x1f", " end"]
FINISHED = [ex.STARTED, Tokens(0, TEXTS[:2]), ex.METRICS, Tokens(2, TEXTS[2:]), ex.END]


async def admit(call: Call, **changes: Any) -> None:
    assert (await call("POST", "/v1/tasks", task_body(task_id=ex.TASK_ID, **changes))).status == 202


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022", "OC-CTRL-2023", "ORCH-3029")
async def test_a_stream_has_the_five_events_in_order(call: Call, gateway: FakeGateway) -> None:
    gateway.script = list(FINISHED)
    await admit(call)
    answer = await call("GET", STREAM)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    names = [name for _, name, _ in answer.events]
    assert names == ["started", "token", "token", "metrics", "token", "token", "token", "token", "end"]
    tokens = [(event_id, data) for event_id, name, data in answer.events if name == "token"]
    assert tokens == [(str(i), {"t": text, "i": i}) for i, text in enumerate(TEXTS)]
    assert all(event_id is None for event_id, name, _ in answer.events if name != "token")
    started = answer.events[0][2]
    assert (started["queue_position"], started["predicted_start_ms"]) == (3, 420)
    assert answer.complete
    assert gateway.streams_open == 0


@pytest.mark.req("OC-CTRL-2022")
def test_the_fast_token_format_is_the_contracts_json() -> None:
    block = format_event(Tokens(7, TEXTS)).decode()
    for i, (text, event) in enumerate(zip(TEXTS, block.split("\n\n"), strict=False), 7):
        assert event == f"id: {i}\nevent: token\ndata: {msgspec.json.encode(Token(text, i)).decode()}"
        assert json.loads(event.partition("data: ")[2]) == {"t": text, "i": i}


async def test_tokens_that_are_there_together_are_sent_together(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, ["x"] * 500), ex.END]
    await admit(call)
    answer = await call("GET", STREAM)
    assert len(answer.events) == 502
    assert len(answer.messages) == 4  # Head, started, all tokens, end.


@pytest.mark.req("ORCH-2002")
@pytest.mark.parametrize(("given", "first"), [("-1", 0), ("0", 1), ("3", 4), ("5", 6), ("99", 6), (" 3 ", 4)])
async def test_a_client_goes_on_after_the_last_token_it_has(
    call: Call, gateway: FakeGateway, given: str, first: int
) -> None:
    gateway.script = list(FINISHED)
    await admit(call)
    answer = await call("GET", STREAM, last_event_id=given)
    assert answer.events[0][1] == "started"
    assert [data["i"] for _, name, data in answer.events if name == "token"] == list(range(first, len(TEXTS)))
    assert answer.events[-1][1] == "end"


@pytest.mark.parametrize("bad", ["x", "1.5", "-2", "+1", "1 2", "0x1", "9" * 19, "\u0663"])
@pytest.mark.parametrize("one_call", [True, False])
async def test_a_bad_last_event_id_is_refused(
    app: Any, call: Call, gateway: FakeGateway, bad: str, one_call: bool
) -> None:
    await admit(call)
    exchange = Exchange(app, "POST" if one_call else "GET", "/v1/tasks" if one_call else STREAM, task_body())
    exchange.scope["headers"] += [(b"last-event-id", bad.encode()), (b"accept", b"text/event-stream")]
    answer = await exchange.done()
    assert (answer.status, answer.json["code"]) == (400, "INVALID_PARAMS")
    assert len(gateway.tasks) == 1


@pytest.mark.req("ORCH-2002", "ORCH-2006")
async def test_an_unknown_task_is_404_and_not_a_stream(call: Call) -> None:
    answer = await call("GET", STREAM, accept="text/event-stream")
    assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND")
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.req("OC-CTRL-2020", "OC-CTRL-2031")
async def test_a_failure_amid_the_stream_is_an_error_event(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, ["a"]), ex.ERRORS["WORKER_RESET"], Tokens(1, ["late"]), ex.END]
    await admit(call)
    answer = await call("GET", STREAM)
    assert [name for _, name, _ in answer.events] == ["started", "token", "error"]
    assert answer.events[-1][2] == ex.plain(ex.ERRORS["WORKER_RESET"])
    assert answer.events[-1][2]["engine"] == "llamacpp"
    assert answer.complete


@pytest.mark.req("OC-CTRL-2020")
async def test_a_stream_that_just_stops_is_an_error_never_a_truncation(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, ["a"])]
    gateway.stream_breaks_off = True
    await admit(call)
    answer = await call("GET", STREAM)
    assert [name for _, name, _ in answer.events] == ["started", "token", "error"]
    assert answer.events[-1][2]["code"] == "INTERNAL"
    assert answer.complete


class BrokenStream(FakeGateway):
    """Fails inside after the first token."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.stream_failure = failure

    async def stream(self, *_arguments: object) -> Any:  # type: ignore[override]
        yield Tokens(0, ["a"])
        raise self.stream_failure


@pytest.mark.req("OC-CTRL-2020", "OC-CTRL-2041")
async def test_an_exception_amid_the_stream_is_an_internal_error_event() -> None:
    gateway = BrokenStream(RuntimeError("secret detail"))
    app = build_app(gateway, SETTINGS)
    answer = await Exchange(app, "POST", "/v1/tasks", task_body(), accept="text/event-stream").done()
    assert [name for _, name, _ in answer.events] == ["token", "error"]
    assert b"secret" not in answer.body
    assert answer.complete


async def test_silence_is_filled_with_comments(gateway: FakeGateway, call: Call) -> None:
    app = build_app(gateway, msgspec.structs.replace(SETTINGS, keepalive_ms=5))
    await admit(call)
    exchange = Exchange(app, "GET", STREAM).start()
    await until(lambda: exchange.body.count(b": keep-alive\n\n") >= 3)
    gateway.feed(ex.TASK_ID, *FINISHED)
    await exchange.done()
    assert [name for _, name, _ in exchange.events][-1] == "end"
    sent = len(exchange.messages)
    await asyncio.sleep(0.03)
    assert len(exchange.messages) == sent  # Nothing follows the end.


async def test_a_stream_follows_the_task_as_it_goes(call: Call, app: Any, gateway: FakeGateway) -> None:
    await admit(call)
    exchange = Exchange(app, "GET", STREAM).start()
    await until(lambda: bool(exchange.messages))
    assert exchange.status == 200  # The head is out before the task has started.
    gateway.feed(ex.TASK_ID, ex.STARTED)
    await until(lambda: len(exchange.events) == 1)
    gateway.feed(ex.TASK_ID, Tokens(0, ["a"]))
    await until(lambda: len(exchange.events) == 2)
    gateway.feed(ex.TASK_ID, Metrics(queue_depth=1), ex.END)
    await exchange.done()
    assert [name for _, name, _ in exchange.events] == ["started", "token", "metrics", "end"]


# ----------------------------------------------------------------- one-call mode


@pytest.mark.req("ORCH-2001", "ORCH-2002", "ORCH-3029")
@pytest.mark.parametrize(
    "accept", ["text/event-stream", "TEXT/Event-Stream;q=1", "application/json, text/event-stream"]
)
async def test_one_call_admits_and_streams(call: Call, gateway: FakeGateway, accept: str) -> None:
    gateway.script = list(FINISHED)
    gateway.admission = {"queue_position": 3, "predicted_start_ms": 420, "backoff_ms": 7}
    body = task_body()
    answer = await call("POST", "/v1/tasks", body, accept=accept)
    assert answer.status == 200
    assert answer.headers["x-queue-position"] == "3"
    assert answer.headers["x-predicted-start-ms"] == "420"
    assert answer.headers["x-backoff-ms"] == "7"
    assert answer.headers["location"] == f"/v1/tasks/{body['task_id']}"
    assert answer.events[0][1] == "started"
    assert answer.events[-1][1] == "end"
    assert gateway.tasks[body["task_id"]].info.cancel_on_disconnect is True


async def test_one_call_again_streams_the_same_task(call: Call, gateway: FakeGateway) -> None:
    gateway.script = list(FINISHED)
    body = task_body()
    first = await call("POST", "/v1/tasks", body)
    again = await call("POST", "/v1/tasks", body, accept="text/event-stream")
    rest = await call("POST", "/v1/tasks", body, accept="text/event-stream", last_event_id="4")
    assert (first.status, again.status, rest.status) == (202, 200, 200)
    assert len([1 for _, name, _ in again.events if name == "token"]) == len(TEXTS)
    assert [data["i"] for _, name, data in rest.events if name == "token"] == [5]


# ----------------------------------------------------------- clients that leave


async def leave(exchange: Exchange, how: str, gateway: FakeGateway) -> None:
    """Go away as different servers tell it: a message, a failing send, a canceled request."""
    if how == "message":
        exchange.disconnect()
        await exchange.done()
    elif how == "send":
        exchange.send_fails = True
        gateway.feed(ex.TASK_ID, Tokens(1, ["b"]))
        await exchange.done()
    else:
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task


@pytest.mark.parametrize("how", ["message", "send", "cancel"])
@pytest.mark.parametrize(
    ("one_call", "asked", "canceled"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
async def test_a_client_that_leaves_cancels_only_what_asked_for_it(
    app: Any, call: Call, gateway: FakeGateway, how: str, one_call: bool, asked: bool | None, canceled: bool
) -> None:
    body = task_body(task_id=ex.TASK_ID)
    if asked is not None:
        body["cancel_on_disconnect"] = asked
    if one_call:
        exchange = Exchange(app, "POST", "/v1/tasks", body, accept="text/event-stream").start()
    else:
        await call("POST", "/v1/tasks", body)
        exchange = Exchange(app, "GET", STREAM).start()
    await until(lambda: gateway.streams_open == 1)
    gateway.feed(ex.TASK_ID, ex.STARTED, Tokens(0, ["a"]))
    await until(lambda: len(exchange.events) == 2)
    await leave(exchange, how, gateway)
    await app._data.departures.drain()
    assert gateway.canceled == ([ex.TASK_ID] if canceled else [])
    assert gateway.streams_open == 0
    assert len(exchange.events) == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_leaves_after_the_end_cancels_nothing(app: Any, gateway: FakeGateway) -> None:
    gateway.script = list(FINISHED)
    exchange = Exchange(app, "POST", "/v1/tasks", task_body(), accept="text/event-stream").start()
    await exchange.done()
    exchange.disconnect()
    await app._data.departures.drain()
    assert gateway.canceled == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


class SlowSubmit(FakeGateway):
    """The task is admitted, but the answer never comes."""

    async def submit(self, *arguments: Any, **options: Any) -> Any:
        await super().submit(*arguments, **options)
        await asyncio.Event().wait()


async def test_a_one_call_client_that_leaves_amid_the_submission_cancels_the_task() -> None:
    gateway = SlowSubmit()
    app = build_app(gateway, SETTINGS)
    exchange = Exchange(app, "POST", "/v1/tasks", task_body(task_id=ex.TASK_ID), accept="text/event-stream").start()
    await until(lambda: ex.TASK_ID in gateway.tasks)
    exchange.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.task
    await app._data.departures.drain()  # type: ignore[attr-defined]
    assert gateway.canceled == [ex.TASK_ID]


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012")
async def test_after_the_204_of_a_cancel_the_stream_ends_without_a_token(
    app: Any, call: Call, gateway: FakeGateway
) -> None:
    await admit(call)
    exchange = Exchange(app, "GET", STREAM).start()
    gateway.feed(ex.TASK_ID, ex.STARTED, Tokens(0, ["a"]))
    await until(lambda: len(exchange.events) == 2)
    assert (await call("POST", f"/v1/tasks/{ex.TASK_ID}/cancel")).status == 204
    gateway.feed(ex.TASK_ID, Tokens(1, ["late"]))
    await exchange.done()
    assert [name for _, name, _ in exchange.events] == ["started", "token", "end"]
    assert exchange.events[-1][2]["finish_reason"] == "canceled"


async def test_two_clients_follow_one_task(app: Any, call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, ["a"]), End(1, 0, "stop", 1)]
    await admit(call)
    first, second = await asyncio.gather(Exchange(app, "GET", STREAM).done(), Exchange(app, "GET", STREAM).done())
    assert first.body == second.body


async def test_a_dropped_task_ends_with_the_reason(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ErrorInfo("QUEUE_FULL_DROP_LRU", "Dropped.", "llamacpp", "smollm2", True, 900, "drop-lru")]
    await admit(call)
    answer = await call("GET", STREAM)
    assert [(name, data["code"]) for _, name, data in answer.events] == [("error", "QUEUE_FULL_DROP_LRU")]
