"""Cancellation in every phase, on the running service: one outcome, no token after, the slot free again."""

import threading
import time

import pytest

from tests.cluster.conftest import Service, text_of

#: The model's two end tokens are ruled out: it writes until it is stopped.
ENDLESS = {"temperature": 0, "logit_bias": {"0": -100, "2": -100}}
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 180


def cancel(service: Service, task_id: str) -> None:
    assert service.http.post(f"/v1/tasks/{task_id}/cancel").status_code == 204


def assert_canceled(service: Service, task_id: str) -> int:
    """The task is over, its stream agrees with its status, and both stay so; returns the tokens it had."""
    status = service.status(task_id)
    assert status["state"] == "canceled"
    events = service.events(task_id) if status.get("replica_id") else []
    if events:
        assert events[-1] == (
            "end",
            events[-1][1] | {"finish_reason": "canceled", "tokens_out": status["tokens_out"]},
        )
        assert sum(name == "token" for name, _ in events) == status["tokens_out"]
    assert service.status(task_id) == status
    return int(status["tokens_out"])


@pytest.mark.req("ORCH-2003", "ORCH-3017", "ORCH-3026", "OC-CTRL-2012", "OC-CORE-1005")
def test_cancel_while_queued(service: Service) -> None:
    first = service.submit(model_ref="shed", max_tokens=500)
    waiting = service.submit(model_ref="shed", max_tokens=5)
    cancel(service, waiting)
    assert assert_canceled(service, waiting) == 0
    cancel(service, first)
    assert service.status(first)["state"] == "canceled"


@pytest.mark.req("ORCH-2003", "ORCH-3017", "ORCH-3026")
def test_cancel_during_prefill_frees_the_slot(service: Service) -> None:
    tasks = [service.submit(prompt=f"{n} {LONG_PROMPT}", max_tokens=8) for n in range(8)]
    for task_id in tasks:
        service.wait_for(task_id, "running", "finished")
        cancel(service, task_id)
    states = [service.status(task_id) for task_id in tasks]
    assert {state["state"] for state in states} <= {"canceled", "finished"}
    assert any(state["state"] == "canceled" and state["tokens_out"] == 0 for state in states)
    # All eight slots of the two replicas serve again.
    for task_id in [service.submit(max_tokens=2) for _ in range(8)]:
        service.wait_for(task_id, "finished")


@pytest.mark.req("ORCH-2003", "ORCH-3017", "ORCH-3026")
def test_cancel_in_mid_stream(service: Service) -> None:
    task_id = service.submit(max_tokens=1500, prompt="Count: one, two, three,", sampling=ENDLESS)
    events: list[str] = []
    streaming = threading.Thread(target=lambda: events.extend(name for name, _ in service.events(task_id)))
    streaming.start()
    until = time.monotonic() + 60
    while service.status(task_id)["tokens_out"] < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    cancel(service, task_id)
    had = assert_canceled(service, task_id)
    streaming.join(30)
    assert events.count("token") == had
    assert events[-1] == "end"
    assert 3 <= had < 1500


@pytest.mark.req("ORCH-3026", "OC-CTRL-2012")
def test_cancel_racing_the_end_gives_one_outcome(service: Service) -> None:
    outcomes = set()
    for n in range(12):
        task_id = service.submit(model_ref="fragile", max_tokens=4)
        time.sleep(0.008 * n)  # from well before the end to after it
        cancel(service, task_id)
        status = service.wait_for(task_id, "canceled", "finished")
        events = service.events(task_id) if status.get("replica_id") else [("started", {}), ("end", {})]
        text_of(events)
        outcomes.add(status["state"])
        assert service.status(task_id)["state"] == status["state"]
    assert "finished" in outcomes


@pytest.mark.req("ORCH-2003")
def test_canceling_an_unknown_task_is_not_found(service: Service) -> None:
    answer = service.http.post("/v1/tasks/00000000-0000-4000-8000-000000000404/cancel")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def leave_after_first_token(service: Service, method: str, path: str, **request: object) -> None:
    with service.http.stream(method, path, **request) as stream:
        for part in stream.iter_text():
            if "event: token" in part:
                return


@pytest.mark.req("ORCH-3017", "OC-CTRL-2012")
def test_a_client_that_leaves_an_accepted_task_does_not_end_it(service: Service) -> None:
    task_id = service.submit(model_ref="fragile", max_tokens=60)
    leave_after_first_token(service, "GET", f"/v1/tasks/{task_id}/stream")
    assert service.wait_for(task_id, "finished")["tokens_out"] == 60


@pytest.mark.req("ORCH-3017", "OC-CTRL-2012")
def test_a_client_that_leaves_ends_its_task_if_it_asked_for_that(service: Service) -> None:
    task_id = service.submit(model_ref="fragile", max_tokens=1500, cancel_on_disconnect=True)
    leave_after_first_token(service, "GET", f"/v1/tasks/{task_id}/stream")
    assert service.wait_for(task_id, "canceled")["tokens_out"] < 1500


@pytest.mark.req("ORCH-3017", "OC-CTRL-2012")
def test_leaving_a_one_call_stream_cancels_by_default(service: Service) -> None:
    body = service.body(model_ref="fragile", max_tokens=1500)
    leave_after_first_token(service, "POST", "/v1/tasks", json=body, headers={"Accept": "text/event-stream"})
    assert service.wait_for(body["task_id"], "canceled")["tokens_out"] < 1500
