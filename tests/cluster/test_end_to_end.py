"""The real model through HTTP, queue, placement, engine and SSE, on the running service."""

import concurrent.futures
from typing import Any

import pytest

from tests.cluster.conftest import OTHER_KEY, Service, data_of, parse_events, text_of

SEED = 20_241_122


def run_one(service: Service, **changes: Any) -> list[tuple[str, dict[str, Any]]]:
    """One-call mode: submit and stream in one request."""
    answer = service.http.post("/v1/tasks", json=service.body(**changes), headers={"Accept": "text/event-stream"})
    assert answer.status_code == 200, answer.text
    return parse_events(answer.text)


@pytest.mark.req("ORCH-2001", "ORCH-2002", "ORCH-3001", "ORCH-3029", "OC-CTRL-2010", "OC-CTRL-2020", "OC-CTRL-2021")
def test_a_task_is_admitted_started_streamed_and_ended(service: Service) -> None:
    admitted = service.http.post("/v1/tasks", json=(body := service.body()))
    assert admitted.status_code == 202
    admission = admitted.json()
    assert admission["task_id"] == body["task_id"]
    assert admission["queue_position"] >= 0
    assert admission["predicted_start_ms"] >= 0
    events = service.events(body["task_id"])
    started = data_of(events, "started")
    assert started["queue_position"] == admission["queue_position"]
    assert started["predicted_start_ms"] == admission["predicted_start_ms"]
    assert started["engine"] == "llamacpp"
    assert started["model_digest"].startswith("sha256:")
    assert started["accelerator"] == "cpu-dev"
    assert text_of(events)
    assert events[-1][0] == "end"
    tokens = sum(name == "token" for name, _ in events)
    assert 1 <= tokens == events[-1][1]["tokens_out"] <= 24
    status = service.status(body["task_id"])
    assert (status["state"], status["tokens_out"], status["tokens_in"]) == ("finished", tokens, 5)


@pytest.mark.req("ORCH-3045", "ORCH-3046", "ORCH-3058", "ORCH-3050")
def test_the_same_task_gives_the_same_bytes_alone_and_amid_others_on_both_replicas(service: Service) -> None:
    prompts = ["The capital of France is", "Once upon a time there was a small robot who", "Ünïcödé 🙂 and then"]

    def ask(prompt: str, seed: int) -> tuple[str, str]:
        events = run_one(service, prompt=prompt, seed=seed, max_tokens=48)
        return data_of(events, "started")["replica_id"], text_of(events)

    for prompt in prompts:
        _, alone = ask(prompt, SEED)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            others = [pool.submit(ask, f"Tell me about the number {n}.", n) for n in range(8)]
            same = [pool.submit(ask, prompt, SEED) for _ in range(6)]
            results = [future.result() for future in same]
            for other in others:
                other.result()
        assert {text for _, text in results} == {alone}
        assert {replica for replica, _ in results} == {"real-0", "real-1"}


@pytest.mark.req("ORCH-3024", "ORCH-2001")
def test_submitting_again_is_the_same_task_and_another_body_is_a_conflict(service: Service) -> None:
    body = service.body(max_tokens=4)
    first = service.http.post("/v1/tasks", json=body)
    again = service.http.post("/v1/tasks", json=body)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    service.wait_for(body["task_id"], "finished")
    assert service.http.post("/v1/tasks", json=body).json() == first.json()
    conflict = service.http.post("/v1/tasks", json=body | {"max_tokens": 5})
    assert conflict.status_code == 409
    assert conflict.json()["code"] == "TASK_ID_CONFLICT"


@pytest.mark.req("ORCH-2002", "OC-CTRL-2022")
def test_a_stream_is_taken_up_again_after_the_last_event_id(service: Service) -> None:
    task_id = service.submit(max_tokens=32)
    whole = service.events(task_id)
    for after in (-1, 0, 15, 30, 31):
        rest = service.events(task_id, after)
        assert [e for e in rest if e[0] == "token"] == [e for e in whole if e[0] == "token"][after + 1 :]
        assert rest[-1] == whole[-1]
    running = service.submit(max_tokens=200, model_ref="fragile")
    with service.http.stream("GET", f"/v1/tasks/{running}/stream") as stream:
        head = ""
        for part in stream.iter_text():
            head += part
            if '"i":3}' in head:
                break
    rest = service.events(running, 3)
    assert [data["i"] for name, data in rest if name == "token"] == list(range(4, 200))
    assert rest[-1][0] == "end"


@pytest.mark.req("OC-CTRL-2040", "ORCH-3035")
def test_a_tenant_neither_sees_nor_stops_another_tenants_task(service: Service) -> None:
    task_id = service.submit(model_ref="fragile", max_tokens=100)
    stranger = {"Authorization": f"Bearer {OTHER_KEY}"}
    for method, path in (("GET", ""), ("GET", "/stream"), ("POST", "/cancel")):
        answer = service.http.request(method, f"/v1/tasks/{task_id}{path}", headers=stranger)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    assert service.wait_for(task_id, "finished")["tokens_out"] == 100


@pytest.mark.req("ORCH-3014", "ORCH-3015", "OC-CORE-1020", "OC-CORE-1021")
def test_context_and_token_budget_are_checked_before_the_queue(service: Service) -> None:
    # A token each, and so long that four bytes for a token would be more than the context.
    words = "international " * 600
    for changes, part in (
        ({"ctx": 4096}, "2048"),
        ({"max_tokens": 2048}, "ctx"),
        ({"prompt": words, "max_tokens": 1500}, "tokens"),
        ({"model_ref": "no-such-model"}, "no-such-model"),
        ({"engine": "vllm"}, "vllm"),
    ):
        answer = service.http.post("/v1/tasks", json=service.body(**changes))
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMS"), answer.text
        assert part in answer.json()["message"]
    # The same long prompt fits with fewer tokens to generate: it was counted, not guessed.
    assert text_of(run_one(service, prompt=words, max_tokens=8)) is not None


@pytest.mark.req("ORCH-3058", "OC-ADAPT-5010")
def test_messages_go_through_the_models_template(service: Service) -> None:
    messages = [{"role": "user", "content": "Say hi"}]
    body = service.body(messages=messages, max_tokens=16, seed=1)
    del body["prompt"]
    answer = service.http.post("/v1/tasks", json=body, headers={"Accept": "text/event-stream"})
    events = parse_events(answer.text)
    assert events[-1][1]["tokens_in"] > 20  # the template's own tokens and the system message


@pytest.mark.req("ORCH-2001")
def test_a_task_without_prompt_is_a_completion_of_the_empty_prompt(service: Service) -> None:
    body = service.body(max_tokens=4)
    del body["prompt"]
    answer = service.http.post("/v1/tasks", json=body, headers={"Accept": "text/event-stream"})
    assert parse_events(answer.text)[-1][0] == "end"


@pytest.mark.req("ORCH-1101", "ORCH-3018")
def test_a_pool_without_its_gpu_refuses_at_once_and_never_falls_back(service: Service) -> None:
    answer = service.http.post("/v1/tasks", json=service.body(model_ref="smollm2-135m-instruct-down"))
    assert (answer.status_code, answer.json()["code"]) == (503, "POOL_UNAVAILABLE")
    assert answer.json()["retriable"] is True
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.req("OC-CTRL-2051", "ORCH-3032")
def test_the_metrics_of_the_path_are_there(service: Service) -> None:
    run_one(service, max_tokens=3)
    page = service.http.get("/metrics").text
    for name in (
        "tasks_enqueued_total",
        "tasks_started_total",
        "tasks_rejected_total",
        "queue_depth",
        "latency_first_token_ms_bucket",
        "latency_decode_ms_bucket",
        "tokens_in_total",
        "tokens_out_total",
    ):
        assert f"\n{name}{{" in page, name
    assert 'engine_version="llama.cpp ' in page
