"""`POST /v1/tasks`: what is taken, what is refused, and what the gateway is told."""

import json
from typing import Any
from uuid import uuid4

import pytest
import structlog

from contracts.errors import HTTP_STATUS, ErrorInfo
from orchestrator.ingress.http import ClientGone, Request
from orchestrator.ingress.submission import derived_seed, parse_submission
from tests.unit.ingress.asgi import OTHER_KEY, SETTINGS, Call, Exchange, task_body
from tests.unit.ingress.fake_gateway import FakeGateway

TASKS = "/v1/tasks"


@pytest.mark.req("ORCH-2001", "OC-CTRL-2010")
async def test_a_valid_task_is_admitted(call: Call, gateway: FakeGateway) -> None:
    gateway.admission = {"queue_position": 3, "predicted_start_ms": 420, "backoff_ms": 10}
    body = task_body()
    answer = await call("POST", TASKS, body)
    assert answer.status == 202
    assert answer.json == {"task_id": body["task_id"], "queue_position": 3, "predicted_start_ms": 420, "backoff_ms": 10}
    assert answer.headers["location"] == f"/v1/tasks/{body['task_id']}"
    task = gateway.tasks[body["task_id"]]
    assert (task.info.tenant, task.info.engine, task.info.seed) == ("acme", "llamacpp", 42)
    assert task.request.prompt == body["prompt"]
    assert task.info.prompt_bytes == len(body["prompt"].encode())
    assert gateway.rejected == []


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("ctx zero", {"ctx": 0}, "$.ctx"),
    ("ctx negative", {"ctx": -1}, "$.ctx"),
    ("ctx a string", {"ctx": "10"}, "$.ctx"),
    ("ctx a float", {"ctx": 1.5}, "$.ctx"),
    ("ctx over int32", {"ctx": 2**31}, "$.ctx"),
    ("ctx missing", {"ctx": None}, "`ctx`"),
    ("max_tokens zero", {"max_tokens": 0}, "$.max_tokens"),
    ("deadline zero", {"deadline_ms": 0}, "$.deadline_ms"),
    ("seed negative", {"seed": -1}, "$.seed"),
    ("seed over int64", {"seed": 2**63}, "$.seed"),
    ("task_id not a UUID", {"task_id": "one"}, "$.task_id"),
    ("session_id not a UUID", {"session_id": "one"}, "$.session_id"),
    ("task_id a number", {"task_id": 7}, "$.task_id"),
    ("unknown engine", {"engine": "other"}, "llamacpp, vllm, tgi, triton"),
    ("unknown workload", {"workload": "train"}, "completion, embedding, rerank"),
    ("unknown priority", {"priority": "urgent"}, "interactive, batch"),
    ("unknown field", {"promt": "x"}, "`promt`"),
    ("unknown sampling field", {"sampling": {"temp": 1}}, "`temp`"),
    ("sampling out of range", {"sampling": {"top_p": 0}}, "$.sampling.top_p"),
    ("unknown role", {"prompt": None, "messages": [{"role": "robot", "content": ""}]}, "$.messages[0].role"),
    ("no messages", {"prompt": None, "messages": []}, "$.messages"),
    ("prompt and messages", {"messages": [{"role": "user", "content": "x"}]}, "$.messages"),
    ("prompt and inputs", {"inputs": ["x"]}, "$.inputs"),
    ("inputs for a completion", {"prompt": None, "inputs": ["x"]}, "$.inputs"),
    ("embedding of a prompt", {"workload": "embedding"}, "$.prompt"),
    ("embedding of nothing", {"workload": "embedding", "prompt": None}, "$.inputs"),
    ("embedding of an empty text", {"workload": "embedding", "prompt": None, "inputs": ["a", ""]}, "$.inputs[1]"),
    ("rerank without a query", {"workload": "rerank", "prompt": None, "inputs": ["a"]}, "send the query"),
    ("rerank with an empty query", {"workload": "rerank", "prompt": "", "inputs": ["a"]}, "send the query"),
    ("rerank of nothing", {"workload": "rerank"}, "$.inputs"),
    ("rerank of messages", {"workload": "rerank", "prompt": None, "messages": [{"role": "user", "content": "x"}]}, "$"),
    ("lone surrogate at the end", {"prompt": "a\ud800"}, "UTF-8"),
    ("lone surrogate inside", {"prompt": "\udc00 a"}, "UTF-8"),
    ("label value not text", {"labels": {"a": 1}}, "$.labels"),
    ("too many labels", {"labels": {str(n): "" for n in range(17)}}, "$.labels"),
    ("empty model_ref", {"model_ref": ""}, "$.model_ref"),
]


@pytest.mark.req("OC-CTRL-2010", "OC-CTRL-2030", "ORCH-3025", "ORCH-2008")
@pytest.mark.parametrize(("changes", "hint"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_bad_fields_are_refused_before_the_scheduler(
    call: Call, gateway: FakeGateway, changes: dict[str, Any], hint: str
) -> None:
    answer = await call("POST", TASKS, task_body(**changes))
    assert answer.status == 400, answer.body
    assert answer.json["code"] == "INVALID_PARAMS"
    assert answer.json["retriable"] is False
    assert hint in answer.json["message"]
    assert gateway.tasks == {}
    assert [code for _, code in gateway.rejected] == ["INVALID_PARAMS"]


@pytest.mark.req("OC-CTRL-2010", "OC-CTRL-2030")
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"nonsense", b"\xff\xfe", b'{"prompt":"\xff"}', b"[" * 9000, b'{"a":' * 1500],
)
async def test_malformed_json_is_refused(call: Call, gateway: FakeGateway, body: bytes) -> None:
    answer = await call("POST", TASKS, body)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_PARAMS")
    assert gateway.rejected == [("unknown", "INVALID_PARAMS")]


async def test_text_after_the_json_and_bad_utf8_in_a_field_are_refused(call: Call) -> None:
    good = json.dumps(task_body()).encode()
    assert (await call("POST", TASKS, good + b"x")).status == 400
    assert (await call("POST", TASKS, good[:-1] + b',"kv_hint":"\xed\xa0\x80"}')).status == 400
    assert (await call("POST", TASKS, good + b" \n")).status == 202


@pytest.mark.req("ORCH-2008")
async def test_a_refusal_counts_for_the_engine_that_it_names(call: Call, gateway: FakeGateway) -> None:
    await call("POST", TASKS, task_body(engine="vllm", ctx=0))
    await call("POST", TASKS, task_body(engine="other"))
    assert gateway.rejected == [("vllm", "INVALID_PARAMS"), ("unknown", "INVALID_PARAMS")]


async def test_a_completion_without_content_is_the_empty_prompt(call: Call, gateway: FakeGateway) -> None:
    body = task_body(prompt=None)
    assert (await call("POST", TASKS, body)).status == 202
    task = gateway.tasks[body["task_id"]]
    assert (task.request.prompt, task.request.messages, task.request.inputs) == ("", None, None)
    assert task.info.prompt_bytes == 0


async def test_messages_are_templated_and_inputs_are_for_embeddings(call: Call, gateway: FakeGateway) -> None:
    chat = task_body(prompt=None, messages=[{"role": "user", "content": "h\u00e9"}])
    embed = task_body(prompt=None, workload="embedding", inputs=["a", "bc"])
    for body in (chat, embed):
        assert (await call("POST", TASKS, body)).status == 202
    asked = gateway.tasks[chat["task_id"]]
    assert (asked.info.templated, asked.info.prompt_bytes, asked.request.prompt) == (True, 3, None)
    asked = gateway.tasks[embed["task_id"]]
    assert (asked.info.templated, asked.info.prompt_bytes, asked.request.prompt) == (False, 3, None)
    assert asked.request.inputs == ["a", "bc"]


@pytest.mark.req("ORCH-3024")
async def test_the_same_task_again_is_a_replay_however_it_is_written(call: Call, gateway: FakeGateway) -> None:
    body = task_body(labels={"a": "1", "b": "2"}, sampling={"temperature": 1})
    first = await call("POST", TASKS, body)
    again = dict(reversed(body.items())) | {
        "task_id": body["task_id"].upper(),
        "labels": {"b": "2", "a": "1"},
        "sampling": {"temperature": 1.0},
        "determinism": "strict",
        "kv_hint": None,
    }
    second = await call("POST", TASKS, json.dumps(again, indent=3).encode())
    assert (first.status, second.status) == (202, 202)
    assert first.body == second.body
    assert len(gateway.tasks) == 1


@pytest.mark.req("ORCH-3024")
@pytest.mark.parametrize(
    "change", [{"prompt": "else"}, {"seed": 43}, {"max_tokens": 65}, {"cancel_on_disconnect": True}]
)
async def test_the_same_id_with_another_body_is_a_conflict(call: Call, change: dict[str, Any]) -> None:
    body = task_body()
    await call("POST", TASKS, body)
    answer = await call("POST", TASKS, body | change)
    assert (answer.status, answer.json["code"]) == (409, "TASK_ID_CONFLICT")


async def test_another_tenant_cannot_replay_a_task(call: Call) -> None:
    body = task_body()
    await call("POST", TASKS, body)
    assert (await call("POST", TASKS, body, authorization=f"Bearer {OTHER_KEY}")).status == 409


@pytest.mark.req("ORCH-3045")
def test_an_omitted_seed_is_derived_from_the_id() -> None:
    task_id = "00000000-0000-4000-8000-000000000001"
    expected = 150_129_274  # By hand: the first 8 hex digits of sha256(task_id), halved.
    assert derived_seed(task_id) == expected
    seeds = {derived_seed(str(uuid4())) for _ in range(200)}
    assert len(seeds) > 190
    assert all(0 <= seed < 2**31 for seed in seeds)
    body = json.dumps(task_body(task_id=task_id.upper(), seed=None)).encode()
    parsed = parse_submission(body, "acme", "c", one_call=False)
    assert (parsed.task.seed, parsed.request.seed) == (expected, expected)
    largest = json.dumps(task_body(seed=2**63 - 1)).encode()
    assert parse_submission(largest, "acme", "c", one_call=False).task.seed == 2**63 - 1


@pytest.mark.parametrize("given", [None, True, False])
@pytest.mark.parametrize("one_call", [True, False])
def test_cancel_on_disconnect_defaults_by_mode(given: bool | None, one_call: bool) -> None:
    body = task_body()
    if given is not None:
        body["cancel_on_disconnect"] = given
    task = parse_submission(json.dumps(body).encode(), "acme", "c", one_call).task
    assert task.cancel_on_disconnect is (one_call if given is None else given)
    other = parse_submission(json.dumps(body).encode(), "acme", "c", not one_call).task
    assert task.body_digest == other.body_digest


async def test_a_body_over_the_limit_is_refused_by_its_declared_length(app: Any, gateway: FakeGateway) -> None:
    exchange = Exchange(app, "POST", TASKS, b"", content_length=str(SETTINGS.body_max_bytes + 1))
    exchange.incoming.get_nowait()  # Nothing can be read: the length alone must do.
    await exchange.done()
    assert (exchange.status, exchange.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert gateway.rejected == [("unknown", "PAYLOAD_TOO_LARGE")]


async def test_a_body_over_the_limit_is_refused_while_it_arrives(app: Any) -> None:
    exchange = Exchange(app, "POST", TASKS)
    exchange.incoming.get_nowait()
    part = b" " * (SETTINGS.body_max_bytes // 2 + 1)
    for _ in range(2):
        exchange.incoming.put_nowait({"type": "http.request", "body": part, "more_body": True})
    await exchange.done()
    assert exchange.status == 413


async def test_a_body_at_the_limit_in_many_parts_is_taken(app: Any) -> None:
    body = json.dumps(task_body()).encode().ljust(SETTINGS.body_max_bytes)
    exchange = Exchange(app, "POST", TASKS, content_length=str(len(body)))
    exchange.incoming.get_nowait()
    for at in range(0, len(body), 999):
        part = {"type": "http.request", "body": body[at : at + 999], "more_body": at + 999 < len(body)}
        exchange.incoming.put_nowait(part)
    await exchange.done()
    assert exchange.status == 202


async def test_a_client_that_leaves_amid_the_body_gets_nothing(app: Any, gateway: FakeGateway) -> None:
    exchange = Exchange(app, "POST", TASKS)
    exchange.incoming.get_nowait()
    exchange.disconnect()
    await exchange.done()
    assert exchange.messages == []
    assert gateway.tasks == {}
    exchange.disconnect()
    with pytest.raises(ClientGone):
        await Request(exchange.scope, exchange.incoming.get, exchange._send).read_body(1)


@pytest.mark.req("ORCH-2007", "OC-CTRL-2011", "ORCH-3025")
@pytest.mark.parametrize(
    ("after_ms", "seconds", "ms"), [(1, "1", "1"), (1000, "1", "1000"), (1001, "2", "1001"), (None, "1", "1000")]
)
async def test_backpressure_tells_when_to_come_back(
    call: Call, gateway: FakeGateway, after_ms: int | None, seconds: str, ms: str
) -> None:
    gateway.refusal = ErrorInfo("ADMISSION_REJECT", "Full.", "llamacpp", "smollm2", True, after_ms, "shed-low-priority")
    answer = await call("POST", TASKS, task_body())
    assert answer.status == 429
    assert (answer.headers["retry-after"], answer.headers["x-backoff-ms"]) == (seconds, ms)
    assert answer.json["policy_label"] == "shed-low-priority"
    assert (answer.json["engine"], answer.json["pool_id"]) == ("llamacpp", "smollm2")
    assert gateway.rejected == []  # The scheduler counted it.


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030", "OC-CTRL-2031")
@pytest.mark.parametrize("code", sorted(HTTP_STATUS))
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_every_refusal_of_the_gateway_is_an_envelope_with_its_status(
    call: Call, gateway: FakeGateway, code: Any, accept: str
) -> None:
    gateway.refusal = ErrorInfo(code, "Because.", "llamacpp", "smollm2", True, 2500)
    answer = await call("POST", TASKS, task_body(), accept=accept)
    assert answer.status == HTTP_STATUS[code]
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json["code"], answer.json["engine"], answer.json["pool_id"]) == (code, "llamacpp", "smollm2")
    assert ("retry-after" in answer.headers) == (answer.status in (429, 503))


@pytest.mark.req("ORCH-2006", "OC-CTRL-2041")
async def test_a_failure_inside_is_an_envelope_without_internals(call: Call, gateway: FakeGateway) -> None:
    gateway.failure = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs:
        answer = await call("POST", TASKS, task_body(prompt="my private prompt"))
    assert (answer.status, answer.json["code"]) == (500, "INTERNAL")
    assert b"secret" not in answer.body
    (line,) = logs
    assert line["traceback"].startswith("RuntimeError\n")
    assert "fake_gateway.py" in line["traceback"]
    assert "secret" not in line["traceback"]
    assert "exc_info" not in line  # Renderers would add local variables, and the prompt with them.
    assert "private" not in repr(line)
