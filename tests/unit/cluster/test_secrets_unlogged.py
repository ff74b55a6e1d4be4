"""Secrets and prompts are planted wherever requests pass, and looked for in every line that is logged."""

import asyncio
import base64
import contextlib
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog

from contracts.engine import Chunk, EngineError, EngineExit, Finish, GenerateRequest
from contracts.errors import ErrorInfo
from orchestrator.cluster import logs
from orchestrator.cluster.http_connection import HttpLimits
from orchestrator.cluster.listener import Listener
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import ALL_ROLES, IngressSettings, Key
from tests.unit.cluster.scripted import MODEL, SECRET, ScriptedAdapter, cluster
from tests.unit.ingress.asgi import Exchange, task_body, until

API_KEY = "llk_planted-api-key-0123456789"
WRONG_KEY = "llk_planted-wrong-key-987654321"
PROMPT = "planted-prompt-of-a-client"
ANSWER = "planted-answer-of-a-model"
PLANTED = {
    "API key": API_KEY,
    "its hash": hashlib.sha256(API_KEY.encode()).hexdigest(),
    "wrong key": WRONG_KEY,
    "hash of the wrong key": hashlib.sha256(WRONG_KEY.encode()).hexdigest(),
    "prompt": PROMPT,
    "answer": ANSWER,
    "cluster secret": SECRET.decode(),
    "cluster secret in hex": SECRET.hex(),
    "cluster secret in base64": base64.b64encode(SECRET).decode(),
}
SETTINGS = IngressSettings(keys=(Key("test", "acme", PLANTED["its hash"], ALL_ROLES),), body_max_bytes=20_000)


@pytest.fixture
def lines() -> Iterator[io.BytesIO]:
    """Everything that is logged, by structlog as the service has it and by the standard library, debug included."""
    text = io.BytesIO()
    before = structlog.get_config()
    logs.configure()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.BytesLoggerFactory(file=text),
        cache_logger_on_first_use=False,
    )
    standard = logging.StreamHandler(io.TextIOWrapper(text, write_through=True))
    root = logging.getLogger()
    level = root.level
    root.addHandler(standard)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(standard)
    root.setLevel(level)
    standard.stream.detach()
    structlog.configure(**before)


def check(lines: io.BytesIO, *expected: str) -> None:
    """Nothing planted is in the log, and what is expected is: an empty log proves nothing."""
    text = lines.getvalue().decode()
    leaks = [line for line in text.splitlines() if any(secret in line for secret in PLANTED.values())]
    assert leaks == []
    assert [event for event in expected if event not in text] == []


class TalkativeAdapter(ScriptedAdapter):
    """Fails with what it was asked in the text of its error, as careless code does."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:  # noqa: ARG002
        how = (request.prompt or "").rpartition(" ")[2]
        if how == "crash":
            raise RuntimeError(f"cannot decode {request.prompt!r}")
        yield Chunk(ANSWER)
        if how == "fail":
            raise EngineError(ErrorInfo("WORKER_RESET", "the engine ended", retriable=False))
        if how == "exit":
            self.exit.set_result(EngineExit(-11, ("segmentation fault",)))
            raise EngineError(ErrorInfo("WORKER_RESET", "the engine ended", retriable=True))
        yield Finish("stop", 3)


async def send(app: Any, body: Any, key: str = API_KEY, **headers: str) -> Exchange:
    exchange = Exchange(app, "POST", "/v1/tasks", body, authorization=f"Bearer {key}", **headers)
    async with asyncio.timeout(30):
        return await exchange.done()


@pytest.mark.req("OC-CTRL-2041")
async def test_requests_that_succeed_fail_and_crash_leave_no_secret_in_the_log(lines: io.BytesIO) -> None:
    async with cluster(adapter=TalkativeAdapter) as (_, gateway):
        app = build_app(gateway, SETTINGS)
        for how in ("well", "fail", "crash", "exit"):
            body = task_body(model_ref=MODEL, prompt=f"{PROMPT} {how}", deadline_ms=20_000, determinism="best_effort")
            answer = await send(app, body, accept="text/event-stream")
            assert answer.status == 200
            assert answer.events[-1][1] == ("end" if how == "well" else "error")
        await send(app, task_body(model_ref="nobody", prompt=PROMPT))
        await send(app, task_body(prompt=PROMPT, ctx=-1))
        await send(app, {"prompt": PROMPT, PROMPT: API_KEY})
        await send(app, PROMPT.encode())
        await send(app, b"x" * 30_000)
    check(lines, "task_admitted", "task_refused", "attempt.crashed", "RuntimeError", "in generate")


@pytest.mark.req("OC-CTRL-2041")
async def test_failed_authentication_leaves_no_key_in_the_log(lines: io.BytesIO) -> None:
    async with cluster() as (_, gateway):
        app = build_app(gateway, SETTINGS)
        for _ in range(15):
            await send(app, task_body(prompt=PROMPT), WRONG_KEY)
            await Exchange(app, "GET", "/v1/pools", authorization="", x_api_key=WRONG_KEY).done()
        await Exchange(app, "GET", f"/v1/tasks/{API_KEY}", authorization=f"Bearer {API_KEY}").done()
        await Exchange(app, "GET", f"/v1/pools/{API_KEY}/health", authorization=f"Bearer {API_KEY}").done()
    check(lines, "authentication_failures_limited")


class FailingGateway:
    """Every call fails with what it was given in the text."""

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: object, **_named: object) -> None:
            raise RuntimeError(f"{name}: {arguments!r} {PROMPT} {API_KEY}")

        return (lambda *_: None) if name == "count_rejected" else fail


@pytest.mark.req("OC-CTRL-2041")
async def test_a_failure_inside_the_ingress_leaves_no_secret_in_the_log(lines: io.BytesIO) -> None:
    gateway: Any = FailingGateway()
    app = build_app(gateway, SETTINGS)
    await send(app, task_body(prompt=PROMPT))
    await send(app, task_body(prompt=PROMPT), accept="text/event-stream")
    await Exchange(app, "GET", "/readyz", authorization=f"Bearer {API_KEY}").done()
    await Exchange(app, "GET", "/v1/pools", authorization=f"Bearer {API_KEY}").done()
    check(lines, "request_failed", "RuntimeError")


@pytest.mark.req("OC-CTRL-2041")
async def test_what_the_port_is_sent_is_not_logged(lines: io.BytesIO) -> None:
    async with cluster() as (_, gateway):
        listener = Listener(build_app(gateway, SETTINGS), 0, 10, HttpLimits(request_timeout_ms=200))
        listener.start()
        for sent in (
            f"GET /v1/capabilities?api_key={API_KEY} HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\n\r\n",
            f"GET /v1/capabilities HTTP/1.1\r\nAuthorization: Bearer {WRONG_KEY}\r\n\r\n",
            f"{API_KEY} {PROMPT}\r\n\r\n",
            f"GET /{API_KEY} HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\n",
            f"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: {API_KEY}\r\n\r\n",
            f"GET / HTTP/1.1\r\nX-Correlation-Id: {'x' * 40_000}{API_KEY}\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(sent.encode())
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(reader.read(), 0.5)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await listener.stop(0.1)
    check(lines)


@pytest.mark.req("OC-CTRL-2041", "OC-CTRL-2040")
async def test_a_stranger_on_the_channel_learns_nothing_and_leaves_nothing(lines: io.BytesIO) -> None:
    async with cluster() as (running, _):
        assert running.endpoint is not None
        reader, writer = await asyncio.open_connection(running.endpoint.host, running.endpoint.port)
        challenge = await reader.readexactly(4)
        got = challenge + await reader.readexactly(int.from_bytes(challenge, "big"))
        writer.write(len(WRONG_KEY).to_bytes(4, "big") + WRONG_KEY.encode())
        got += await asyncio.wait_for(reader.read(), 10)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert SECRET not in got
        await until(lambda: b"channel.aborted" in lines.getvalue())
    check(lines)
