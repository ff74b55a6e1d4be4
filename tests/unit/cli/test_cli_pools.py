"""The control plane's commands against the service itself over a fake gateway."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from typer.testing import CliRunner, Result

from contracts import openapi_control_examples as ex
from contracts.control import Capabilities, DrainRequest, PoolHealth, Reload, ReloadRequest
from orchestrator.cli import app
from orchestrator.cli_pools_text import columns, duration, state_of
from orchestrator.ingress.app import build_app
from tests.contract.serving import serving
from tests.unit.ingress.asgi import KEY, SETTINGS
from tests.unit.ingress.fake_gateway import FakeGateway


class SlowPools(FakeGateway):
    """Test double: what is asked for shows in `coming`, one health a look; the last one stays."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: list[PoolHealth] = []

    async def pool_health(self, pool_id: str) -> PoolHealth:
        health = await super().pool_health(pool_id)
        if not self.coming:
            return health
        return self.coming.pop(0) if len(self.coming) > 1 else self.coming[0]


@pytest.fixture
def gateway() -> SlowPools:
    return SlowPools()


@pytest.fixture(autouse=True)
def _service(gateway: SlowPools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLORCH_API_KEY", KEY)
    monkeypatch.setattr("orchestrator.cli_pools.WAIT_POLL_S", 0.005)
    # The service logs in this process, to the same output as the commands.
    with structlog.testing.capture_logs(), serving(build_app(gateway, SETTINGS)) as url:
        monkeypatch.setenv("LLORCH_URL", url)
        yield


def llorch(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def changed(health: PoolHealth = ex.HEALTHY, **fields: object) -> PoolHealth:
    return msgspec.structs.replace(health, **fields)


@pytest.mark.req("ORCH-2103", "OC-CTRL-2001")
def test_pools_are_a_table_with_one_line_each(gateway: SlowPools) -> None:
    gateway.healths["other"] = changed(ex.WAITING, pool_id="other")
    result = llorch("pools")
    assert result.exit_code == 0
    head, other, smollm2 = result.stdout.splitlines()
    assert head.split() == ["POOL", "MODEL", "STATE", "READY", "SLOTS", "QUEUE", "WAIT", "RESTARTS", "LAST", "ERROR"]
    assert smollm2.split() == ["smollm2", ex.MODEL, "ready", "1/1", "1/4", "0", "0", "ms", "0", "-"]
    assert other.split()[2:] == ["unready", "0/1", "0/0", "2", "9.4", "s", "3", "model,", "4.2", "s", "ago"]
    assert other.index("0/1") == smollm2.index("1/1") == head.index("READY")
    assert msgspec.json.decode(llorch("pools", "--json").stdout, type=list[PoolHealth])[1] == ex.HEALTHY


@pytest.mark.req("ORCH-2103", "OC-CTRL-2001", "OC-POOL-3003")
def test_health_shows_replicas_the_reload_and_the_last_error_in_full(gateway: SlowPools) -> None:
    gateway.healths["smollm2"] = changed(ex.ROLLED_BACK, breaker="open", replicas=ex.WAITING.replicas)
    result = llorch("pool", "health", "smollm2")
    assert result.exit_code == 0
    for part in (
        "engine llamacpp on cpu-dev",
        f"last reload: {ex.NEXT_MODEL}, rolled back: two launches",
        "breaker open",
        "waiting 1.8 s",
        "last error: model on smollm2-1, 4.2 s ago",
        f"  {ex.LAUNCH_FAILED.message}",
        "  | error loading model: invalid magic number",
    ):
        assert part in result.stdout
    shown = llorch("pool", "health", "smollm2", "--json").stdout
    assert msgspec.json.decode(shown, type=PoolHealth) == gateway.healths["smollm2"]


@pytest.mark.req("ORCH-3095", "ORCH-3096", "OC-CTRL-2060")
def test_capabilities_are_told_by_engine() -> None:
    result = llorch("capabilities")
    assert result.exit_code == 0
    for part in (
        f"API version {ex.CAPABILITIES.api_version}",
        "2048 tokens",
        "cpu-dev",
        "50/s, 100 at once",
        "each key",
    ):
        assert part in result.stdout
    assert msgspec.json.decode(llorch("capabilities", "--json").stdout, type=Capabilities) == ex.CAPABILITIES


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3031", "ORCH-3033")
def test_each_command_asks_for_what_it_says(gateway: SlowPools) -> None:
    for arguments in (
        ["reload", "smollm2", ex.NEXT_MODEL, "--canary", "10"],
        ["promote", "smollm2"],
        ["reload", "smollm2", ex.NEXT_MODEL],
        ["rollback", "smollm2"],
        ["drain", "smollm2", "--deadline-ms", "250"],
    ):
        result = llorch(*arguments)
        assert (result.exit_code, result.stderr) == (0, ""), arguments
        assert "smollm2" in result.stdout
    assert gateway.asked == [
        ("reload", "smollm2", ReloadRequest(ex.NEXT_MODEL, 10)),
        ("promote", "smollm2", None),
        ("reload", "smollm2", ReloadRequest(ex.NEXT_MODEL)),
        ("rollback", "smollm2", None),
        ("drain", "smollm2", DrainRequest(250)),
    ]
    accepted = llorch("drain", "smollm2", "--deadline-ms", "0", "--json").stdout
    assert json.loads(accepted) == {"pool_id": "smollm2", "status": "accepted"}


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002")
def test_a_drain_is_waited_for_until_the_pool_is_empty(gateway: SlowPools) -> None:
    gateway.coming = [changed(draining=True), changed(draining=True), ex.DRAINED]
    result = llorch("drain", "smollm2", "--deadline-ms", "100", "--wait")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "drained" in result.stdout
    assert gateway.coming == [ex.DRAINED]
    gateway.coming = [changed(draining=True), ex.RELOADING]
    result = llorch("drain", "smollm2", "--deadline-ms", "100", "--wait")
    assert result.exit_code == 1
    assert "given up for another request: the pool is reloading" in result.stderr


def test_a_wait_has_an_end(gateway: SlowPools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli_pools.DRAIN_GRACE_S", 0.02)
    gateway.coming = [changed(draining=True)]
    result = llorch("drain", "smollm2", "--deadline-ms", "10", "--wait")
    assert result.exit_code == 1
    assert "still draining" in result.stderr


def outcome(state: str, why: str | None = None, model: str = ex.NEXT_MODEL) -> PoolHealth:
    return changed(reload=Reload(model, state, why=why))  # type: ignore[arg-type]


@pytest.mark.req("ORCH-2102", "ORCH-3031", "ORCH-3033", "OC-CTRL-2003")
@pytest.mark.parametrize(
    ("last", "status", "told"),
    [
        (outcome("done"), 0, ""),
        (outcome("canary"), 0, "llorch promote smollm2"),
        (outcome("rolled_back", "it would not load"), 1, f"serves {ex.MODEL}: it would not load"),
        (outcome("loading", model="third"), 1, "another request took over"),
        (changed(reload=None), 1, "another request took over"),
    ],
)
def test_a_reload_is_waited_for_until_it_is_over(gateway: SlowPools, last: PoolHealth, status: int, told: str) -> None:
    gateway.coming = [ex.RELOADING, ex.RELOADING, last]
    result = llorch("reload", "smollm2", ex.NEXT_MODEL, "--wait", "--json")
    assert result.exit_code == status
    assert told in result.stderr
    assert msgspec.json.decode(result.stdout, type=PoolHealth) == last


@pytest.mark.req("ORCH-2006", "OC-CTRL-2040")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pool", "health", "nobody"], "NOT_FOUND: no pool `nobody`; there are: smollm2"),
        (["pool", "health", "a/b"], "NOT_FOUND"),
        (["drain", "nobody", "--deadline-ms", "0", "--wait"], "NOT_FOUND"),
        (["reload", "smollm2", "nobody-has-this"], f"known are: {ex.MODEL}"),
        (["promote", "smollm2"], "CONFLICT: pool `smollm2` has nothing to promote"),
        (["rollback", "smollm2"], "CONFLICT"),
        (["pools", "--key", "wrong-key"], "FORBIDDEN"),
        (["capabilities", "--key", ""], "UNAUTHENTICATED"),
    ],
)
def test_a_refusal_is_told_in_the_services_words(arguments: list[str], told: str) -> None:
    result = llorch(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr


def test_wrong_usage_and_no_server(unused_tcp_port: int) -> None:
    assert llorch("drain", "smollm2").exit_code == 2
    assert llorch("drain", "smollm2", "--deadline-ms", "-1").exit_code == 2
    assert llorch("reload", "smollm2", "m", "--canary", "100").exit_code == 2
    result = llorch("pools", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "llorch run" in result.stderr


@pytest.mark.parametrize(
    ("health", "word"),
    [
        (ex.HEALTHY, "ready"),
        (ex.WAITING, "unready"),
        (changed(ex.DRAINED, drained=False), "idle"),
        (ex.RELOADING, "reloading"),
        (ex.ROLLED_BACK, "ready"),
        (ex.DRAINED, "drained"),
        (changed(draining=True), "draining"),
        (outcome("canary"), "canary"),
    ],
)
def test_a_pools_state_is_one_word(health: PoolHealth, word: str) -> None:
    assert state_of(health) == word


def test_columns_and_durations() -> None:
    assert columns([("a", "bb", "c"), ("aaa", "b", "")]) == "a    bb  c\naaa  b"
    assert [duration(ms) for ms in (0, 999, 1000, 59_999, 60_000, 7_200_000)] == [
        "0 ms",
        "999 ms",
        "1.0 s",
        "60.0 s",
        "1 min",
        "2 h",
    ]
