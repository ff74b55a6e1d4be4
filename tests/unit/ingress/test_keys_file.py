"""The keys file: keys come, change and go without a restart, and a broken file changes nothing."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from contracts import openapi_examples as ex
from orchestrator.ingress import keys_file
from orchestrator.ingress.app import Ingress
from orchestrator.ingress.keyring import Keyring
from orchestrator.ingress.keys_file import KeysFile, KeysFileError, read_keys
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.settings import IngressSettings, Key
from tests.unit.ingress.asgi import Exchange, task_body, until
from tests.unit.ingress.fake_gateway import FakeGateway


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: str, roles: str = "[submit]", tenant: str = "acme", more: str = "") -> str:
    return f"- {{name: {key}, tenant: {tenant}, sha256: {digest(key)}, roles: {roles}{more}}}\n"


CONFIGURED = Key("root", "ops", digest("root"), ("submit", "operate", "observe"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys.yaml"
    found.write_text(entry("alice"))
    return found


def replaced(path: Path, text: str) -> None:
    """Put another file in its place, as careful editors and Kubernetes do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.req("ORCH-3035")
def test_a_file_lists_keys_as_the_configuration_does(path: Path) -> None:
    path.write_text(entry("alice") + entry("bob", "[operate, observe]", "rival"))
    assert read_keys(path) == (
        Key("alice", "acme", digest("alice"), ("submit",)),
        Key("bob", "rival", digest("bob"), ("operate", "observe")),
    )
    path.write_text(f"- {{name: a, tenant: b, sha256: {digest('x')}}}\n")
    assert read_keys(path)[0].roles == ("submit",)
    for nothing in ("", "[]", "# nobody\n"):
        path.write_text(nothing)
        assert read_keys(path) == ()


@pytest.mark.req("ORCH-3035", "OC-CTRL-2041")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- {name: a, tenant: b}\n", "entry 0.sha256"),
        (entry("alice") + entry("bob", "[emperor]"), r"entry 1\.roles\.0"),
        (entry("alice", "[]"), r"entry 0\.roles"),
        (entry("alice", more=", admin: true"), "entry 0: unknown field"),
        ("- {alice: bob}", "entry 0"),
        ("- *alice", "line 1: not YAML"),
        (entry("alice", more=", rps: 3"), "entry 0: `rps`"),
        (entry("alice") + entry("alice"), "entry 1: its name"),
        (entry("alice") + entry("alice").replace("name: alice", "name: other"), "entry 1: its hash"),
        (entry("root"), "entry 0: its name"),
        ("alice: yes\n", "list"),
        (f"- sha256: {digest('leak')}\n  [", r"line 2: not YAML"),
        ("- !!python/object/apply:os.system [id]\n", "not YAML"),
        ("&a [*a, *a]", "entry"),
        ("- \x00", "not YAML in UTF-8"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_telling_what_is_in_it(path: Path, text: str, why: str) -> None:
    path.write_text(text)
    with pytest.raises(KeysFileError, match=why) as refused:
        read_keys(path, [CONFIGURED])
    for secret in (digest("alice"), digest("bob"), digest("leak"), "alice", "bob"):
        assert secret not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_file_that_is_missing_too_large_or_open_to_all_writers_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeysFileError, match="No such file"):
        read_keys(path.with_name("nowhere"))
    path.chmod(0o666)
    with pytest.raises(KeysFileError, match="chmod o-w"):
        read_keys(path)
    path.chmod(0o664)
    assert len(read_keys(path)) == 1
    monkeypatch.setattr(keys_file, "FILE_BYTES_MAX", 10)
    with pytest.raises(KeysFileError, match="over 10 bytes"):
        read_keys(path)


@pytest.mark.req("OC-CTRL-2041")
def test_the_log_tells_how_many_keys_there_are_and_none_of_them(path: Path) -> None:
    keyring = Keyring([CONFIGURED])
    follower = KeysFile(path, keyring)
    with structlog.testing.capture_logs() as logs:
        follower.load()
        follower.load()
        replaced(path, "- nonsense")
        follower.load()
        follower.load()
        replaced(path, entry("alice") + entry("bob"))
        follower.load()
    assert [(line["event"], line.get("keys"), line["log_level"]) for line in logs] == [
        ("keys_loaded", 2, "info"),
        ("keys_file_unusable", None, "error"),
        ("keys_loaded", 3, "info"),
    ]
    for secret in (digest("alice"), digest("bob"), digest("root"), "nonsense"):
        assert secret not in repr(logs)


class Door:
    """An app that follows its keys file, and requests to it."""

    def __init__(self, path: Path, gateway: FakeGateway, **changes: Any) -> None:
        settings = IngressSettings(keys=(CONFIGURED,), keys_file=path, keepalive_ms=60_000, **changes)
        self.app = Ingress(gateway, settings, ResultMemory())

    async def ask(self, key: str, method: str = "GET", path: str = "/v1/capabilities", body: Any = b"") -> int:
        return (await Exchange(self.app, method, path, body, authorization=f"Bearer {key}").done()).status

    async def becomes(self, status: int, key: str, method: str = "GET", path: str = "/v1/capabilities") -> None:
        async with asyncio.timeout(10):
            while await self.ask(key, method, path) != status:
                await asyncio.sleep(0.01)


MakeDoor = Callable[..., Any]


@pytest.fixture
async def door(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeDoor]:
    """Makes doors whose servers run their lifespan, as all do."""
    monkeypatch.setattr(keys_file, "POLL_S", 0.02)
    ends: list[tuple[asyncio.Queue[dict[str, str]], asyncio.Task[None]]] = []

    async def make(gateway: FakeGateway | None = None, **changes: Any) -> Door:
        made = Door(path, gateway or FakeGateway(), **changes)
        incoming: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        started = asyncio.Event()

        async def send(_message: Any) -> None:
            started.set()

        life = asyncio.ensure_future(made.app({"type": "lifespan"}, incoming.get, send))
        incoming.put_nowait({"type": "lifespan.startup"})
        await started.wait()
        ends.append((incoming, life))
        return made

    yield make
    for incoming, life in ends:
        incoming.put_nowait({"type": "lifespan.shutdown"})
        await asyncio.wait_for(life, 10)


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
async def test_keys_are_added_changed_and_revoked_while_the_service_runs(door: MakeDoor, path: Path) -> None:
    running = await door()
    assert [await running.ask(key) for key in ("root", "alice", "bob")] == [200, 200, 403]
    assert await running.ask("alice", path="/v1/pools") == 403
    replaced(path, entry("bob") + entry("alice", "[observe]"))
    await running.becomes(200, "bob")
    assert await running.ask("alice", path="/v1/pools") == 200
    path.write_text(entry("bob"))
    await running.becomes(403, "alice")
    path.unlink()
    await asyncio.sleep(0.1)
    assert [await running.ask(key) for key in ("root", "bob")] == [200, 200]
    path.write_text("[]")
    await running.becomes(403, "bob")
    assert await running.ask("root") == 200


@pytest.mark.req("ORCH-3035")
async def test_a_broken_file_keeps_the_keys_and_opens_no_door(door: MakeDoor, path: Path) -> None:
    running = await door()
    with structlog.testing.capture_logs() as logs:
        replaced(path, entry("mallory", "[submit, emperor]"))
        await until(lambda: bool(logs))
        assert [await running.ask(key) for key in ("alice", "mallory", "root")] == [200, 403, 200]


@pytest.mark.req("ORCH-3035")
async def test_a_file_that_is_broken_from_the_start_leaves_the_configured_keys(door: MakeDoor, path: Path) -> None:
    path.write_text("{")
    running = await door()
    assert [await running.ask(key) for key in ("root", "alice")] == [200, 403]
    replaced(path, entry("alice"))
    await running.becomes(200, "alice")


STREAM = f"/v1/tasks/{ex.TASK_ID}/stream"


@pytest.mark.req("ORCH-3035", "ORCH-3026")
@pytest.mark.parametrize("now", [entry("bob"), entry("alice", "[observe]"), entry("alice", tenant="other")])
async def test_open_streams_end_with_a_typed_error_when_their_key_may_no_longer_have_them(
    door: MakeDoor, path: Path, now: str
) -> None:
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    path.write_text(entry("alice") + entry("bob"))
    running = await door(gateway)
    body = task_body(task_id=ex.TASK_ID)
    one_call = Exchange(
        running.app, "POST", "/v1/tasks", body, authorization="Bearer alice", accept="text/event-stream"
    )
    attached = Exchange(running.app, "GET", STREAM, authorization="Bearer alice")
    other = Exchange(running.app, "GET", STREAM, authorization="Bearer bob")
    one_call.start()
    await until(lambda: gateway.streams_open == 1)
    attached.start()
    other.start()
    await until(lambda: gateway.streams_open == 3)
    replaced(path, now + (entry("bob") if "bob" not in now else ""))
    for exchange in (one_call, attached):
        await exchange.done()
        assert exchange.complete
        names = [name for _, name, _ in exchange.events]
        assert names == ["started", "error"]
        assert exchange.events[-1][2]["code"] == "FORBIDDEN"
    assert not other.task.done()
    gateway.feed(ex.TASK_ID, ex.END)
    await other.done()
    assert [name for _, name, _ in other.events] == ["started", "end"]
    assert gateway.streams_open == 0


@pytest.mark.req("ORCH-3035")
async def test_a_revoked_client_that_does_not_read_holds_nothing(
    door: MakeDoor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.ingress.streaming.LAST_WORD_S", 0.05)
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    running = await door(gateway)
    await running.ask("alice", "POST", "/v1/tasks", task_body(task_id=ex.TASK_ID))
    exchange = Exchange(running.app, "GET", STREAM, authorization="Bearer alice").start()
    await until(lambda: len(exchange.messages) == 2)

    async def stuck(_message: Any) -> None:
        await asyncio.Event().wait()

    exchange._send = stuck  # type: ignore[method-assign]
    replaced(path, "[]")
    assert await asyncio.wait_for(running.ask("root"), 5) == 200
    await running.becomes(403, "alice")


@pytest.mark.req("ORCH-3035")
async def test_a_key_that_is_revoked_while_its_request_is_read_gets_no_stream(door: MakeDoor, path: Path) -> None:
    gateway = FakeGateway()
    running = await door(gateway)
    exchange = Exchange(running.app, "POST", "/v1/tasks", authorization="Bearer alice", accept="text/event-stream")
    exchange.incoming.get_nowait()
    exchange.start()
    await asyncio.sleep(0.01)
    replaced(path, "[]")
    await running.becomes(403, "alice")
    exchange.incoming.put_nowait({"type": "http.request", "body": json.dumps(task_body()).encode(), "more_body": False})
    await exchange.done()
    assert (exchange.status, exchange.json["code"]) == (403, "FORBIDDEN")
    assert gateway.tasks == {}


@pytest.mark.req("ORCH-2007", "ORCH-3036")
async def test_a_key_has_so_many_streams_and_no_more(door: MakeDoor, path: Path) -> None:
    gateway = FakeGateway()
    gateway.script = [ex.STARTED]
    path.write_text(entry("alice") + entry("bob"))
    running = await door(gateway, streams_max=2)
    for key, task_id in (("alice", ex.TASK_ID),):
        assert await running.ask(key, "POST", "/v1/tasks", task_body(task_id=task_id)) == 202
    held = [Exchange(running.app, "GET", STREAM, authorization="Bearer alice").start() for _ in range(2)]
    await until(lambda: gateway.streams_open == 2)
    third = await Exchange(running.app, "GET", STREAM, authorization="Bearer alice").done()
    assert (third.status, third.json["code"], third.json["policy_label"]) == (429, "ADMISSION_REJECT", "reject")
    assert third.headers["retry-after"] == "1"
    admitted = len(gateway.tasks)
    refused = Exchange(
        running.app, "POST", "/v1/tasks", task_body(), authorization="Bearer alice", accept="text/event-stream"
    )
    assert (await refused.done()).status == 429
    assert len(gateway.tasks) == admitted
    assert gateway.rejected == [("llamacpp", "ADMISSION_REJECT")]
    assert await running.ask("alice", "GET", f"/v1/tasks/{ex.TASK_ID}") == 200
    bobs = Exchange(
        running.app, "POST", "/v1/tasks", task_body(), authorization="Bearer bob", accept="text/event-stream"
    ).start()
    await until(lambda: gateway.streams_open == 3)
    held[0].disconnect()
    await held[0].done()
    fourth = Exchange(running.app, "GET", STREAM, authorization="Bearer alice").start()
    await until(lambda: gateway.streams_open == 3)
    for exchange in (held[1], bobs, fourth):
        exchange.disconnect()
        await exchange.done()
