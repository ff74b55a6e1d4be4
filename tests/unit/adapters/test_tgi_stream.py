"""Reading TGI's streams, bytes as TGI writes them, and whatever else may come."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.attempts import Attempt
from adapters.tgi.metrics import holds_at_most, metrics_of, parse_metrics
from adapters.tgi.protocol import error_of, error_of_response
from adapters.tgi.stream import GenerationReader
from contracts.engine import Chunk, EngineError, EngineMetrics, Finish

PROMPT_TOKENS = 9


def token(text: str, special: bool = False, **fields: object) -> bytes:
    frame = {"index": 1, "token": {"id": 7, "text": text, "logprob": -0.5, "special": special}, **fields}
    return b"data:" + msgspec.json.encode({"generated_text": None, "details": None} | frame) + b"\n\n"


def last(text: str, reason: str, count: int, special: bool = False) -> bytes:
    details = {"finish_reason": reason, "generated_tokens": count, "seed": None, "input_length": 3}
    return token(text, special, generated_text="all of it", details=details)


def failure(error_type: str, message: str = "m") -> bytes:
    return b"data:" + msgspec.json.encode({"error": message, "error_type": error_type}) + b"\n\n"


class Content:
    """The body of a response: chunks, then an end or an error."""

    def __init__(self, chunks: Sequence[bytes | Exception]) -> None:
        self._chunks = list(chunks)
        self.closed = False

    async def read(self) -> bytes:
        chunk = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed = True


async def count_prompt() -> int:
    return PROMPT_TOKENS


async def read(
    *chunks: bytes | Exception, max_tokens: int = 100, stops: Sequence[str] = (), attempt: Attempt | None = None
) -> list[Chunk | Finish]:
    reader = GenerationReader(attempt or Attempt("a"), max_tokens, stops, count_prompt)
    return [item async for item in reader.read(cast(Any, Content(chunks)))]


def text_of(items: Sequence[Chunk | Finish]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


@pytest.mark.req("OC-ADAPT-5001", "OC-ADAPT-5010")
async def test_a_frame_is_a_token_and_the_last_tells_the_end() -> None:
    attempt = Attempt("a")
    got = await read(token("Hé"), token(""), token("🙂"), last("</s>", "eos_token", 4, special=True), attempt=attempt)
    assert got == [Chunk("Hé"), Chunk(""), Chunk("🙂"), Chunk(""), Finish("stop", tokens_in=3)]
    assert attempt.finished


@pytest.mark.req("OC-ADAPT-5010")
async def test_borders_of_chunks_do_not_matter() -> None:
    data = token("Hé") + b":\n\n" + token("🙂") + last("!", "length", 3)
    whole = await read(data)
    assert whole == [Chunk("Hé"), Chunk("🙂"), Chunk("!"), Finish("length", tokens_in=3)]
    for border in range(1, len(data)):
        assert await read(data[:border], data[border:]) == whole
    with_spaces = data.replace(b"data:", b"data: ").replace(b"\n\n", b"\r\n\r\n")
    assert await read(with_spaces) == whole


@pytest.mark.req("OC-ADAPT-5001")
async def test_tokens_that_only_the_engine_counted_are_not_lost() -> None:
    assert (await read(token("a"), last("b", "length", 5)))[1:] == [Chunk("b", 4), Finish("length", tokens_in=3)]
    assert (await read(token("a"), last("b", "length", 9), max_tokens=4))[1] == Chunk("b", 3)
    assert (await read(token("a"), last("b", "length", 1)))[1] == Chunk("b", 1)


@pytest.mark.req("OC-ADAPT-5010")
@pytest.mark.parametrize(
    ("data", "stops", "text", "stop"),
    [
        # Told by the engine at the end of a token, left in the text by it.
        (token("a") + token(" S") + last("TOP", "stop_sequence", 3), [" STOP"], "a", " STOP"),
        # Within a token, which the engine does not see.
        (token("a") + token("b STOP c") + token("d"), ["STOP"], "ab ", "STOP"),
        # With the last token the engine tells its limit first.
        (token("a") + last("STOP", "length", 2), ["STOP"], "a", "STOP"),
        # What looked like the beginning of one and was not.
        (token("a ST") + last("ART", "length", 2), ["STOP"], "a START", None),
        (token("a ST") + last("</s>", "eos_token", 2, special=True), ["STOP"], "a ST", None),
        # A special token's text is a stop string for the engine and no text for us.
        (token("a") + last("<|end|>", "stop_sequence", 2, special=True), ["x", "<|end|>"], "a", "<|end|>"),
    ],
)
async def test_stop_strings_are_cut_out(data: bytes, stops: list[str], text: str, stop: str | None) -> None:
    got = await read(data, stops=stops)
    finish = got[-1]
    assert isinstance(finish, Finish)
    assert (text_of(got), finish.stop_sequence) == (text, stop)
    assert finish.finish_reason == ("length" if text == "a START" else "stop")


@pytest.mark.req("OC-ADAPT-5001")
async def test_an_end_of_our_own_closes_the_stream_and_counts_the_prompt() -> None:
    for stops, max_tokens, reason in ((["b"], 100, "stop"), ([], 2, "length")):
        attempt, content = Attempt("a"), Content([token("a"), token("b"), token("c")])
        reader = GenerationReader(attempt, max_tokens, stops, count_prompt)
        got = [item async for item in reader.read(cast(Any, content))]
        assert got[-1] == Finish(cast(Any, reason), PROMPT_TOKENS, stop_sequence=stops[0] if stops else None)
        assert len(got) == 3
        assert content.closed
        assert not attempt.finished


@pytest.mark.req("ORCH-3025", "ORCH-2006")
@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ([token("a")], "WORKER_RESET"),
        ([], "WORKER_RESET"),
        ([token("a"), last("b", "length", 2)[:-5]], "WORKER_RESET"),
        ([token("a"), ConnectionError("cut")], "WORKER_RESET"),
        ([token("a"), b"data:{garbage}\n\n"], "WORKER_RESET"),
        ([b"data:{}\n\n"], "WORKER_RESET"),
        ([b'data:{"token":{"text":5}}\n\n'], "WORKER_RESET"),
        ([b'data:{"token":{"text":"\xff\xfe"}}\n\n'], "WORKER_RESET"),
        ([b"data:[DONE]\n\n"], "WORKER_RESET"),
        ([last("a", "whim", 1)], "WORKER_RESET"),
        ([token("a"), b"data:" + b"x" * 2_000_000], "WORKER_RESET"),
        ([failure("incomplete_generation_stream")], "WORKER_RESET"),
        ([failure("generation")], "INTERNAL"),
        ([failure("stream_serialization_error")], "INTERNAL"),
        ([failure("something new")], "INTERNAL"),
        ([failure("overloaded")], "REPLICA_EXHAUSTED"),
        ([failure("healthcheck")], "POOL_UNREADY"),
    ],
)
async def test_a_stream_that_does_not_end_properly_is_an_error(chunks: list[bytes | Exception], code: str) -> None:
    with pytest.raises(EngineError) as raised:
        await read(*chunks)
    assert (raised.value.info.code, raised.value.info.retriable) == (code, True)


@pytest.mark.req("ORCH-3025")
async def test_a_refusal_frame_ends_the_attempt_for_good() -> None:
    attempt = Attempt("a")
    with pytest.raises(EngineError, match="`inputs` cannot be empty") as raised:
        await read(failure("validation", "Input validation error: `inputs` cannot be empty"), attempt=attempt)
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)
    assert attempt.finished


async def test_a_canceled_attempt_just_ends() -> None:
    for chunks in ([ConnectionError("closed")], [token("a")], [b""]):
        attempt = Attempt("a")
        attempt.canceled = True
        assert await read(*cast(Any, chunks), attempt=attempt) == []


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize(
    ("status", "body", "code", "retriable"),
    [
        (422, b'{"error":"Input validation error: x","error_type":"validation"}', "INVALID_PARAMS", False),
        (422, b"Failed to deserialize the JSON body", "INVALID_PARAMS", False),
        (422, b'{"error":"Template error: x","error_type":"template_error"}', "INVALID_PARAMS", False),
        (404, b"", "INVALID_PARAMS", False),
        (413, b"length limit exceeded", "INVALID_PARAMS", False),
        (424, b'{"error":"CUDA out of memory","error_type":"generation"}', "INTERNAL", True),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "REPLICA_EXHAUSTED", True),
        (429, b"<html>", "REPLICA_EXHAUSTED", True),
        (500, b'{"error":"Incomplete generation","error_type":"incomplete_generation"}', "WORKER_RESET", True),
        (503, b'{"error":"unhealthy","error_type":"healthcheck"}', "POOL_UNREADY", True),
        (401, b"", "INTERNAL", False),
        (502, b"\xff\xff", "INTERNAL", True),
        (500, b'{"a":' + b"[" * 100_000, "INTERNAL", True),
    ],
)
def test_what_other_answers_mean(status: int, body: bytes, code: str, retriable: bool) -> None:
    info = error_of_response(status, body).info
    assert (info.code, info.retriable, info.engine) == (code, retriable, "tgi")


@pytest.mark.req("ORCH-3039")
def test_running_out_of_memory_is_told_apart() -> None:
    assert error_of("Request failed during generation: CUDA out of memory.", "generation").kind == "vram_oom"
    assert error_of("Request failed during generation: Server error", "generation").kind == "launch"


def test_metrics_are_mapped() -> None:
    page = b"""# HELP tgi_queue_size Current queue size
# TYPE tgi_queue_size gauge
tgi_queue_size 2
tgi_batch_current_size 3
tgi_request_input_length_sum 120
tgi_request_input_length_bucket{le="+Inf"} 4
tgi_request_generated_tokens_sum 64.0
tgi_request_generated_tokens_count NaN
tgi_batch_inference_count{method="prefill"} 5
other_total 7
"""
    samples = parse_metrics(page)
    assert metrics_of(samples) == EngineMetrics(3, 2, None, 120, 64)
    assert "tgi_request_generated_tokens_count" not in samples
    assert metrics_of({}) == EngineMetrics(0, 0, None, 0, 0)


@pytest.mark.req("ORCH-3017")
def test_what_the_engine_holds_is_read_from_its_gauges() -> None:
    begun, done = 'tgi_batch_inference_count{method="prefill"}', 'tgi_batch_inference_success{method="prefill"}'
    failed = 'tgi_batch_inference_failure{method="prefill"}'
    assert holds_at_most({}, 0)
    assert holds_at_most({"tgi_batch_current_size": 2, "tgi_queue_size": 1, begun: 4, done: 3, failed: 1}, 3)
    assert not holds_at_most({"tgi_batch_current_size": 2, "tgi_queue_size": 2}, 3)
    # A first prefill is under way: the batch does not show it yet.
    assert not holds_at_most({begun: 4, done: 3}, 5)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.text(max_size=5), st.floats(), st.just([]))
TOKENS = st.fixed_dictionaries({}, optional={"text": VALUES, "special": VALUES, "id": VALUES})
DETAILS = st.fixed_dictionaries(
    {},
    optional={
        "finish_reason": st.one_of(VALUES, st.sampled_from(["length", "eos_token", "stop_sequence"])),
        "generated_tokens": VALUES,
        "input_length": VALUES,
    },
)
FRAMES = st.one_of(
    st.sampled_from(
        [token("aSTOPb"), token("S"), token("TOP"), last("x", "length", 3), failure("generation"), b":\n\n"]
    ),
    st.fixed_dictionaries(
        {}, optional={"token": TOKENS | VALUES, "details": DETAILS | VALUES, "error": VALUES, "error_type": VALUES}
    ).map(lambda frame: b"data:" + msgspec.json.encode(frame) + b"\n\n"),
    st.binary(max_size=40).map(lambda junk: b"data:" + junk + b"\n\n"),
    st.binary(max_size=20),
)


@pytest.mark.req("ORCH-3025", "OC-ADAPT-5001")
@settings(max_examples=150, deadline=None)
@given(data=st.lists(FRAMES, max_size=6).map(b"".join), border=st.integers(0, 400), stops=st.booleans())
def test_whatever_comes_there_is_one_end_or_an_engine_error(data: bytes, border: int, stops: bool) -> None:
    async def attempt() -> list[Chunk | Finish]:
        return await read(data[:border], data[border:], max_tokens=5, stops=["STOP"] if stops else [])

    try:
        got = asyncio.run(attempt())
    except EngineError:
        return
    assert [type(item) for item in got] == [Chunk] * (len(got) - 1) + [Finish]
    assert sum(item.tokens for item in got if isinstance(item, Chunk)) <= 5
    assert not stops or "STOP" not in text_of(got)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(100, 599))
def test_no_answer_or_page_breaks_the_parsers(junk: bytes, status: int) -> None:
    assert error_of_response(status, junk).info.engine == "tgi"
    metrics_of(parse_metrics(b"tgi_queue_size " + junk + b"\ntgi_batch_current_size{a=" + junk))
