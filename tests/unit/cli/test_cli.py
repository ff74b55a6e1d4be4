"""The commands: what they print, where, and with which exit status."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.cli_submit import ADVICE
from tests.unit.cli.conftest import Script


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLORCH_URL", raising=False)
    monkeypatch.delenv("LLORCH_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def llorch(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_submit_prints_tokens_to_stdout_and_the_summary_to_stderr(threaded_server: str, script: Script) -> None:
    result = llorch("submit", "hi", "--url", threaded_server, "--key", "k", "--seed", "5", "--max-tokens", "9")
    assert (result.exit_code, result.stdout) == (0, "Grüße aus Bonn.\n")
    for part in (
        "5 tokens in",
        "first token",
        "tokens/s",
        "queue position 2",
        "replica dev-0",
        "seed 7",
        "ended by stop",
    ):
        assert part in result.stderr
    body = script.bodies[0]
    assert (body["prompt"], body["seed"], body["max_tokens"], body["cancel_on_disconnect"]) == ("hi", 5, 9, False)
    assert UUID(body["task_id"]) != UUID(body["session_id"])
    assert script.keys == ["Bearer k"]


@pytest.mark.req("ORCH-3099", "ORCH-3100")
def test_submit_prints_the_chance_and_what_is_left_to_the_session(threaded_server: str, script: Script) -> None:
    assert "sure" not in llorch("submit", "hi", "--url", threaded_server).stderr
    script.frames = [
        {"queue_depth": 1, "on_time_probability": 0.87, "tokens_budget_remaining": 500},
        {"preempted": True, "resumable": True},
        {
            "on_time_probability": 0.5,
            "tokens_budget_remaining": 420,
            "time_budget_remaining_ms": 2500,
            "cost_budget_remaining": 0.03,
        },
    ]
    result = llorch("submit", "hi", "--url", threaded_server)
    assert (result.exit_code, result.stdout) == (0, "Grüße aus Bonn.\n")
    assert "87% sure to be on time" in result.stderr
    assert "preempted on the way" in result.stderr
    assert "left to the session: 420 tokens, 2.5 s, cost 0.0300" in result.stderr


@pytest.mark.req("ORCH-3079", "ORCH-3025")
def test_a_deadline_that_cannot_be_met_is_told_with_one_that_can(
    threaded_server: str, script: Script, refused: Callable[[str], dict[str, Any]]
) -> None:
    script.refusal = (400, refused("DEADLINE_UNMET") | {"earliest_deadline_ms": 5900})
    result = llorch("submit", "hi", "--url", threaded_server)
    assert result.exit_code == 1
    assert "--deadline-ms 5900" in result.stderr


def test_submit_sends_messages_for_chat(threaded_server: str, script: Script) -> None:
    assert llorch("submit", "hi", "--url", threaded_server, "--system", "be brief").exit_code == 0
    assert llorch("submit", "hi", "--url", threaded_server, "--chat").exit_code == 0
    assert [message["role"] for message in script.bodies[0]["messages"]] == ["system", "user"]
    assert script.bodies[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert "prompt" not in script.bodies[1]


def test_submit_prints_results_as_json_one_to_a_line(threaded_server: str, script: Script) -> None:
    script.texts, script.results = [], {"embeddings": [[0.5, -0.125], [1.0, 0.25]]}
    command = ["submit", "--url", threaded_server, "--workload", "embedding", "--input", "one", "--input", "two"]
    result = llorch(*command)
    assert (result.exit_code, result.stdout) == (0, "[0.5,-0.125]\n[1.0,0.25]\n")
    assert "2 results of 3 tokens in" in result.stderr
    assert (script.bodies[0]["workload"], script.bodies[0]["inputs"]) == ("embedding", ["one", "two"])
    assert "prompt" not in script.bodies[0]
    script.results = {"ranks": [{"index": 1, "score": 0.5}, {"index": 0, "score": -2.0}]}
    result = llorch(
        "submit", "which?", "--url", threaded_server, "--workload", "rerank", "--input", "a", "--input", "b"
    )
    assert (result.exit_code, result.stdout) == (0, '{"index":1,"score":0.5}\n{"index":0,"score":-2.0}\n')
    assert (script.bodies[1]["prompt"], script.bodies[1]["inputs"]) == ("which?", ["a", "b"])


def test_a_task_without_its_text_is_wrong_usage() -> None:
    for more in ([], ["--workload", "rerank", "--input", "a"], ["--chat"]):
        result = llorch("submit", "--url", "http://x", *more)
        assert result.exit_code == 2
        assert "PROMPT" in result.stderr
    result = llorch("submit", "--url", "http://x", "--workload", "embedding")
    assert (result.exit_code, "inputs" in result.stderr) == (2, True)


def test_url_and_key_come_from_the_development_file(threaded_server: str, script: Script) -> None:
    Path(".llorch").mkdir()
    Path(".llorch/dev.json").write_text(json.dumps({"url": threaded_server, "api_key": "from-file"}))
    assert llorch("submit", "hi").exit_code == 0
    assert script.keys == ["Bearer from-file"]


def test_without_a_server_the_exit_status_is_3_and_says_what_to_do(unused_tcp_port: int) -> None:
    for arguments in ([], ["--url", f"http://127.0.0.1:{unused_tcp_port}"]):
        for command in (["submit", "hi"], ["status"]):
            result = llorch(*command, *arguments)
            assert (result.exit_code, result.stdout) == (3, "")
            assert "llorch run" in result.stderr


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize("code", sorted(ADVICE))
def test_a_refusal_is_told_plainly(
    threaded_server: str, script: Script, refused: Callable[[str], dict[str, Any]], code: str
) -> None:
    script.refusal = (429, refused(code))
    result = llorch("submit", "hi", "--url", threaded_server)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{code}: because" in result.stderr
    assert ADVICE[code] in result.stderr
    assert "1.5 s" in result.stderr


def test_wrong_usage_is_exit_status_2() -> None:
    result = llorch("submit", "hi", "--url", "http://x", "--priority", "urgent")
    assert result.exit_code == 2
    assert "priority" in result.stderr
    assert llorch("submit", "hi", "--max-tokens", "many").exit_code == 2
    assert llorch("status", "not-a-uuid").exit_code == 2


@pytest.mark.req("ORCH-2003")
def test_ctrl_c_cancels_the_task(threaded_server: str, script: Script, root: Path) -> None:
    script.hang_after = 2
    # A shell starts its background jobs with SIGINT ignored, and that would be inherited.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "orchestrator.cli"]
    command += ["submit", "hi", "--url", threaded_server]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(5) == "Grüße"
            assert script.hanging.wait(60)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert script.canceled == [script.bodies[0]["task_id"]], err
    assert process.returncode == 130
    assert "canceled" in err
    assert "Traceback" not in err


def test_status_shows_readiness_and_figures(threaded_server: str, script: Script) -> None:
    result = llorch("status", "--url", threaded_server)
    assert result.exit_code == 0
    assert result.stdout.startswith("ready")
    assert "1 of 1 replicas ready" in result.stdout
    assert "queue_depth batch" in result.stdout
    assert " 7" in result.stdout
    script.ready = False
    result = llorch("status", "--url", threaded_server)
    assert result.exit_code == 1
    assert result.stdout.startswith("not ready")


def test_status_of_a_task_says_why(threaded_server: str, script: Script) -> None:
    script.why = "least-loaded: dev-0 with 1 of 4 slots taken"
    result = llorch("status", str(UUID(int=4)), "--url", threaded_server)
    assert result.exit_code == 0
    assert "running" in result.stdout
    assert script.why in result.stdout


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_check_prints_every_problem_with_place_and_hint() -> None:
    Path("f.yaml").write_text("pools:\n  - {id: a, engine: vllm, model: m, devices: [0], slts: 1}\nsevrer: {}\n")
    result = llorch("check", "f.yaml")
    assert result.exit_code == 1
    for line in (
        "f.yaml:2:51: error: unknown field `slts`",
        "    did you mean `slots`?",
        "f.yaml:3:1: error: unknown field `sevrer`",
        "    did you mean `server`?",
        "f.yaml:2:34: error: pool `a` names no model_path",
        "3 problems",
    ):
        assert line in result.stderr


def test_check_of_a_good_file_shows_its_warnings(root: Path) -> None:
    result = llorch("check", str(root / "examples/dev.yaml"))
    assert result.exit_code == 0
    assert "good (1 pool, 2 warnings)" in result.stdout
    assert "warning: pool `dev` runs on the CPU" in result.stderr
