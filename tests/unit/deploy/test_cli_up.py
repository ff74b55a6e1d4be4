"""`llorch up` and `llorch down`: what they refuse, what they say, how they end; Ray and the service are scripted."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from contracts.config import Config
from orchestrator.cli_up import down, up
from orchestrator.cluster.local import THROUGHPUT_ENVIRONMENT

POOL = "pools: [{id: a, engine: llamacpp, model: m, model_path: only/on/gpu/nodes.gguf, devices: [0]}]\n"
KEY = f"auth: {{keys: [{{name: k, tenant: t, sha256: {'ab' * 32}}}]}}\n"


class RayError(Exception):
    """Stands in for Ray's base of errors."""


class AlreadyUpError(Exception):
    """Stands in for the composition root's."""


class Script:
    """The cluster and the service as the commands meet them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.refused: Exception | None = None
        self.failed: Exception | None = None
        self.running = True
        self.calls: list[Any] = []

    def init(self, **options: Any) -> None:
        self.calls.append(("init", options["address"]))
        if self.refused is not None:
            raise self.refused

    def deploy_cluster(self, config: Config, *, port: int) -> str:
        self.calls.append(("deploy", [pool.id for pool in config.pools], port))
        if self.failed is not None:
            raise self.failed
        return self.url

    def remove_cluster(self) -> bool:
        self.calls.append("remove")
        return self.running

    def shutdown(self) -> None:
        self.calls.append("shutdown")


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def script(url: str, monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(url)
    ray, app = ModuleType("ray"), ModuleType("orchestrator.app")
    ray.__dict__.update(init=script.init, shutdown=script.shutdown, exceptions=SimpleNamespace(RayError=RayError))
    app.__dict__.update(
        deploy_cluster=script.deploy_cluster, remove_cluster=script.remove_cluster, AlreadyUpError=AlreadyUpError
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "orchestrator.app", app)
    for name, value in THROUGHPUT_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return script


def llorch(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(up)
    app.command()(down)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llorch.yaml"
    path.write_text(POOL + KEY + "server: {port: 8123}\n")
    return path


def test_up_starts_the_service_and_prints_where_it_answers(script: Script, config: Path) -> None:
    """Model files are the GPU nodes' own: the head, where it runs, need not have them."""
    result = llorch("up", "--config", str(config), "--address", "10.0.0.1:6379")
    assert (result.exit_code, result.stdout) == (0, f"{script.url}\n")
    assert script.calls == [("init", "10.0.0.1:6379"), ("deploy", ["a"], 8123), "shutdown"]


def test_up_takes_the_cluster_of_this_machine_by_default_and_another_port_if_asked(
    script: Script, config: Path
) -> None:
    assert llorch("up", "--config", str(config), "--port", "9000").exit_code == 0
    assert script.calls[:2] == [("init", "auto"), ("deploy", ["a"], 9000)]


@pytest.mark.req("ORCH-3035")
def test_a_cluster_gets_no_development_key(script: Script, config: Path) -> None:
    config.write_text(POOL)
    result = llorch("up", "--config", str(config))
    assert result.exit_code == 1
    assert "has no API keys" in result.stderr
    assert "llorch hash-key" in result.stderr
    assert script.calls == []
    config.write_text(POOL + "auth: {enabled: false}\n")
    assert llorch("up", "--config", str(config)).exit_code == 0


@pytest.mark.req("ORCH-3030")
def test_a_file_with_problems_starts_nothing(script: Script, config: Path) -> None:
    config.write_text(POOL.replace("devices: [0]", "devices: [0, 0]") + KEY + "lease: {lost_ms: 5}\n")
    result = llorch("up", "--config", str(config))
    assert result.exit_code == 1
    assert f"{config}:1:90: a device is listed twice" in result.stderr
    assert "lost_ms 5 is not over ttl_ms 2500" in result.stderr
    assert script.calls == []


@pytest.mark.parametrize("command", [["down"], ["up", "--config", "llorch.yaml"]])
@pytest.mark.parametrize("error", [ConnectionError("none\nlong"), RuntimeError("none"), RayError("none")])
def test_no_cluster_is_said_in_one_line_with_what_to_do(
    script: Script, config: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], error: Exception
) -> None:
    monkeypatch.chdir(config.parent)
    script.refused = error
    result = llorch(*command)
    assert result.exit_code == 1
    assert "no Ray cluster answers on this machine: none\n" in result.stderr
    assert "ray up cluster.yaml" in result.stderr
    assert script.calls == [("init", "auto")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AlreadyUpError("already there; `llorch down` takes it down"), "already there; `llorch down` takes it down"),
        (RuntimeError("Deploying application llorch failed"), "failed: Deploying application llorch failed"),
        (RayError("the actor died"), "failed: the actor died"),
        (TimeoutError("late"), "failed: late"),
    ],
)
def test_what_cannot_be_started_fails(script: Script, config: Path, error: Exception, said: str) -> None:
    script.failed = error
    result = llorch("up", "--config", str(config))
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert script.calls[-1] == "shutdown"


def test_a_service_that_does_not_answer_is_a_failure(
    script: Script, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline that is over when the service was started leaves one question."""
    script.url += "/nowhere"
    times = iter([0.0, 61.0])
    monkeypatch.setattr("orchestrator.cli_up.time", SimpleNamespace(monotonic=lambda: next(times)))
    result = llorch("up", "--config", str(config), "--timeout-s", "60")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "/nowhere/healthz does not answer after 60 s" in result.stderr
    assert "llorch down" in result.stderr


@pytest.mark.parametrize(("running", "said"), [(True, "removed\n"), (False, "there was nothing to remove\n")])
def test_down_removes_what_is_there(script: Script, running: bool, said: str) -> None:
    script.running = running
    result = llorch("down")
    assert (result.exit_code, result.stdout) == (0, said)
    assert script.calls == [("init", "auto"), "remove", "shutdown"]
