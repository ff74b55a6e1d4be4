"""What the service does when queues fill, engines stall and engines die."""

import concurrent.futures
import os
import signal
import time

import pytest

from tests.cluster.conftest import Service, text_of
from tests.contract.interactions import SMALL_QUEUE_MODEL


def fill(service: Service, model: str, priority: str) -> list[str]:
    """Occupy the only slot and both queue places; returns the three tasks."""
    running = service.submit(model_ref=model, priority=priority, max_tokens=1500)
    service.wait_for(running, "running")
    return [running, *(service.submit(model_ref=model, priority=priority, max_tokens=2) for _ in range(2))]


def drain(service: Service, tasks: list[str]) -> None:
    for task_id in tasks:
        service.http.post(f"/v1/tasks/{task_id}/cancel")


@pytest.mark.req("ORCH-3004", "ORCH-3005", "ORCH-2007", "OC-CTRL-2011", "OC-CORE-1002")
def test_a_full_queue_rejects_interactive_tasks_and_says_when_to_retry(service: Service) -> None:
    tasks = fill(service, SMALL_QUEUE_MODEL, "interactive")
    try:
        answer = service.http.post("/v1/tasks", json=service.body(model_ref=SMALL_QUEUE_MODEL))
        error = answer.json()
        assert (answer.status_code, error["code"], error["policy_label"]) == (429, "ADMISSION_REJECT", "reject")
        assert error["retriable"] is True
        assert int(answer.headers["Retry-After"]) >= 1
        assert int(answer.headers["X-Backoff-Ms"]) == error["retry_after_ms"] >= 1
    finally:
        drain(service, tasks)


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_a_full_queue_drops_the_oldest_batch_task_and_tells_it(service: Service) -> None:
    tasks = fill(service, SMALL_QUEUE_MODEL, "batch")
    try:
        tasks.append(service.submit(model_ref=SMALL_QUEUE_MODEL, priority="batch", max_tokens=2))
        dropped = service.wait_for(tasks[1], "dropped")
        assert dropped["error"]["code"] == "QUEUE_FULL_DROP_LRU"
        assert dropped["error"]["policy_label"] == "drop-lru"
        answer = service.http.get(f"/v1/tasks/{tasks[1]}/stream").text
        assert answer.startswith("event: error\n")
        assert "QUEUE_FULL_DROP_LRU" in answer
    finally:
        drain(service, tasks)


@pytest.mark.req("ORCH-3005", "OC-CORE-1002")
def test_a_full_queue_sheds_lower_priority_for_higher(service: Service) -> None:
    tasks = fill(service, "shed", "batch")
    try:
        tasks.append(service.submit(model_ref="shed", priority="interactive", max_tokens=2))
        shed = service.wait_for(tasks[2], "dropped")
        assert shed["error"]["policy_label"] == "shed-low-priority"
        answer = service.http.post("/v1/tasks", json=service.body(model_ref="shed", priority="batch"))
        assert (answer.status_code, answer.json()["policy_label"]) == (429, "shed-low-priority")
    finally:
        drain(service, tasks)


@pytest.mark.req("ORCH-3016", "OC-CORE-1022")
def test_the_watchdog_ends_a_stalled_task_with_a_typed_error(service: Service) -> None:
    events = service.events(service.submit(model_ref="stalling", max_tokens=50))
    assert sum(name == "token" for name, _ in events) == 20
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "DECODE_TIMEOUT")
    assert (events[-1][1]["engine"], events[-1][1]["pool_id"]) == ("llamacpp", "stalling")


@pytest.mark.req("ORCH-3009", "ORCH-3023", "ORCH-3045", "ORCH-3002", "ORCH-3010", "OC-CORE-1010", "ORCH-2006")
def test_a_stream_goes_on_when_the_only_engine_is_killed_and_comes_back(service: Service) -> None:
    whole = text_of(service.events(service.submit(model_ref="fragile", max_tokens=300, seed=5)))
    task_id = service.submit(model_ref="fragile", max_tokens=300, seed=5)
    until = time.monotonic() + 60
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        stream = reader.submit(service.events, task_id)
        while service.status(task_id)["tokens_out"] < 3:
            assert time.monotonic() < until
            time.sleep(0.02)
        (pid,) = service.engine_pids("fragile")
        os.kill(pid, signal.SIGKILL)
        # Nobody is there to serve another task; the one that was accepted waits.
        while (answer := service.http.post("/v1/tasks", json=service.body(model_ref="fragile"))).status_code == 202:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert answer.json()["code"] in ("POOL_UNREADY", "POOL_UNAVAILABLE")
        events = stream.result(60)
    assert text_of(events) == whole
    assert events[-1][0] == "end"
    told = [data for name, data in events if name == "metrics" and data.get("failover")]
    assert [(data["resumed"], data["kv_warmth"], data["kv_migrated"]) for data in told] == [(True, False, False)]
    assert service.status(task_id)["attempt"] == 2
    assert pid not in service.engine_pids("fragile")
