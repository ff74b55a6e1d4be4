"""Frames, errors and metrics as real llama-servers sent them."""

import pytest

from adapters.llamacpp import protocol
from adapters.llamacpp.slots import SlotTable
from contracts.engine import EngineError, GenerateRequest

LIMIT = (
    b'{"content":"","stop":true,"stop_type":"%b","stopping_word":"","tokens_predicted":6,"tokens_evaluated":5,'
    b'"timings/cache_n":4}'
)


@pytest.mark.req("OC-ADAPT-5001")
@pytest.mark.parametrize(("stop_type", "reason"), [(b"limit", "length"), (b"eos", "stop"), (b"word", "stop")])
def test_the_last_frame_tells_the_finish(stop_type: bytes, reason: str) -> None:
    finish = protocol.finish_of(protocol.decode_frame(LIMIT % stop_type))
    assert (finish.finish_reason, finish.tokens_in, finish.tokens_cached) == (reason, 5, 4)
    assert finish.stop_sequence is None


def test_an_unknown_end_is_no_end() -> None:
    with pytest.raises(EngineError) as raised:
        protocol.finish_of(protocol.decode_frame(LIMIT % b"none"))
    assert raised.value.info.code == "WORKER_RESET"


@pytest.mark.req("ORCH-2006", "ORCH-3025")
@pytest.mark.parametrize(
    ("status", "body", "code", "retriable"),
    [
        (
            400,
            b'{"error":{"code":400,"message":"request (3001 tokens) exceeds the available context size (2048 tokens)",'
            b'"type":"exceed_context_size_error","n_prompt_tokens":3001,"n_ctx":2048}}',
            "INVALID_PARAMS",
            False,
        ),
        (400, b'{"error":{"code":400,"message":"m","type":"invalid_request_error"}}', "INVALID_PARAMS", False),
        (501, b'{"error":{"code":501,"message":"m","type":"not_supported_error"}}', "INVALID_PARAMS", False),
        (503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "POOL_UNREADY", True),
        (401, b'{"error":{"code":401,"message":"m","type":"authentication_error"}}', "INTERNAL", False),
        (500, b'{"error":{"code":500,"message":"m","type":"server_error"}}', "INTERNAL", True),
        (502, b"<html>", "INTERNAL", True),
    ],
)
def test_errors_are_mapped(status: int, body: bytes, code: str, retriable: bool) -> None:
    info = protocol.error_of_response(status, body).info
    assert (info.code, info.retriable, info.engine) == (code, retriable, "llamacpp")


def test_metrics_are_mapped() -> None:
    page = (
        b"# HELP llamacpp:prompt_tokens_total Number\n# TYPE llamacpp:prompt_tokens_total counter\n"
        b"llamacpp:prompt_tokens_total 35\nllamacpp:prompt_tokens_cached_total 9\n"
        b"llamacpp:tokens_predicted_total 44\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"
        b"llamacpp:prompt_seconds_total 0.39646\n"
    )
    slots = [protocol.Slot(0, 1024, True, 256), protocol.Slot(1, 1024, False)]
    metrics = protocol.metrics_of(protocol.parse_metrics(page), slots)
    assert (metrics.tokens_in_total, metrics.tokens_out_total) == (44, 44)
    assert (metrics.requests_processing, metrics.requests_waiting) == (1, 0)
    assert metrics.kv_cache_usage_ratio == 0.125


def test_an_empty_metrics_page_claims_nothing() -> None:
    metrics = protocol.metrics_of(protocol.parse_metrics(b""), [])
    assert (metrics.requests_processing, metrics.tokens_in_total, metrics.kv_cache_usage_ratio) == (None, None, None)


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3017")
def test_a_completion_is_always_streamed_and_names_its_slot() -> None:
    request = GenerateRequest(task_id="t", max_tokens=9, seed=1, prompt="x")
    body = protocol.completion_body(request, "x", 3)
    assert body["stream"] is True
    assert body["return_progress"] is True
    assert (body["n_predict"], body["id_slot"], body["cache_prompt"]) == (9, 3, True)
    cold = GenerateRequest(task_id="t", max_tokens=9, seed=1, prompt="x", kv_hint="cold")
    assert protocol.completion_body(cold, "x", 3)["cache_prompt"] is False


@pytest.mark.req("ORCH-3019")
def test_slots_prefer_a_shared_prefix_then_the_least_recently_used() -> None:
    table = SlotTable(2)
    first, second = table.take("system: be brief. A"), table.take("another conversation")
    assert {first, second} == {0, 1}
    assert table.take("third") is None
    assert first is not None
    assert second is not None
    table.give_back(second)
    table.give_back(first)
    assert table.take("system: be brief. B") == first
    assert table.take("unlike all") == second
