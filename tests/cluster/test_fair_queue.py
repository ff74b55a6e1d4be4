"""Fair queue, deadlines, preemption, rates, sessions and budgets on a running service of their own.

`llorch run` on real Ray with one pool of one slot: its engine is the paced fake, so that who goes first and
what gives way can be seen from outside.
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.testing.fake_llama_server import free_port, write_fake_binary
from adapters.testing.fake_model import write_fake_model
from tests.cluster.conftest import (
    MARK,
    OTHER_KEY,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    Service,
    fake_pool,
    marked_pids,
    parse_events,
    text_of,
)
from tests.contract.interactions import KEY

RATED_KEY = "llorch-rated-test-key"
TOKEN_MS = 20
BUDGET_TOKENS = 5000
BURST = 2
EVENTS = {"Accept": "text/event-stream"}


def settings(directory: Path) -> dict[str, Any]:
    """One pool with hard preemption, tenants of weights 3 and 1, a key with a rate, a budget of tokens."""
    model_file = write_fake_model(directory / "fake.gguf")
    tenants = [{"id": "heavy", "weight": 3}, {"id": "light", "weight": 1}]
    pool = fake_pool(
        "fair",
        model_file,
        # In the binary, not in the pool: an engine with extra arguments claims no warm sessions.
        write_fake_binary(directory, "--fake-token-ms", str(TOKEN_MS)),
        "",
        admission={"fairness": {"tenants": tenants}},
        preemption={"mode": "hard"},
    )
    keys = (("heavy", KEY, {}), ("light", OTHER_KEY, {}), ("rated", RATED_KEY, {"rps": 0.01, "burst": BURST}))
    return {
        "pools": [pool],
        "auth": {
            "keys": [
                {"name": name, "tenant": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} | rate
                for name, key, rate in keys
            ]
        },
        "sessions": {"budget": {"tokens": BUDGET_TOKENS}},
    }


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`llorch run` with `settings`, ended by SIGINT."""
    directory = tmp_path_factory.mktemp("fair")
    config, log, mark = directory / "llorch.yaml", directory / "run.log", uuid.uuid4().hex
    config.write_text(yaml.safe_dump(settings(directory)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(config), "--port", str(free_port())],
            cwd=directory,
            env=os.environ | {MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while "ready: http" not in log.read_text():
            assert process.poll() is None, f"llorch run ended:\n{log.read_text()}"
            assert time.monotonic() < until, f"not ready in time:\n{log.read_text()}"
            time.sleep(0.2)
        found = json.loads((directory / ".llorch" / "dev.json").read_text())
        running = Service(found["url"], found["ray_address"], mark)
        yield running
        running.http.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
        for pid in marked_pids(mark):
            os.kill(pid, signal.SIGKILL)


def body(service: Service, **changes: Any) -> dict[str, Any]:
    return service.body(model_ref="fair", **changes)


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.req("ORCH-3079", "ORCH-3029")
def test_a_deadline_that_cannot_be_met_is_refused_with_one_that_can(fair: Service) -> None:
    long = {"max_tokens": 100, "expected_tokens": 100}
    answer = fair.http.post("/v1/tasks", json=body(fair, **long, deadline_ms=50))
    error = answer.json()
    assert (answer.status_code, error["code"], error["retriable"]) == (400, "DEADLINE_UNMET", False)
    assert error["earliest_deadline_ms"] > 50
    offered = body(fair, **long, deadline_ms=error["earliest_deadline_ms"])
    admitted = fair.http.post("/v1/tasks", json=offered)
    assert admitted.status_code == 202, admitted.text
    assert 0.4 < admitted.json()["on_time_probability"] <= 1
    assert fair.wait_for(offered["task_id"], "finished", "failed")["why"]


@pytest.mark.req("ORCH-2004", "ORCH-2005", "ORCH-3021", "OC-CTRL-2040")
def test_a_session_is_told_and_closed_by_its_own_tenant_alone(fair: Service) -> None:
    asked = body(fair, max_tokens=5)
    path = f"/v1/sessions/{asked['session_id']}"
    assert fair.http.get(path).status_code == 404
    fair.http.post("/v1/tasks", json=asked)
    fair.wait_for(asked["task_id"], "finished")
    session = fair.http.get(path).json()
    assert (session["turns"], session["kv_warmth"]) == (1, True)
    assert 0 < session["ttl_ms_remaining"] <= 600_000
    # Five tokens of prompt and five made.
    assert session["tokens_budget_remaining"] == BUDGET_TOKENS - 10
    for method in ("GET", "DELETE"):
        assert fair.http.request(method, path, headers=headers(OTHER_KEY)).status_code == 404
    assert fair.http.delete(path).status_code == 204
    for method in ("GET", "DELETE"):
        answer = fair.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.req("ORCH-3099", "OC-CORE-1023", "OC-CORE-1024")
def test_what_is_left_of_a_budget_is_told_and_more_is_refused(fair: Service) -> None:
    session = str(uuid.uuid4())
    first = fair.http.post("/v1/tasks", json=body(fair, session_id=session, max_tokens=8))
    left = int(first.headers["X-Budget-Tokens-Remaining"])
    assert left == first.json()["tokens_budget_remaining"]
    assert BUDGET_TOKENS - 100 < left <= BUDGET_TOKENS - 8
    fair.wait_for(first.json()["task_id"], "finished")
    second = fair.http.post("/v1/tasks", json=body(fair, session_id=session, max_tokens=8), headers=EVENTS)
    assert int(second.headers["X-Budget-Tokens-Remaining"]) < BUDGET_TOKENS - 13
    assert text_of(parse_events(second.text))
    # Three that ask for most of a context each, and wait: the third is over what the first two leave.
    asked = [body(fair, session_id=session, max_tokens=1900, priority="batch") for _ in range(3)]
    answers = [fair.http.post("/v1/tasks", json=each) for each in asked]
    try:
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        error = answers[2].json()
        assert error["code"] == "ADMISSION_REJECT"
        assert "budget" in error["message"]
    finally:
        for each in asked:
            fair.http.post(f"/v1/tasks/{each['task_id']}/cancel")


@pytest.mark.req("ORCH-3006", "ORCH-2007", "OC-CTRL-2011")
def test_a_key_over_its_rate_is_told_when_to_come_again_and_others_go_on(fair: Service) -> None:
    answers = [
        fair.http.post("/v1/tasks", json=body(fair, max_tokens=1), headers=headers(RATED_KEY)) for _ in range(BURST + 1)
    ]
    assert [answer.status_code for answer in answers] == [202] * BURST + [429]
    error = answers[-1].json()
    assert (error["code"], error["policy_label"], error["retriable"]) == ("ADMISSION_REJECT", "reject", True)
    # One in 100 s, less what has gone by since the first two.
    assert 30_000 < error["retry_after_ms"] <= 100_000
    assert answers[-1].headers["Retry-After"] == str(math.ceil(error["retry_after_ms"] / 1000))
    assert answers[-1].headers["X-Backoff-Ms"] == str(error["retry_after_ms"])
    assert fair.http.post("/v1/tasks", json=body(fair, max_tokens=1)).status_code == 202
    page = fair.http.get("/metrics").text
    assert '\nadmission_backpressure_events_total{engine="llamacpp",policy="reject"}' in page
    assert '\ntasks_rejected_total{engine="llamacpp",reason="ADMISSION_REJECT"}' in page


@pytest.mark.req("ORCH-3075")
def test_tenants_that_both_wait_are_served_by_weight(fair: Service) -> None:
    """Weights 3 and 1, one slot, eight equal tasks each: of the first eight, six are of the heavy tenant."""
    blocker = fair.http.post("/v1/tasks", json=body(fair, max_tokens=100)).json()["task_id"]
    fair.wait_for(blocker, "running")
    sent: list[tuple[str, str, float]] = []
    for _ in range(8):
        for key in (OTHER_KEY, KEY):
            asked = body(fair, max_tokens=10, priority="batch")
            assert fair.http.post("/v1/tasks", json=asked, headers=headers(key)).status_code == 202
            sent.append((asked["task_id"], key, time.monotonic()))
    starts = []
    until = time.monotonic() + 60
    for task_id, key, at in sent:
        while (status := fair.http.get(f"/v1/tasks/{task_id}", headers=headers(key)).json())["state"] != "finished":
            assert time.monotonic() < until, status
            time.sleep(0.02)
        starts.append((at + status["queue_time_ms"] / 1000, key))
    first = [key for _, key in sorted(starts)[:8]]
    assert 5 <= first.count(KEY) <= 7, first


@pytest.mark.req("ORCH-3086", "ORCH-3087", "ORCH-3100")
def test_an_urgent_task_interrupts_a_long_one_which_goes_on_with_the_same_text(fair: Service) -> None:
    long = {"max_tokens": 150, "priority": "batch", "prompt": "a long story", "seed": 7}
    undisturbed = text_of(parse_events(fair.http.post("/v1/tasks", json=body(fair, **long), headers=EVENTS).text))
    interrupted = fair.http.post("/v1/tasks", json=body(fair, **long)).json()["task_id"]
    until = time.monotonic() + 60
    while fair.status(interrupted)["tokens_out"] < 10:
        assert time.monotonic() < until
        time.sleep(0.02)
    urgent = fair.http.post("/v1/tasks", json=body(fair, max_tokens=5, deadline_ms=1500), headers=EVENTS)
    assert parse_events(urgent.text)[-1][0] == "end"
    assert fair.status(interrupted)["state"] != "finished"
    events = fair.events(interrupted)
    assert text_of(events) == undisturbed
    assert events[-1][1]["tokens_out"] == 150
    status = fair.status(interrupted)
    assert (status["preempted"], status["state"]) == (True, "finished")
    page = fair.http.get("/metrics").text
    assert '\npreemptions_total{engine="llamacpp",mode="hard"} 1.0\n' in page
    assert '\nresumptions_total{engine="llamacpp"} 1.0\n' in page


@pytest.mark.req("OC-CTRL-2051", "ORCH-3076", "ORCH-3081", "ORCH-3041")
def test_the_metrics_of_the_fair_queue_are_there(fair: Service) -> None:
    for priority in ("interactive", "batch"):
        asked = body(fair, max_tokens=2, priority=priority)
        fair.http.post("/v1/tasks", json=asked)
        fair.wait_for(asked["task_id"], "finished")
    page = fair.http.get("/metrics").text
    for name in (
        'deadlines_met_ratio{priority="interactive"}',
        'deadlines_met_ratio{priority="batch"}',
        'slo_attainment_ratio{priority="interactive"}',
        'admission_share{priority="batch",tenant="heavy"}',
    ):
        assert f"\n{name}" in page, name
    shares = [float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("admission_share{")]
    assert math.isclose(sum(shares), 1.0, abs_tol=0.01)
