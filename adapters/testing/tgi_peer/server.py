"""The peer's HTTP routes. It is NOT TGI; see the package's docstring."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from adapters.testing.tgi_peer.batches import Batches, RefusedError
from adapters.testing.tgi_peer.bodies import (
    ChatTokenizeResponse,
    Details,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    Info,
    decode_chat,
    decode_generate,
    encode,
    stream_refusal,
)
from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.vocabulary import tokenize

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BODY_BYTES_MAX: Final = 2_000_000
_GARBAGE: Final = b'data:{"index":1,"token":{"id":\xff\xfe\n\n'


class Peer:
    """The routes, over one batching task."""

    def __init__(self, options: PeerOptions) -> None:
        self._options = options
        self._batches = Batches(options)
        self._ready_ns = time.monotonic_ns() + int(options.load_ms * 1e6)
        self._authorization = f"bearer {options.api_key}".lower() if options.api_key else ""

    def application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[self._answering_errors])
        application.add_routes(
            [
                web.get("/", self.health),
                web.post("/", self.compat_generate),
                web.post("/generate", self.generate),
                web.post("/generate_stream", self.generate_stream),
                web.post("/tokenize", self.tokenize),
                web.post("/chat_tokenize", self.chat_tokenize),
                web.get("/info", self.info),
                web.get("/health", self.health),
                web.get("/metrics", self.metrics),
            ]
        )
        return application

    @web.middleware
    async def _answering_errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as error:
            return _json(error.body, error.status)
        except msgspec.ValidationError as error:
            text = f"Failed to deserialize the JSON body into the target type: {error}"
            return web.Response(text=text, status=422)
        except msgspec.DecodeError as error:
            return web.Response(text=f"Failed to parse the request body as JSON: {error}", status=400)

    # ------------------------------------------------------------------ generation

    async def compat_generate(self, request: web.Request) -> web.StreamResponse:
        asked = await self._asked(request)
        return await self._stream(request, asked) if asked.stream else await self._whole(request, asked, listed=True)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self._whole(request, await self._asked(request), listed=False)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, await self._asked(request))

    async def _asked(self, request: web.Request) -> GenerateRequest:
        self._check_key(request)
        return decode_generate(await request.read())

    async def _whole(self, request: web.Request, asked: GenerateRequest, *, listed: bool) -> web.Response:
        tokens = []
        last = None
        async with aclosing(self._batches.run(asked, lambda: self._gone(request))) as frames:
            async for frame in frames:
                tokens.append(frame.token)
                last = frame
        if last is None or last.generated_text is None:
            raise RefusedError(500, "Incomplete generation", "incomplete_generation")
        details = None
        if last.details is not None:
            told = last.details
            details = Details(told.finish_reason, told.generated_tokens, told.seed, [], tokens)
        body = GenerateResponse(last.generated_text, details)
        return _json([body] if listed else body)

    async def _stream(self, request: web.Request, asked: GenerateRequest) -> web.StreamResponse:
        """Always 200: what goes wrong is told in the stream, whatever the OpenAPI document says."""
        await asyncio.sleep(self._options.headers_ms / 1000)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "x-compute-type": "tgi-peer",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        try:
            await self._frames(request, response, asked)
        except RefusedError as error:
            await response.write(_event(error.body))
        except ConnectionError:
            return response
        return response

    async def _frames(self, request: web.Request, response: web.StreamResponse, asked: GenerateRequest) -> None:
        reason = stream_refusal(asked.parameters)
        if reason is not None:
            raise self._batches.refused(reason)
        options, made, ended = self._options, 0, False
        async with aclosing(self._batches.run(asked, lambda: self._gone(request))) as frames:
            async for frame in frames:
                if made == options.eof_after and request.transport is not None:
                    request.transport.abort()
                if made == options.end_after:
                    return
                if options.comment_every and made % options.comment_every == 0:
                    await response.write(b":\n\n")
                await self._send(response, _GARBAGE if made == options.garbage_after else _event(frame))
                made += 1
                ended = frame.generated_text is not None
        if not ended:
            raise RefusedError(500, "Incomplete generation stream", "incomplete_generation_stream")

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        """A deaf peer goes on for nobody."""
        try:
            await response.write(data)
        except ConnectionError:
            if not self._options.deaf:
                raise

    def _gone(self, request: web.Request) -> bool:
        closed = request.transport is None or request.transport.is_closing()
        return closed and not self._options.deaf

    # ------------------------------------------------------------------- the rest

    async def tokenize(self, request: web.Request) -> web.Response:
        return _json(tokenize((await self._asked(request)).inputs))

    async def chat_tokenize(self, request: web.Request) -> web.Response:
        """The template begins with the start token, which a tokenizer would add once more."""
        chat = decode_chat(await request.read())
        turns = "".join(f"[{message.role}] {message.content}\n" for message in chat.messages)
        text = f"<s>{turns}[assistant]"
        return _json(ChatTokenizeResponse(tokenize(text, add_special=False), text))

    async def info(self, request: web.Request) -> web.Response:
        del request
        options = self._options
        return _json(
            Info(
                model_id=options.model_id,
                model_sha=options.revision,
                max_concurrent_requests=options.max_concurrent_requests,
                max_stop_sequences=options.max_stop_sequences,
                max_input_tokens=options.input_tokens_max,
                max_total_tokens=options.max_total_tokens,
            )
        )

    async def health(self, request: web.Request) -> web.Response:
        del request
        told = self._options.unhealthy_file
        if time.monotonic_ns() < self._ready_ns or (told and Path(told).exists()):
            return _json(ErrorResponse("unhealthy", "healthcheck"), 503)
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text=self._batches.metrics())

    def _check_key(self, request: web.Request) -> None:
        """Only what generates or tokenizes a prompt is protected, and case does not count."""
        if self._authorization and request.headers.get("Authorization", "").lower() != self._authorization:
            raise web.HTTPUnauthorized(text="")


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(body), status=status, content_type="application/json")


def _event(body: object) -> bytes:
    """Without a space after the colon, as TGI's HTTP library writes it."""
    return b"data:" + encode(body) + b"\n\n"


@asynccontextmanager
async def running(options: PeerOptions) -> AsyncIterator[int]:
    """Serve in this event loop, on the port that is given."""
    runner = web.AppRunner(Peer(options).application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.hostname, options.port, backlog=1024)
        await site.start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


async def serve(options: PeerOptions) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with running(options) as port:
        sys.stdout.write(f"tgi-peer, which is NOT TGI, listens on {options.hostname}:{port}\n")
        sys.stdout.flush()
        await stopped.wait()
