"""vLLM's requests, errors and metrics, against what a real server answered."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from adapters.vllm.protocol import WireError, completion_body, error_of, error_of_response, metrics_of
from contracts.api import Sampling
from contracts.engine import EngineMetrics, EngineSpec, GenerateRequest

DATA = Path(__file__).parent / "data" / "vllm"
SPEC = EngineSpec("vllm", "p", "p-0", "m", "/models/m", 256, 1, "cpu-dev")
REQUEST = GenerateRequest("t", 5, seed=7, prompt="one")


def answer(name: str) -> tuple[int, bytes]:
    exchange = msgspec.json.decode((DATA / f"{name}.json").read_bytes())
    return exchange["status"], exchange["body"].encode()


@pytest.mark.req("OC-ADAPT-5010", "ORCH-3058")
def test_a_request_leaves_nothing_to_the_engines_defaults() -> None:
    body = completion_body(SPEC, "a/1", REQUEST, "one")
    expected = {"model": "m", "prompt": "one", "max_tokens": 5, "seed": 7, "temperature": 0.8, "top_p": 0.95}
    expected |= {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.0, "stream": True, "request_id": "a/1"}
    assert {name: body[name] for name in expected} == expected
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.req("ORCH-3045", "ORCH-3009")
def test_a_strict_pool_and_a_cold_task_have_a_cache_of_their_own() -> None:
    free = replace(SPEC, determinism="best_effort")
    salt = completion_body(SPEC, "a/1", REQUEST, "one")["cache_salt"]
    # The engine takes letters and digits, at most 128.
    assert salt.isalnum()
    assert len(salt) == 64
    assert completion_body(SPEC, "a/2", REQUEST, "one")["cache_salt"] != salt
    assert "cache_salt" not in completion_body(free, "a/1", REQUEST, "one")
    assert completion_body(free, "a/1", replace(REQUEST, kv_hint="cold"), "one")["cache_salt"] == salt


def test_what_a_request_asks_for_overrides_the_profile() -> None:
    request = replace(REQUEST, sampling=Sampling(temperature=0.0, stop=["x"], logit_bias={"5": 1.0}))
    body = completion_body(SPEC, "a/1", request, [1, 2])
    assert (body["prompt"], body["temperature"], body["stop"], body["logit_bias"]) == ([1, 2], 0.0, ["x"], {"5": 1.0})


@pytest.mark.req("ORCH-2006", "ORCH-3025")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too-long", "maximum context length is 256"),
        ("unknown-model", "does not exist"),
        ("unknown-route", "HTTP 404"),
        ("embeddings-empty-input", "cannot be empty"),
    ],
)
def test_recorded_refusals_are_the_requests_fault(name: str, words: str) -> None:
    error = error_of_response(*answer(name))
    assert (error.info.code, error.info.retriable, error.info.engine) == ("INVALID_PARAMS", False, "vllm")
    assert words in error.info.message


@pytest.mark.req("ORCH-2006", "ORCH-3025")
@pytest.mark.parametrize(
    ("status", "code", "retriable"),
    [
        (400, "INVALID_PARAMS", False),
        (422, "INVALID_PARAMS", False),
        (401, "INTERNAL", False),
        (429, "REPLICA_EXHAUSTED", True),
        (500, "INTERNAL", True),
        (503, "POOL_UNREADY", True),
    ],
)
def test_statuses_have_their_codes(status: int, code: str, retriable: bool) -> None:
    error = error_of(WireError("why"), status)
    assert (error.info.code, error.info.retriable) == (code, retriable)


def test_a_refused_key_says_nothing_of_it() -> None:
    error = error_of_response(401, b'{"error":"Unauthorized"}')
    assert error.info.message == "the engine refused its adapter's key"


@pytest.mark.req("ORCH-3039")
def test_a_lack_of_memory_is_told_apart() -> None:
    assert error_of(WireError("CUDA out of memory. Tried to allocate 2 GiB"), 500).kind == "vram_oom"


@given(st.integers(400, 599), st.binary(max_size=200))
def test_whatever_a_refusal_says_it_is_an_error(status: int, body: bytes) -> None:
    assert error_of_response(status, body).info.engine == "vllm"


@pytest.mark.req("OC-ADAPT-5001")
def test_the_recorded_metrics_page() -> None:
    metrics = metrics_of(answer("metrics")[1])
    assert (metrics.requests_processing, metrics.requests_waiting, metrics.kv_cache_usage_ratio) == (0, 0, 0.0)
    assert (metrics.tokens_in_total or 0) > 250
    assert (metrics.tokens_out_total or 0) > 30


def test_engines_of_one_server_are_summed() -> None:
    page = "".join(
        f'vllm:num_requests_running{{engine="{n}",model_name="m"}} {n + 1}.0\n'
        f'vllm:kv_cache_usage_perc{{engine="{n}",model_name="m"}} 0.{n}5\n'
        for n in range(2)
    )
    assert metrics_of(page.encode()) == EngineMetrics(requests_processing=3, kv_cache_usage_ratio=0.15)


@given(st.binary(max_size=300))
def test_any_page_can_be_read(page: bytes) -> None:
    metrics_of(page)
    metrics_of(b"vllm:num_requests_running " + page)
