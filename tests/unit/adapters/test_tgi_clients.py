"""TGI's two official clients talk to the peer that stands in for TGI, errors included."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import huggingface_hub
import huggingface_hub.errors
import pytest
import text_generation  # type: ignore[import-untyped]
import text_generation.errors  # type: ignore[import-untyped]

from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.server import running

pytestmark = [
    # The clients' own ways: a method that pydantic deprecates, and connections that are left for the collector.
    pytest.mark.filterwarnings("ignore:The `dict` method is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

Serve = Callable[..., Awaitable[str]]
T = TypeVar("T")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> str:
            port = await stack.enter_async_context(running(PeerOptions(**options)))
            return f"http://127.0.0.1:{port}"

        yield start


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What the clients left open is closed before the next module, which may be strict about it."""
    yield
    gc.collect()


async def in_thread(call: Callable[[], T]) -> T:
    """Both clients block."""
    return await asyncio.wait_for(asyncio.to_thread(call), 30)


async def test_text_generation_reads_streams_and_answers(serve: Serve) -> None:
    client = text_generation.Client(await serve(comment_every=2), timeout=20)
    stream = await in_thread(lambda: list(client.generate_stream("one two", max_new_tokens=12, do_sample=True, seed=3)))
    last = stream[-1]
    assert (last.details.finish_reason, last.details.generated_tokens, last.details.seed) == ("length", 12, 3)
    assert last.generated_text == "".join(frame.token.text for frame in stream if not frame.token.special)
    whole = await in_thread(lambda: client.generate("one two", max_new_tokens=12, do_sample=True, seed=3))
    assert whole.generated_text == last.generated_text
    assert [token.text for token in whole.details.tokens] == [frame.token.text for frame in stream]
    stopped = await in_thread(lambda: client.generate("say fake-length=3"))
    assert stopped.details.finish_reason == "eos_token"


@pytest.mark.parametrize(
    ("options", "prompt", "error"),
    [
        ({}, "x" * 10 + " y" * 5000, text_generation.errors.ValidationError),
        ({"max_concurrent_requests": 0}, "one", text_generation.errors.OverloadedError),
        ({"fail_after": 2}, "one", text_generation.errors.GenerationError),
    ],
)
async def test_text_generation_understands_the_errors(
    serve: Serve, options: dict[str, Any], prompt: str, error: type[Exception]
) -> None:
    client = text_generation.Client(await serve(**options), timeout=20)
    with pytest.raises(error):
        await in_thread(lambda: list(client.generate_stream(prompt)))
    with pytest.raises(error):
        await in_thread(lambda: client.generate(prompt))


async def test_huggingface_hub_reads_streams_and_answers(serve: Serve) -> None:
    url = await serve(comment_every=2)
    client = huggingface_hub.InferenceClient(model=url, provider="hf-inference", token="none", timeout=20)
    stream = await in_thread(
        lambda: list(client.text_generation("one two", details=True, stream=True, max_new_tokens=12))
    )
    details = stream[-1].details
    assert details is not None
    assert (details.finish_reason, details.generated_tokens, details.input_length) == ("length", 12, 3)
    whole = await in_thread(lambda: client.text_generation("one two", details=True, max_new_tokens=12))
    assert whole.generated_text == stream[-1].generated_text
    assert whole.details is not None
    assert len(whole.details.tokens) == 12
    info = await in_thread(lambda: client.get_endpoint_info(model=url))
    assert (info["version"], info["max_total_tokens"]) == ("3.3.6-peer", 4096)
    assert await in_thread(lambda: client.health_check(model=url))


@pytest.mark.parametrize(
    ("options", "prompt", "error"),
    [
        ({}, "x" * 10 + " y" * 5000, huggingface_hub.errors.ValidationError),
        ({"max_concurrent_requests": 0}, "one", huggingface_hub.errors.OverloadedError),
        ({"fail_after": 2}, "one", huggingface_hub.errors.GenerationError),
        ({"end_after": 2}, "one", None),
    ],
)
async def test_huggingface_hub_understands_the_errors(
    serve: Serve, options: dict[str, Any], prompt: str, error: type[Exception] | None
) -> None:
    client = huggingface_hub.InferenceClient(model=await serve(**options), token="none", timeout=20)

    def stream() -> list[object]:
        return list(client.text_generation(prompt, details=True, stream=True))

    if error is None:
        # A stream that just ends is no error for this client: it is one for our adapter.
        assert len(await in_thread(stream)) == 2
        return
    with pytest.raises(error):
        await in_thread(stream)
    with pytest.raises(error):
        await in_thread(lambda: client.text_generation(prompt, details=True))
