"""The TGI peer answers as TGI's OpenAPI document says, and where TGI does otherwise, as TGI does.

The structs below restate the document's schemas: what is required, what may be null, what numbers may be, and that
there is nothing else.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import aiohttp
import msgspec
import pytest
from msgspec import Meta, Struct

from adapters.sse import SseSplitter
from adapters.testing.tgi_peer.options import PeerOptions, parse_arguments, write_launcher
from adapters.testing.tgi_peer.server import running

Count = Annotated[int, Meta(ge=0)]
Int32 = Annotated[int, Meta(ge=0, lt=2**31)]
FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Strict(Struct, forbid_unknown_fields=True):
    """An object with no other fields than these."""


class Token(Strict):
    id: Int32
    text: str
    logprob: float | None
    special: bool


class PrefillToken(Strict):
    id: Int32
    text: str
    logprob: float | None


class StreamDetails(Strict):
    finish_reason: FinishReason
    generated_tokens: Int32
    input_length: Int32
    seed: Count | None = None


class StreamResponse(Strict):
    index: Int32
    token: Token
    top_tokens: list[Token] = []
    generated_text: str | None = None
    details: StreamDetails | None = None


class Details(Strict):
    finish_reason: FinishReason
    generated_tokens: Int32
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[Any] | None = None
    seed: Count | None = None
    top_tokens: list[list[Token]] = []


class GenerateResponse(Strict):
    generated_text: str
    details: Details | None = None


class SimpleToken(Strict):
    id: Int32
    text: str
    start: Count
    stop: Count


class ChatTokenizeResponse(Strict):
    tokenize_response: list[SimpleToken]
    templated_text: str


class ErrorResponse(Strict):
    error: str
    error_type: str


class Info(Strict):
    model_id: str
    max_concurrent_requests: Count
    max_best_of: Count
    max_stop_sequences: Count
    max_input_tokens: Count
    max_total_tokens: Count
    validation_workers: Count
    max_client_batch_size: Count
    router: str
    version: str
    docker_label: str | None = None
    model_pipeline_tag: str | None = None
    model_sha: str | None = None
    sha: str | None = None


class Client:
    """Requests to one peer; answers come back decoded as the schema that they must have."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self._session.get(path) as response:
            return response.status, await response.read()

    async def post(self, path: str, body: dict[str, Any], key: str = "") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self._session.post(path, json=body, headers=headers) as response:
            return response.status, await response.read()

    async def stream(self, inputs: str, **parameters: Any) -> list[StreamResponse]:
        status, answer = await self.post("/generate_stream", {"inputs": inputs, "parameters": parameters})
        assert status == 200
        return [msgspec.json.decode(payload, type=StreamResponse) for payload in SseSplitter().feed(answer)]

    async def stream_error(self, inputs: str, **parameters: Any) -> ErrorResponse:
        """The only frame of a stream that is refused, with HTTP 200 for all that."""
        status, answer = await self.post("/generate_stream", {"inputs": inputs, "parameters": parameters})
        assert status == 200
        (payload,) = SseSplitter().feed(answer)
        return msgspec.json.decode(payload, type=ErrorResponse)


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Client:
            port = await stack.enter_async_context(running(PeerOptions(**options)))
            session = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
            return Client(await stack.enter_async_context(session))

        yield start


async def test_a_stream_has_the_documented_frames(serve: Serve) -> None:
    client = await serve()
    frames = await client.stream("one two", max_new_tokens=30, details=True, do_sample=True, seed=5)
    assert [frame.index for frame in frames] == list(range(1, 31))
    assert all(frame.generated_text is None and frame.details is None for frame in frames[:-1])
    last = frames[-1]
    assert last.details == StreamDetails("length", 30, 3, 5)
    assert last.generated_text == "".join(frame.token.text for frame in frames if not frame.token.special)
    again = await client.stream("one two", max_new_tokens=30, details=True, do_sample=True, seed=5)
    assert again == frames
    assert await client.stream("one two", max_new_tokens=30, details=True, do_sample=True, seed=6) != frames


async def test_frames_come_as_the_real_server_writes_them(serve: Serve) -> None:
    client = await serve(comment_every=2)
    _, answer = await client.post("/generate_stream", {"inputs": "one", "parameters": {"max_new_tokens": 4}})
    assert answer.startswith(b':\n\ndata:{"index":1,')
    assert answer.count(b"\n\n:\n\n") == 1
    assert b"[DONE]" not in answer


async def test_characters_of_several_tokens_come_whole_with_the_last(serve: Serve) -> None:
    frames = await (await serve()).stream("one", max_new_tokens=400, details=True, do_sample=True, seed=1)
    texts = [frame.token.text for frame in frames if not frame.token.special]
    assert "" in texts
    assert any(text in ("é", "€", "語", "🙂") for text in texts)
    assert any(frame.token.special for frame in frames)
    assert "\ufffd" not in "".join(texts)


async def test_a_whole_answer_is_the_stream_put_together(serve: Serve) -> None:
    client = await serve()
    wanted = {"max_new_tokens": 20, "details": True}
    frames = await client.stream("one", **wanted)
    status, answer = await client.post("/generate", {"inputs": "one", "parameters": wanted})
    whole = msgspec.json.decode(answer, type=GenerateResponse)
    assert status == 200
    assert whole.generated_text == frames[-1].generated_text
    assert whole.details is not None
    assert whole.details.tokens == [frame.token for frame in frames]
    # The root is the route that official clients use; there the answer is a list.
    _, listed = await client.post("/", {"inputs": "one", "parameters": wanted})
    assert msgspec.json.decode(listed, type=list[GenerateResponse]) == [whole]
    _, streamed = await client.post("/", {"inputs": "one", "parameters": wanted, "stream": True})
    assert len(SseSplitter().feed(streamed)) == 20


async def test_a_stop_string_ends_the_text_and_stays_in_it(serve: Serve) -> None:
    client = await serve()
    plain = await client.stream("one", max_new_tokens=20, details=True)
    stop = next(frame.token.text for frame in plain[3:] if frame.token.text.startswith(" w"))
    frames = await client.stream("one", max_new_tokens=20, details=True, stop=[stop])
    last = frames[-1]
    assert (last.details and last.details.finish_reason, last.token.text) == ("stop_sequence", stop)
    assert (last.generated_text or "").endswith(stop)
    # Within a token it goes unnoticed.
    assert len(await client.stream("one", max_new_tokens=20, stop=[stop[:-1] + "x", stop[:2]])) == 20


async def test_the_end_token_is_special_and_counts(serve: Serve) -> None:
    frames = await (await serve()).stream("say fake-length=5", max_new_tokens=20, details=True)
    last = frames[-1]
    assert (last.token.text, last.token.special) == ("</s>", True)
    assert last.details == StreamDetails("eos_token", 5, 3, None)
    assert not (last.generated_text or "").endswith("</s>")


async def test_long_texts_come_in_rounds_of_which_the_last_is_not_cut(serve: Serve) -> None:
    client = await serve(max_total_tokens=4096)
    assert len(await client.stream("one", max_new_tokens=1100)) == 2048
    short = await serve(max_total_tokens=1500)
    assert len(await short.stream("one", max_new_tokens=1100)) == 1024


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ("", {}, "`inputs` cannot be empty"),
        ("one", {"temperature": 0.0}, "`temperature` must be strictly positive"),
        ("one", {"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ("one", {"top_k": 0}, "`top_k` must be strictly positive"),
        ("one", {"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ("one", {"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ("one", {"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ("one", {"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ("one", {"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ("one", {"max_new_tokens": 99}, "`inputs` tokens + `max_new_tokens` must be <= 100. Given: 2 `inputs` tokens"),
        ("one " * 200, {"max_new_tokens": 1}, "`inputs` tokens + `max_new_tokens` must be <= 100"),
    ],
)
async def test_what_is_refused(serve: Serve, inputs: str, parameters: dict[str, Any], message: str) -> None:
    client = await serve(max_total_tokens=100)
    error = await client.stream_error(inputs, **parameters)
    assert error.error_type == "validation"
    assert error.error.startswith(f"Input validation error: {message}")
    if "best_of" not in parameters:
        status, answer = await client.post("/generate", {"inputs": inputs, "parameters": parameters})
        assert (status, msgspec.json.decode(answer, type=ErrorResponse)) == (422, error)


async def test_bodies_that_are_no_request(serve: Serve) -> None:
    client = await serve()
    assert (await client.post("/generate", {"inputs": 5}))[0] == 422
    assert (await client.post("/generate_stream", {"parameters": {}}))[0] == 422


async def test_more_than_it_takes_is_overload(serve: Serve) -> None:
    client = await serve(max_concurrent_requests=1, token_ms=50)
    first = asyncio.create_task(client.stream("one", max_new_tokens=5))
    while b"tgi_batch_current_size 1" not in (await client.get("/metrics"))[1]:
        await asyncio.sleep(0.01)
    assert await client.stream_error("two") == ErrorResponse("Model is overloaded", "overloaded")
    assert (await client.post("/generate", {"inputs": "two"}))[0] == 429
    await first


@pytest.mark.parametrize(
    ("fault", "error_type"), [("fail_after", "generation"), ("end_after", None)], ids=["failure", "early end"]
)
async def test_faults_in_a_stream(serve: Serve, fault: str, error_type: str | None) -> None:
    client = await serve(**{fault: 2})
    _, answer = await client.post("/generate_stream", {"inputs": "one"})
    *tokens, last = SseSplitter().feed(answer)
    if error_type is None:
        assert len(tokens) == 1
        msgspec.json.decode(last, type=StreamResponse)
    else:
        assert len(tokens) == 2
        assert msgspec.json.decode(last, type=ErrorResponse).error_type == error_type


async def test_a_cut_connection_and_garbage(serve: Serve) -> None:
    cut = await serve(eof_after=2)
    with pytest.raises(aiohttp.ClientError):
        await cut.stream("one")
    garbage = await serve(garbage_after=1)
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        await garbage.stream("one", max_new_tokens=3)


async def test_prompts_are_tokenized_as_they_are_run(serve: Serve) -> None:
    client = await serve()
    text = "häus <s> x"
    _, answer = await client.post("/tokenize", {"inputs": text})
    tokens = msgspec.json.decode(answer, type=list[SimpleToken])
    assert (tokens[0].id, tokens[0].text) == (1, "")
    assert [text.encode()[token.start : token.stop].decode() for token in tokens] == [token.text for token in tokens]
    frames = await client.stream(text, max_new_tokens=1, details=True)
    assert frames[-1].details
    assert frames[-1].details.input_length == len(tokens)


async def test_a_conversation_is_templated_with_its_start_token(serve: Serve) -> None:
    _, answer = await (await serve()).post("/chat_tokenize", {"messages": [{"role": "user", "content": "hé"}]})
    chat = msgspec.json.decode(answer, type=ChatTokenizeResponse)
    assert chat.templated_text == "<s>[user] hé\n[assistant]"
    assert chat.tokenize_response[0] == SimpleToken(1, "<s>", 0, 3)
    assert sum(token.id == 1 for token in chat.tokenize_response) == 1


async def test_what_it_says_of_itself(serve: Serve) -> None:
    client = await serve(model_id="a/b", revision="r1", max_total_tokens=77)
    _, answer = await client.get("/info")
    info = msgspec.json.decode(answer, type=Info)
    assert (info.model_id, info.model_sha, info.max_total_tokens, info.max_input_tokens) == ("a/b", "r1", 77, 76)
    assert "NOT" in info.router
    assert (await client.get("/health"))[0] == 200


async def test_it_is_unhealthy_when_told(serve: Serve, tmp_path: Path) -> None:
    told = tmp_path / "sick"
    client = await serve(unhealthy_file=str(told))
    assert (await client.get("/health"))[0] == 200
    told.touch()
    status, answer = await client.get("/health")
    assert (status, msgspec.json.decode(answer, type=ErrorResponse)) == (503, ErrorResponse("unhealthy", "healthcheck"))


async def test_only_prompts_are_behind_the_key(serve: Serve) -> None:
    client = await serve(api_key="Secret")
    for path in ("/generate", "/generate_stream", "/tokenize", "/"):
        assert (await client.post(path, {"inputs": "one"}))[0] == 401
        # As in TGI, case does not count.
        assert (await client.post(path, {"inputs": "one"}, key="sECRET"))[0] == 200
    for path in ("/info", "/health", "/metrics"):
        assert (await client.get(path))[0] == 200


async def test_samples_appear_when_they_are_touched(serve: Serve) -> None:
    client = await serve()
    assert await client.get("/metrics") == (200, b"")
    await client.stream("one two", max_new_tokens=7)
    _, page = await client.get("/metrics")
    assert {
        b"tgi_batch_current_size 0",
        b"tgi_queue_size 0",
        b"tgi_request_success 1",
        b"tgi_request_input_length_sum 3",
        b"tgi_request_generated_tokens_sum 7",
        b'tgi_batch_inference_success{method="prefill"} 1',
    } <= set(page.splitlines())


async def test_its_launcher_takes_the_real_ones_arguments(tmp_path: Path) -> None:
    options = parse_arguments(["--model-id", "m", "-p", "9", "--num-shard", "2", "--max-total-tokens", "50"])
    assert (options.model_id, options.port, options.max_total_tokens, options.input_tokens_max) == ("m", 9, 50, 49)
    launcher = write_launcher(tmp_path, "--peer-die-at-launch", "no such model")
    process = await asyncio.create_subprocess_exec(
        launcher, "--model-id", "m", stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    said, _ = await process.communicate()
    assert (process.returncode, said) == (1, b"no such model\n")
    assert sys.executable in launcher.read_text()
