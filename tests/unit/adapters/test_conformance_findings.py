"""What the conformance suite found in shared pieces, each as a small test of its own."""

import asyncio

import pytest

from adapters.answers import decoded
from adapters.attempts import Attempt, Attempts
from adapters.errors import MESSAGE_CHARS_MAX, engine_error
from adapters.llamacpp.protocol import decode_props, parse_metrics
from adapters.sse import SseSplitter
from contracts.engine import EngineError


@pytest.mark.req("OC-ADAPT-5001")
def test_an_event_that_ends_in_cr_is_complete_and_the_lf_of_a_crlf_starts_nothing() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\r\r") == [b"a"]
    assert not splitter.pending
    splitter = SseSplitter()
    got = [payload for part in (b"data: a\r", b"\n\r", b"\ndata: b\n\n") for payload in splitter.feed(part)]
    assert got == [b"a", b"b"]


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize("answer", [b"", b"[]", b"[" * 100_000, b'{"x":' + b"[" * 100_000, b"\xff"])
def test_an_answer_that_cannot_be_read_is_a_worker_reset(answer: bytes) -> None:
    with pytest.raises(EngineError) as raised:
        decoded(decode_props, answer, "/props", "llamacpp")
    assert raised.value.info.code == "WORKER_RESET"


@pytest.mark.req("ORCH-2006")
def test_a_message_is_no_page() -> None:
    error = engine_error("INTERNAL", "x" * 1_000_000, engine="e", retriable=True)
    assert len(error.info.message) == MESSAGE_CHARS_MAX


@pytest.mark.req("ORCH-3017")
async def test_a_step_canceled_before_its_first_turn_leaves_no_opening_unawaited() -> None:
    class Response:
        def close(self) -> None: ...

    async def opening() -> Response:
        raise AssertionError("it was never to run")

    async def is_released(_: Attempt) -> bool:
        return True

    attempts = Attempts("e", 1, lambda: True, is_released)
    attempt = attempts.begin("a")
    step = opening()
    running = asyncio.ensure_future(attempt.run(attempt.keep(step)))
    await asyncio.sleep(0)
    await attempts.cancel("a")
    assert await running is None
    # A coroutine that was closed, not forgotten: it has no frame any more.
    assert step.cr_frame is None


@pytest.mark.req("ORCH-3054")
@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"x", b"1e999"])
def test_samples_that_are_no_numbers_are_none(value: bytes) -> None:
    page = b"llamacpp:requests_processing " + value + b"\nllamacpp:requests_deferred 2\n"
    assert parse_metrics(page) == {"requests_deferred": 2.0}
