"""What Triton's answers mean, on what the real server answered."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.triton.frames import frame_of_event
from adapters.triton.protocol import (
    ModelConfig,
    active_requests,
    decode_config,
    error_of,
    error_of_response,
    is_dead,
    metrics_of,
    parse_metrics,
)
from contracts.engine import EngineMetrics

DATA = Path(__file__).with_name("data") / "triton"
DEAD = b'data: {"error":"Stub process \'llorch_text_0_0\' is not healthy."}\n\n'


@pytest.mark.req("ORCH-3025", "OC-ADAPT-5060")
@pytest.mark.parametrize(
    ("status", "body", "code", "retriable"),
    [
        (400, b'{"error":"[request id: x] expected number of inputs between 1 and 4"}', "INVALID_PARAMS", False),
        (
            400,
            b'data: {"error":"prompt length (1) and max_tokens exceed the maximum of 9 tokens"}',
            "INVALID_PARAMS",
            False,
        ),
        (400, b'data: {"error":"the prompt asked for an error"}\n\n', "INTERNAL", True),
        (400, DEAD, "WORKER_RESET", True),
        (500, b'{"error":"failed to parse the request JSON buffer"}', "INTERNAL", True),
        (404, b'{"error":"Request for unknown model: \'nope\' is not found"}', "POOL_UNREADY", True),
        (503, b"", "POOL_UNREADY", True),
        (503, b'{"error":"Exceeds maximum queue size"}', "REPLICA_EXHAUSTED", True),
        (401, b'{"error":"no"}', "INTERNAL", False),
        (200, b"\xff", "INTERNAL", True),
        (500, b"[" * 100_000, "INTERNAL", True),
    ],
)
def test_answers_other_than_200_are_mapped(status: int, body: bytes, code: str, retriable: bool) -> None:
    info = error_of_response(status, body).info
    assert (info.code, info.retriable, info.engine) == (code, retriable, "triton")


@pytest.mark.req("ORCH-3039")
def test_an_error_for_want_of_memory_is_known_as_one() -> None:
    assert error_of("[TensorRT-LLM][ERROR] cudaMalloc failed: out of memory").kind == "vram_oom"


def test_a_dead_model_process_is_known_by_its_words() -> None:
    assert is_dead("Stub process 'm_0_0' is not healthy.")
    assert is_dead(error_of_response(400, DEAD).info.message)
    assert not is_dead("the model is not healthy food")


@pytest.mark.req("ORCH-3028")
def test_recorded_metrics_are_mapped() -> None:
    text = (DATA / "metrics.txt").read_bytes()
    assert metrics_of(parse_metrics(text, "llorch_text"), 2) == EngineMetrics(requests_processing=0, requests_waiting=0)
    assert metrics_of(parse_metrics(text, "nobody"), 2) == EngineMetrics(requests_processing=0)


@pytest.mark.req("ORCH-3028", "ORCH-3049")
def test_a_model_without_a_gauge_is_taken_to_work_on_what_is_in_flight() -> None:
    samples = parse_metrics(b'nv_inference_pending_request_count{model="m",version="1"} 3\n', "m")
    assert active_requests(samples) is None
    assert metrics_of(samples, 2) == EngineMetrics(requests_processing=2, requests_waiting=3)


@pytest.mark.req("ORCH-3028", "ORCH-3057")
def test_requests_of_tensorrt_llm_go_by_the_name_of_the_model_that_runs_the_engine() -> None:
    line = 'nv_trt_llm_request_metrics{model="%s",request_type="active",version="1"} %d\n'
    page = (line % ("tensorrt_llm", 3) + 'nv_inference_pending_request_count{model="tensorrt_llm"} 9\n').encode()
    samples = parse_metrics(page, "tensorrt_llm_bls")
    assert metrics_of(samples, 0) == EngineMetrics(requests_processing=3)
    own = page + (line % ("llorch_text", 1)).encode()
    assert active_requests(parse_metrics(own, "llorch_text")) == 1, "what a model tells of itself comes first"


def test_cache_use_is_that_of_tensorrt_llm() -> None:
    name = b'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="%s",model="m",version="1"} %d\n'
    samples = parse_metrics(name % (b"used", 25) + name % (b"max", 100), "m")
    assert metrics_of(samples, 0).kv_cache_usage_ratio == 0.25
    assert metrics_of(parse_metrics(name % (b"used", 25) + name % (b"max", 0), "m"), 0).kv_cache_usage_ratio is None


@given(st.binary(max_size=200))
def test_metrics_of_any_bytes(text: bytes) -> None:
    metrics_of(parse_metrics(b'nv_x{model="m"} ' + text + b"\n", "m"), 0)


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_refusal_is_an_error_of_ours(status: int, body: bytes) -> None:
    assert error_of_response(status, body).info.engine == "triton"


@pytest.mark.req("OC-ADAPT-5060")
def test_the_recorded_configuration_declares_inputs_and_exactness() -> None:
    config = decode_config((DATA / "config.json").read_bytes())
    assert config.batch_invariant
    assert config.model_transaction_policy.decoupled
    assert {"text_input", "seed", "stop_words"} <= {tensor.name for tensor in config.input}
    assert config.has_output("finish_reason")
    assert config.parameter("max_seq_len") == "4096"
    without_seed = [tensor for tensor in config.input if tensor.name != "seed"]
    assert not msgspec.structs.replace(config, input=without_seed).batch_invariant
    assert not ModelConfig().batch_invariant


EVENTS = [
    part[6:]
    for name in ("plain", "fails_later")
    for part in (DATA / f"http_{name}.txt").read_bytes().split(b"\n")
    if part.startswith(b"data: ")
]


@pytest.mark.req("OC-ADAPT-5060")
def test_recorded_events_are_read() -> None:
    frames = [frame_of_event(event) for event in EVENTS]
    assert [bool(frame.error) for frame in frames] == [False] * 8 + [True]
    assert {frame.tokens for frame in frames[:8]} == {1}
    assert frames[5].reason == "length"


@given(st.data())
def test_any_event_is_read_or_refused(data: st.DataObject) -> None:
    event = bytearray(data.draw(st.sampled_from(EVENTS)))
    at = data.draw(st.integers(0, len(event)))
    event[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        frame_of_event(bytes(event))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
