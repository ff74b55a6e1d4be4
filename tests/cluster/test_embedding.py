"""Embeddings and ranks over HTTP: submitted, followed, re-attached, refused and listed like any task."""

import json
import os
import subprocess
import sys
import uuid
from typing import Any

import pytest

from adapters.testing.fake_pooled import DIMENSIONS, PAIR_EXTRA_TOKENS
from tests.cluster.conftest import Service, data_of
from tests.contract.interactions import KEY, MODEL

TEXTS = ["one two three", "four", "five six"]


def embedding(**changes: Any) -> dict[str, Any]:
    fields = {"workload": "embedding", "model_ref": "embed", "prompt": None, "inputs": TEXTS, "max_tokens": 1}
    return fields | changes


def rerank(**changes: Any) -> dict[str, Any]:
    return embedding(workload="rerank", model_ref="rank", prompt="which one") | changes


@pytest.mark.req("ORCH-2001", "ORCH-2002", "OC-CTRL-2020", "ORCH-3045")
def test_an_embedding_comes_whole_with_the_end_and_again_on_every_attach(service: Service) -> None:
    task_id = service.submit(**embedding())
    events = service.events(task_id)
    assert {name for name, _ in events} <= {"started", "metrics", "end"}
    assert data_of(events, "started")["determinism"] == "strict"
    end = data_of(events, "end")
    assert (end["tokens_in"], end["tokens_out"], end["decode_ms"], end["finish_reason"]) == (6, 0, 0, "stop")
    assert [len(numbers) for numbers in end["embeddings"]] == [DIMENSIONS] * 3
    for after in (None, 0, 2):
        again = service.http.get(
            f"/v1/tasks/{task_id}/stream", headers={} if after is None else {"Last-Event-ID": str(after)}
        )
        assert json.loads(again.text.rpartition("data: ")[2]) == end
    # In one call, in another order: an input's numbers are its own.
    one_call = service.http.post(
        "/v1/tasks", json=service.body(**embedding(inputs=TEXTS[::-1])), headers={"Accept": "text/event-stream"}
    )
    assert json.loads(one_call.text.rpartition("data: ")[2])["embeddings"] == end["embeddings"][::-1]
    status = service.wait_for(task_id, "finished")
    assert (status["tokens_in"], status["tokens_out"]) == (6, 0)


@pytest.mark.req("ORCH-2002", "ORCH-3045")
def test_ranks_come_best_first_and_say_that_nothing_is_promised(service: Service) -> None:
    events = service.events(service.submit(**rerank()))
    assert data_of(events, "started")["determinism"] == "best_effort"
    end = data_of(events, "end")
    assert end["tokens_in"] == 6 + 3 * (2 + PAIR_EXTRA_TOKENS)
    assert sorted(rank["index"] for rank in end["ranks"]) == [0, 1, 2]
    scores = [rank["score"] for rank in end["ranks"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.req("OC-CORE-1020", "ORCH-3015", "ORCH-3045")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workload": "completion", "model_ref": "embed", "prompt": "x"}, "served: embedding"),
        (embedding(model_ref=MODEL), "served: completion"),
        (rerank(determinism="strict"), "send 'best_effort'"),
        (embedding(inputs=["x", "word" + " word" * 2999]), "the longest input has 3000 tokens and ctx is 2048"),
        (embedding(inputs=["x", ""]), "$.inputs[1]"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(service: Service, changes: dict[str, Any], said: str) -> None:
    answer = service.http.post("/v1/tasks", json=service.body(**changes))
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "INVALID_PARAMS"
    assert said in answer.json()["message"]


@pytest.mark.req("ORCH-3095")
def test_capabilities_and_metrics_tell_what_was_served(service: Service) -> None:
    service.wait_for(service.submit(**embedding()), "finished")
    (engine,) = service.http.get("/v1/capabilities").json()["engines"]
    assert set(engine["supported_workloads"]) == {"completion", "embedding", "rerank"}
    assert "strict_determinism" in engine["features"]
    page = service.http.get("/metrics").text.splitlines()
    (tokens_in,) = [line for line in page if line.startswith("tokens_in_total{") and 'pool_id="embed"' in line]
    assert float(tokens_in.rsplit(" ", 1)[1]) >= 6
    made = [line for line in page if line.startswith("tokens_out_total{") and 'pool_id="embed"' in line]
    assert not any(float(line.rsplit(" ", 1)[1]) for line in made)


def test_the_command_line_embeds(service: Service) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "submit", "--workload", "embedding", "--model", "embed"]
    for text in TEXTS:
        command += ["--input", text]
    told = subprocess.run(
        [*command, "--url", service.url],
        env=os.environ | {"LLORCH_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    numbers = [json.loads(line) for line in told.stdout.splitlines()]
    assert numbers == data_of(service.events(service.submit(**embedding())), "end")["embeddings"]
    assert "3 results of 6 tokens" in told.stderr


@pytest.mark.req("ORCH-3024")
def test_the_same_embedding_again_is_the_same_task(service: Service) -> None:
    body = service.body(**embedding(task_id=str(uuid.uuid4())))
    first, second = (service.http.post("/v1/tasks", json=body) for _ in range(2))
    assert (first.status_code, second.status_code, first.json()) == (202, 202, second.json())
    assert service.http.post("/v1/tasks", json=body | {"inputs": ["other"]}).status_code == 409
