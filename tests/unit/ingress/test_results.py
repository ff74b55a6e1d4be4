"""Embeddings and ranks on their way to the client: gathered, byte for byte, and told with the end."""

import asyncio
import json
from typing import Any

import pytest

from contracts import openapi_examples as ex
from contracts.api import End
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import Tokens
from orchestrator.ingress import results
from orchestrator.ingress.app import build_app
from orchestrator.ingress.frontend import Frontend
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.results import EndWithResults, Events, gathered
from orchestrator.ingress.submission import parse_submission
from tests.unit.ingress.asgi import SETTINGS, Call, Exchange, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

STREAM = f"/v1/tasks/{ex.TASK_ID}/stream"
DIGITS = ["[-0.02043287828564644,1e-05]", "[0.10000000149011612,1.0]", "[0.30,-0.0]"]
RANKS = [
    '{"index":0,"score":-1.4316926002502441}',
    '{"index":1,"score":2.50}',
    '{"index":2,"score":-1.4316926002502441}',
]
DONE = End(tokens_out=0, decode_ms=0, finish_reason="stop", tokens_in=9)


def embedding(**changes: Any) -> dict[str, Any]:
    return task_body(task_id=ex.TASK_ID, workload="embedding", prompt=None, inputs=["a", "bc", "d"]) | changes


def rerank(**changes: Any) -> dict[str, Any]:
    return task_body(task_id=ex.TASK_ID, workload="rerank", prompt="which?", inputs=["a", "bc", "d"]) | changes


def end_of(answer: Exchange) -> bytes:
    """The data of the last event as it stands on the wire."""
    return answer.body.rpartition(b"data: ")[2].removesuffix(b"\n\n")


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2022", "ORCH-3045")
async def test_embeddings_come_in_the_end_event_as_the_engine_wrote_them(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, DIGITS[:2]), ex.METRICS, Tokens(2, DIGITS[2:]), DONE]
    assert (await call("POST", "/v1/tasks", embedding())).status == 202
    answer = await call("GET", STREAM)
    assert [name for _, name, _ in answer.events] == ["started", "metrics", "end"]
    assert end_of(answer) == (
        b'{"tokens_out":0,"decode_ms":0,"finish_reason":"stop","tokens_in":9,"embeddings":[%b]}'
        % ",".join(DIGITS).encode()
    )
    assert answer.complete
    assert gateway.streams_open == 0


@pytest.mark.req("ORCH-2002", "OC-CTRL-2022")
async def test_ranks_come_best_first_and_equal_ones_in_the_order_given(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, RANKS), DONE]
    answer = await call("POST", "/v1/tasks", rerank(), accept="text/event-stream")
    assert answer.status == 200
    assert [name for _, name, _ in answer.events] == ["started", "end"]
    assert end_of(answer).endswith(b'"ranks":[%b]}' % ",".join([RANKS[1], RANKS[0], RANKS[2]]).encode())


@pytest.mark.req("ORCH-2002", "OC-CTRL-2021")
@pytest.mark.parametrize("last", ["-1", "0", "1", "99"])
async def test_who_attaches_again_gets_all_results_again(call: Call, gateway: FakeGateway, last: str) -> None:
    gateway.script = [ex.STARTED, Tokens(0, DIGITS), DONE]
    posted = await call("POST", "/v1/tasks", embedding(), accept="text/event-stream", last_event_id=last)
    got = await call("GET", STREAM, last_event_id=last)
    for answer in (posted, got):
        assert json.loads(end_of(answer))["embeddings"] == [json.loads(digits) for digits in DIGITS]


@pytest.mark.req("OC-CTRL-2020", "ORCH-3026")
@pytest.mark.parametrize(
    "last", [ErrorInfo("WORKER_RESET", "the engine ended", retriable=True), End(0, 0, "canceled", 0)]
)
async def test_a_failed_or_canceled_task_has_no_results(
    call: Call, gateway: FakeGateway, last: End | ErrorInfo
) -> None:
    gateway.script = [ex.STARTED, Tokens(0, DIGITS[:1]), last]
    await call("POST", "/v1/tasks", embedding())
    name, data = (await call("GET", STREAM)).events[-1][1:]
    assert name == ("end" if isinstance(last, End) else "error")
    assert "embeddings" not in data


async def test_results_beyond_the_bound_end_in_an_error(
    call: Call, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULT_BYTES_MAX", sum(map(len, DIGITS)) - 1)
    gateway.script = [ex.STARTED, Tokens(0, DIGITS), DONE]
    await call("POST", "/v1/tasks", embedding())
    name, data = (await call("GET", STREAM)).events[-1][1:]
    assert (name, data["code"], data["retriable"]) == ("error", "INVALID_PARAMS", False)
    assert gateway.streams_open == 0


async def test_results_of_all_streams_share_a_bound_that_is_given_back(call: Call, gateway: FakeGateway) -> None:
    memory = ResultMemory(2 * sum(map(len, DIGITS)))
    task = parse_submission(json.dumps(embedding()).encode(), "acme", "c", one_call=False).task
    gateway.script = [ex.STARTED, Tokens(0, DIGITS[:1]), Tokens(1, DIGITS[1:]), DONE]
    await call("POST", "/v1/tasks", embedding())

    def attach() -> Events:
        return gathered(gateway.stream(ex.TASK_ID, "acme", -1), task, memory)

    first, second = attach(), attach()
    assert isinstance([event async for event in first][-1], EndWithResults)
    # Refused with the first results, before it holds any: the others would have no room.
    with pytest.raises(OrchError) as full:
        _ = [event async for event in second]
    assert (full.value.info.code, full.value.info.retriable) == ("ADMISSION_REJECT", True)
    assert full.value.info.retry_after_ms is not None
    await second.aclose()
    await first.aclose()
    assert memory.used_bytes == 0
    third = attach()
    assert isinstance([event async for event in third][-1], EndWithResults)
    assert third._texts == []  # type: ignore[union-attr]
    await third.aclose()


async def test_a_rank_that_is_none_is_our_failure(call: Call, gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, ['{"index":0}']), DONE]
    await call("POST", "/v1/tasks", rerank())
    assert (await call("GET", STREAM)).events[-1][2]["code"] == "INTERNAL"


@pytest.mark.req("ORCH-2001")
async def test_python_callers_get_the_same(gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, DIGITS), DONE]
    frontend = Frontend(gateway, SETTINGS)
    await frontend.submit(embedding(), "acme")
    for after in (-1, 1):
        events = [event async for event in frontend.stream(ex.TASK_ID, "acme", after)]
        assert [event["event"] for event in events] == ["started", "end"]
        assert events[-1]["data"]["embeddings"] == [json.loads(digits) for digits in DIGITS]


async def test_a_client_that_leaves_amid_the_results_leaves_nothing_behind(gateway: FakeGateway) -> None:
    gateway.script = [ex.STARTED, Tokens(0, DIGITS)]
    exchange = Exchange(build_app(gateway, SETTINGS), "POST", "/v1/tasks", embedding(), accept="text/event-stream")
    exchange.start()
    while not gateway.streams_open:
        await asyncio.sleep(0.001)
    exchange.disconnect()
    await exchange.done()
    assert gateway.streams_open == 0


@pytest.mark.req("ORCH-3015", "OC-CTRL-2010")
def test_the_scheduler_is_told_the_sum_and_the_longest_of_the_inputs() -> None:
    def parsed(body: dict[str, Any]) -> tuple[int, int, int]:
        task = parse_submission(json.dumps(body).encode(), "acme", "c", one_call=False).task
        return task.items, task.prompt_bytes, task.longest_input_bytes

    assert parsed(embedding(inputs=["a", "\u00e9\u00e9", "d"])) == (3, 6, 4)
    # A rerank reads its query with every document.
    assert parsed(rerank(prompt="four", inputs=["a", "bc", "d"])) == (3, 16, 6)
    assert parsed(task_body(prompt="four")) == (1, 4, 0)


@pytest.mark.req("ORCH-3045")
def test_determinism_that_is_left_out_is_left_to_the_set_and_counts_as_strict_for_idempotency() -> None:
    tasks = [
        parse_submission(json.dumps(task_body(task_id=ex.TASK_ID, **said)).encode(), "acme", "c", one_call=False).task
        for said in ({}, {"determinism": None}, {"determinism": "strict"}, {"determinism": "best_effort"})
    ]
    assert [task.determinism for task in tasks] == ["", "", "strict", "best_effort"]
    assert tasks[0].body_digest == tasks[1].body_digest == tasks[2].body_digest != tasks[3].body_digest
