"""The client: streams that survive broken connections, errors that stay typed."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from contracts.api import End, Started, TaskRequest, Token
from contracts.errors import OrchError
from contracts.tasks import RESULT_BYTES_MAX
from orchestrator import sse
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError, StreamBrokenError
from orchestrator.client_patience import ATTEMPTS_AGAIN_MAX, ATTEMPTS_MAX, Patience
from orchestrator.sse import EVENT_BYTES_MAX, SseParser
from tests.unit.cli.conftest import Script

ID = UUID(int=1)
REQUEST = TaskRequest(
    task_id=ID,
    session_id=ID,
    workload="completion",
    model_ref="m",
    engine="llamacpp",
    ctx=64,
    priority="batch",
    max_tokens=8,
    deadline_ms=1000,
    prompt="hi",
)


def client(url: str) -> Client:
    return Client(url, "secret", backoff_first_s=0.001)


async def test_one_call_gives_every_event_once(server: str, script: Script) -> None:
    async with client(server) as c:
        events = [event async for event in c.run(REQUEST)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], End)
    assert "".join(e.t for e in events if isinstance(e, Token)) == "Grüße aus Bonn."
    assert script.keys == ["Bearer secret"]
    assert script.bodies[0]["prompt"] == "hi"


@pytest.mark.req("ORCH-2002")
@pytest.mark.parametrize("cuts", [[0], [2], [1, 1, 1], [3, 0, 0, 1]])
async def test_a_cut_stream_is_taken_up_where_it_stopped(server: str, script: Script, cuts: list[int]) -> None:
    script.cuts = list(cuts)
    async with client(server) as c:
        events = [event async for event in c.run(REQUEST)]
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.i for token in tokens] == [0, 1, 2, 3, 4]
    assert sum(isinstance(event, Started) for event in events) == 1
    assert len(script.bodies) == 1
    seen = [sum(cuts[: n + 1]) for n in range(len(cuts))]
    assert script.resumed_at == [None] + [str(count - 1) if count else None for count in seen]


async def test_a_stream_that_never_goes_on_is_given_up(server: str, script: Script) -> None:
    script.cuts = [1] + [0] * 50
    async with client(server) as c:
        with pytest.raises(StreamBrokenError):
            _ = [event async for event in c.stream("t")]
    assert len(script.resumed_at) == ATTEMPTS_AGAIN_MAX


@pytest.mark.req("ORCH-2002")
@pytest.mark.parametrize("method", ["run", "stream"])
async def test_a_stream_that_is_refused_for_now_is_asked_for_again(
    server: str, script: Script, refused: Callable[[str], dict[str, Any]], method: str
) -> None:
    script.cuts = [2]
    script.not_now = [(503, refused("POOL_UNAVAILABLE")), (429, refused("ADMISSION_REJECT"))]
    async with client(server) as c:
        tokens = [e.i async for e in (c.run(REQUEST) if method == "run" else c.stream("t")) if isinstance(e, Token)]
    assert tokens == [0, 1, 2, 3, 4]
    assert len(script.resumed_at) == 4
    assert len(script.bodies) == (method == "run")


async def test_a_stream_that_is_refused_for_good_is_not_asked_for_again(
    server: str, script: Script, refused: Callable[[str], dict[str, Any]]
) -> None:
    script.not_now = [(404, refused("NOT_FOUND") | {"retriable": False})]
    async with client(server) as c:
        with pytest.raises(OrchError, match="NOT_FOUND"):
            _ = [event async for event in c.stream("t")]
    assert len(script.resumed_at) == 1


@pytest.mark.parametrize(("is_known", "attempts"), [(False, ATTEMPTS_MAX), (True, ATTEMPTS_AGAIN_MAX)])
async def test_a_service_that_was_heard_has_longer_to_come_back(
    server: str, script: Script, is_known: bool, attempts: int
) -> None:
    async with client(server) as c:
        if is_known:
            await c.submit(REQUEST)
        script.away = [502] * 50
        with pytest.raises(CannotConnectError):
            await anext(c.stream("t"))
    assert script.away_for == attempts


async def test_the_service_says_how_long_to_wait_within_the_longest_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("orchestrator.client_patience.asyncio.sleep", sleep)
    patience = Patience(0.2)
    for _ in range(9):
        patience.failed(brought_something=False)
        await patience.wait()
    patience.failed(brought_something=True)
    for asked_s in (0.0, 1.5, 60.0):
        await patience.wait(asked_s)
    assert slept == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0, 0.2, 1.5, 5.0]


async def test_stream_starts_after_the_token_it_is_told(server: str, script: Script) -> None:
    async with client(server) as c:
        tokens = [event.i async for event in c.stream("t", after=2) if isinstance(event, Token)]
    assert tokens == [3, 4]
    assert script.resumed_at == ["2"]


@pytest.mark.req("ORCH-2006")
async def test_a_refusal_is_raised_as_it_was_sent(
    server: str, script: Script, refused: Callable[[str], dict[str, Any]]
) -> None:
    script.refusal = (429, refused("ADMISSION_REJECT"))
    async with client(server) as c:
        with pytest.raises(OrchError) as caught:
            await c.submit(REQUEST)
        assert (caught.value.info.code, caught.value.info.retry_after_ms) == ("ADMISSION_REJECT", 1500)
        with pytest.raises(OrchError, match="ADMISSION_REJECT"):
            _ = [event async for event in c.run(REQUEST)]


async def test_an_error_event_ends_the_stream(
    server: str, script: Script, refused: Callable[[str], dict[str, Any]]
) -> None:
    script.error = refused("WORKER_RESET")
    async with client(server) as c:
        with pytest.raises(OrchError, match="WORKER_RESET"):
            _ = [event async for event in c.run(REQUEST)]
    assert script.resumed_at == [None]


@pytest.mark.req("ORCH-3024", "ORCH-3025")
@pytest.mark.parametrize("status", [404, 502, 503])
async def test_a_task_is_sent_again_while_something_else_answers_for_the_service(
    server: str, script: Script, status: int
) -> None:
    async with client(server) as c:
        script.away = [status] * (ATTEMPTS_MAX - 1)
        assert (await c.submit(REQUEST)).queue_position == 1
        script.away = [status] * (ATTEMPTS_MAX - 1)
        events = [event async for event in c.run(REQUEST)]
        script.away = [status] * 2
        attached = [event async for event in c.stream("t")]
    assert isinstance(events[-1], End)
    assert isinstance(attached[-1], End)
    assert len(script.bodies) == 2


@pytest.mark.req("ORCH-3025")
async def test_a_service_that_stays_away_is_given_up(server: str, script: Script) -> None:
    for count in (1, 2):
        script.away = [502] * 50
        async with client(server) as c:
            with pytest.raises(CannotConnectError, match="HTTP 502 without an error envelope"):
                await (c.submit(REQUEST) if count == 1 else anext(c.run(REQUEST)))
        assert script.away_for == count * ATTEMPTS_MAX


async def test_an_answer_that_will_not_become_another_is_not_asked_for_again(server: str, script: Script) -> None:
    script.away = [413] * 2
    async with client(server) as c:
        for call in (c.submit(REQUEST), anext(c.run(REQUEST))):
            with pytest.raises(CannotConnectError, match="HTTP 413"):
                await call
    assert script.away_for == 2


async def test_a_submission_that_was_cut_off_is_followed_and_not_sent_again(server: str, script: Script) -> None:
    script.cuts = [0]
    async with client(server) as c:
        script.away = [502]
        events = [event async for event in c.run(REQUEST)]
    assert isinstance(events[-1], End)
    assert len(script.bodies) == 1


async def test_submit_cancel_status_and_readiness(server: str, script: Script) -> None:
    script.ready = False
    async with client(server) as c:
        assert (await c.submit(REQUEST)).queue_position == 1
        await c.cancel("t")
        assert (await c.status("t")).state == "running"
        assert not (await c.readiness()).ready
    assert script.canceled == ["t"]


@pytest.mark.req("ORCH-2004", "ORCH-2005")
async def test_a_session_is_looked_at_and_ended(server: str, script: Script) -> None:
    script.session = {"ttl_ms_remaining": 5, "turns": 2, "kv_bytes": 7, "kv_warmth": True, "novelty": 1}
    async with client(server) as c:
        session = await c.session("s")
        assert (session.turns, session.kv_warmth, session.tokens_budget_remaining) == (2, True, None)
        await c.close_session("s")
        with pytest.raises(OrchError, match="NOT_FOUND"):
            await c.session("s")


async def test_nothing_listening_is_its_own_error(unused_tcp_port: int) -> None:
    async with client(f"http://127.0.0.1:{unused_tcp_port}") as c:
        with pytest.raises(CannotConnectError):
            _ = [event async for event in c.run(REQUEST)]
        with pytest.raises(CannotConnectError):
            await c.readiness()


def test_events_are_the_same_however_the_bytes_are_split() -> None:
    text = ': c\r\nid: 3\r\nevent: token\r\ndata: {"t":\r\ndata:"ü"}\r\n\r\nretry: 5\ndata: x\n\n\n'
    whole = list(SseParser().feed(text.encode()))
    assert whole == [("token", '{"t":\n"ü"}'), ("message", "x")]
    assert json.loads(whole[0][1]) == {"t": "ü"}
    for size in (1, 2, 3, 7):
        raw, parser = text.encode(), SseParser()
        chunks = [raw[n : n + size] for n in range(0, len(raw), size)]
        assert [event for chunk in chunks for event in parser.feed(chunk)] == whole


@pytest.mark.parametrize("unit", [b"x" * 1024, b"data: " + b"x" * 1024 + b"\n", b"data:\n" * 1024])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, unit: bytes) -> None:
    assert EVENT_BYTES_MAX > RESULT_BYTES_MAX
    # Every kilobyte counts alike: a lower limit is reached in the same way, and sooner.
    units_max = 64
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", units_max * 1024)
    parser = SseParser()
    for _ in range(units_max - 1):
        assert list(parser.feed(unit)) == []
    with pytest.raises(ValueError, match=f"larger than {units_max * 1024} bytes"):
        _ = [list(parser.feed(unit)) for _ in range(3)]


def test_one_long_event_in_many_chunks_is_read_in_linear_time_and_bounded() -> None:
    parser = SseParser()
    data = "[" + ",".join(["0.123456789012345"] * 200_000) + "]"
    block = f"event: end\ndata: {data}\n\n".encode()
    found = [event for n in range(0, len(block), 1000) for event in parser.feed(block[n : n + 1000])]
    assert found == [("end", data)]
    assert list(parser.feed(b"event: end\ndata: x\n\nda")) == [("end", "x")]
    assert list(parser.feed(b"ta: y\n")) == []
    assert list(parser.feed(b"\n")) == [("message", "y")]
