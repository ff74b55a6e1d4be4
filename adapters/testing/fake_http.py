"""The fake engine's HTTP/1.1: one request after another on a connection, no framework in between."""

import asyncio
import re
import time
from typing import Any, Final, cast

import msgspec

from adapters.testing.fake_completion import Completion
from adapters.testing.fake_contexts import SlotContexts
from adapters.testing.fake_pooled import Pooling
from adapters.testing.fake_scheduler import SlotScheduler, Stream
from adapters.testing.fake_text import tokenize

_REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024
_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Unavailable",
}
_POOLED: Final = (b"POST /embedding", b"POST /embeddings", b"POST /v1/embeddings", b"POST /rerank")
_SLOT = re.compile(rb"POST /slots/(-?\d{1,9})")
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nServer: fake\r\n\r\n"
)


class HttpProtocol(asyncio.Protocol):
    """One connection. Implements `Listener` for the completion it streams."""

    def __init__(
        self,
        scheduler: SlotScheduler,
        facts: dict[str, object],
        ctx: int,
        pooling: Pooling,
        contexts: SlotContexts,
        tells_cache: bool,
        api_key: str,
        ready_ns: int,
    ) -> None:
        self._scheduler = scheduler
        self._facts = facts
        self._ctx = ctx
        self._pooling = pooling
        self._contexts = contexts
        self._tells_cache = tells_cache
        self._authorization = f"Bearer {api_key}".encode() if api_key else None
        self._ready_ns = ready_ns
        self._data = b""
        self._stream: Stream | None = None
        self._transport: asyncio.Transport | None = None
        self.writable = True

    # ---------------------------------------------------------------- connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        if self._stream is not None:
            self._scheduler.drop(self._stream)
            self._stream = None

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > _REQUEST_BYTES_MAX:
            assert self._transport is not None
            self._transport.abort()
            return
        self._serve_next()

    def _serve_next(self) -> None:
        while self._stream is None and self._transport is not None:
            head, separator, rest = self._data.partition(b"\r\n\r\n")
            if not separator:
                return
            request_line, *lines = head.split(b"\r\n")
            headers = {}
            for line in lines:
                name, _, value = line.partition(b":")
                headers[name.strip().lower()] = value.strip()
            length = int(headers.get(b"content-length", b"0"))
            if len(rest) < length:
                return
            self._data = rest[length:]
            method, target, _ = request_line.split(b" ", 2)
            path, _, query = target.partition(b"?")
            self._route(method + b" " + path, query.decode(), headers, rest[:length])

    # -------------------------------------------------------------------- routes

    def _route(self, route: bytes, query: str, headers: dict[bytes, bytes], body: bytes) -> None:
        if time.monotonic_ns() < self._ready_ns:
            self._refuse(503, "unavailable_error", "Loading model")
        elif route == b"GET /health":
            self._answer(200, {"status": "ok"})
        elif self._authorization and headers.get(b"authorization") != self._authorization:
            self._refuse(401, "authentication_error", "Invalid API Key")
        elif route == b"GET /props":
            self._answer(200, self._facts)
        elif route == b"GET /slots":
            self._answer(200, self._slots())
        elif route == b"GET /metrics":
            self._answer_raw(200, b"text/plain", self._metrics())
        else:
            self._route_post(route, query, body)

    def _route_post(self, route: bytes, query: str, raw: bytes) -> None:
        try:
            body = msgspec.json.decode(raw, type=dict[str, Any])
        except msgspec.DecodeError as error:
            self._refuse(400, "invalid_request_error", str(error))
            return
        if route == b"POST /tokenize":
            self._answer(200, {"tokens": tokenize(body.get("content", ""))})
        elif route == b"POST /apply-template":
            turns = "".join(f"<|{m['role']}|> {m['content']}\n" for m in body.get("messages", []))
            self._answer(200, {"prompt": f"{turns}<|assistant|>"})
        elif route in (b"POST /completion", b"POST /completions"):
            self._complete(body)
        elif slot := _SLOT.fullmatch(route):
            status, answer = self._contexts.act(int(slot[1]), query, body.get("filename"))
            asyncio.get_running_loop().call_later(self._contexts.pause_s, self._answer, status, answer)
        elif route in _POOLED:
            pooled = self._pooling.answer(route, body)
            self._scheduler.compute(pooled, lambda computed: self._answer(computed.status, computed.body))
        else:
            self._refuse(404, "not_found_error", "File Not Found")

    def _complete(self, body: dict[str, Any]) -> None:
        prompt = body.get("prompt")
        if not isinstance(prompt, str | list) or body.get("stream") is not True:
            self._refuse(400, "invalid_request_error", "a prompt and stream:true are needed")
            return
        tokens = prompt if isinstance(prompt, list) else tokenize(prompt)
        count = len(tokens)
        if count >= self._ctx:
            message = f"request ({count} tokens) exceeds the available context size ({self._ctx} tokens)"
            self._refuse(400, "exceed_context_size_error", message)
            return
        completion, slot = Completion(body, count, self._ctx, self._pooling.model), body.get("id_slot", -1)
        cached = self._contexts.begin(slot, tokens, body.get("cache_prompt") is True)
        completion.cached_tokens = cached if self._tells_cache else 0
        self._stream = Stream(self, completion, slot)
        self._scheduler.submit(self._stream)

    def _slots(self) -> list[dict[str, object]]:
        return [
            {
                "id": n,
                "n_ctx": self._ctx,
                "is_processing": stream is not None or n < self._scheduler.computing,
                "n_prompt_tokens": stream.completion.prompt_tokens + stream.completion.made if stream else 0,
            }
            for n, stream in enumerate(self._scheduler.running)
        ]

    def _metrics(self) -> bytes:
        scheduler = self._scheduler
        samples = {
            "prompt_tokens_total": scheduler.tokens_in,
            "tokens_predicted_total": scheduler.tokens_out,
            "requests_processing": sum(stream is not None for stream in scheduler.running) + scheduler.computing,
            "requests_deferred": len(scheduler.waiting),
        }
        return "".join(f"# TYPE llamacpp:{k} gauge\nllamacpp:{k} {v}\n" for k, v in samples.items()).encode()

    # ------------------------------------------------------------------- answers

    def send_head(self) -> None:
        if self._transport is not None:
            self._transport.write(_STREAM_HEAD)

    def send_frames(self, frames: bytes, last: bool) -> None:
        if self._transport is None:
            return
        end = b"0\r\n\r\n" if last else b""
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(frames), frames, end))
        if last:
            self._stream = None
            self._serve_next()

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message, "type": kind}})

    def _answer(self, status: int, body: object) -> None:
        self._answer_raw(status, b"application/json", msgspec.json.encode(body))

    def _answer_raw(self, status: int, kind: bytes, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (status, _REASONS[status], kind, len(body), body)
            )
