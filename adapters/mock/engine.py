"""The mock engine: a server on a Unix socket, inside this process, that misbehaves as it is told."""

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from adapters.mock.faults import MockFaults
from adapters.mock.text import MockText, count_tokens
from adapters.mock.wire import MockError, MockFrame, MockInfo, MockRequest, decode_request
from adapters.stops import StopCutter
from adapters.testing.peers.http import (
    CHUNKS_END,
    Answer,
    Call,
    answer_bytes,
    chunk,
    json_answer,
    read_call,
    stream_head,
)

VERSION: Final = "mock 1"
_FOREVER_S: Final = 3600.0


class MockModel(Struct, frozen=True):
    """What the engine serves."""

    name: str
    slots: int
    ctx: int


class MockEngine:
    """Serves until it is closed or killed. `status` is set and `exited` fires when it has ended."""

    def __init__(self, model: MockModel, faults: MockFaults, api_key: str) -> None:
        self._model = model
        self._faults = faults
        self._api_key = api_key
        self._running: list[str] = []
        self._tokens_in = 0
        self._tokens_out = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.status: int | None = None
        self.exited = asyncio.Event()

    async def listen(self, path: Path) -> None:
        """Start to serve, or end at once where that is the fault asked for."""
        if self._faults.fail_at_launch:
            self.end(1)
            return
        self._server = await asyncio.start_unix_server(self._serve, path)

    def end(self, status: int = -signal.SIGKILL) -> None:
        """Drop every connection and stop to listen, as a process does that is killed."""
        if self.status is not None:
            return
        self.status = status
        if self._server is not None and not self._faults.lie_in_health:
            self._server.close()
        own = asyncio.current_task()
        for task in self._connections:
            if task is not own:
                task.cancel()
        self.exited.set()

    async def close(self) -> None:
        """End the engine and wait until nothing of it is left."""
        self.end(0)
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # -------------------------------------------------------------------- connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            call = await read_call(reader)
            if call.path == "/generate" and self._is_allowed(call) and self.status is None:
                await self._unless_gone(reader, self._generate(call, writer))
            elif self.status is None or call.path == "/health":
                writer.write(answer_bytes(self._answer(call)))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort() if self.status else writer.close()

    async def _unless_gone(self, reader: asyncio.StreamReader, work: Coroutine[None, None, None]) -> None:
        """Do the work until it is done or the client has gone."""
        doing = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in (doing, gone):
                part.cancel()
            await asyncio.gather(doing, gone, return_exceptions=True)

    def _is_allowed(self, call: Call) -> bool:
        return call.headers.get("authorization") == f"Bearer {self._api_key}"

    def _answer(self, call: Call) -> Answer:
        if call.path == "/health":
            return Answer(200)
        if not self._is_allowed(call):
            return json_answer(401, MockError("unauthorized", "the key is wrong"))
        if call.path == "/info":
            model = self._model
            info = MockInfo(VERSION, model.slots, model.ctx, self._running, self._tokens_in, self._tokens_out)
            return json_answer(200, info)
        if call.path == "/tokenize":
            return json_answer(200, count_tokens(msgspec.json.decode(call.body)["prompt"]))
        return json_answer(404, MockError("invalid", "there is nothing at this path"))

    # -------------------------------------------------------------------- generation

    async def _generate(self, call: Call, writer: asyncio.StreamWriter) -> None:
        try:
            request = decode_request(call.body)
        except msgspec.DecodeError as error:
            writer.write(answer_bytes(json_answer(400, MockError("invalid", str(error)))))
            return
        room = self._model.ctx - count_tokens(request.prompt)
        if room <= 0:
            error_ = MockError("invalid", f"the prompt is longer than the context of {self._model.ctx} tokens")
            writer.write(answer_bytes(json_answer(400, error_)))
            return
        self._running.append(request.key)
        self._tokens_in += count_tokens(request.prompt)
        try:
            writer.write(stream_head())
            await asyncio.sleep(self._faults.first_token_ms / 1000)
            await self._stream(request, room, writer)
        finally:
            if request.key in self._running and not self._faults.keep_slots:
                self._running.remove(request.key)

    async def _stream(self, request: MockRequest, room: int, writer: asyncio.StreamWriter) -> None:
        text = MockText(self._model.name, request.prompt, request.seed, request.temperature)
        limit = min(request.max_tokens, room, text.length)
        cutter = StopCutter(request.stop)
        for made, piece in enumerate(text.pieces(), 1):
            if not await self._is_well(made - 1, writer):
                return
            part = cutter.feed(piece)
            self._tokens_out += 1
            if cutter.matched is None and made < limit:
                # Half a character makes no frame: the next one counts its tokens.
                if part:
                    _send(writer, MockFrame(part, made))
                    await writer.drain()
                await asyncio.sleep(self._faults.token_ms / 1000)
                continue
            done: str = "stop" if cutter.matched is not None or made == text.length else "length"
            part += "" if cutter.matched is not None else cutter.flush()
            last = {"text": part, "made": made, "done": done, "prompt_tokens": count_tokens(request.prompt)}
            self._running.remove(request.key)
            _send(writer, msgspec.convert({**last, "stop_sequence": cutter.matched}, MockFrame))
            writer.write(CHUNKS_END)
            await writer.drain()
            return

    async def _is_well(self, made: int, writer: asyncio.StreamWriter) -> bool:
        """Whether the generation goes on after `made` tokens; commits the faults that are due."""
        faults = self._faults
        if made == faults.stall_after:
            await asyncio.sleep(_FOREVER_S)
        if made == faults.garbage_after:
            writer.write(chunk(b'data: {"text": \xff}\n\n'))
        if made == faults.miscount_after:
            _send(writer, MockFrame("", made - 1))
        if made == faults.truncate_after:
            writer.write(CHUNKS_END)
        elif made == faults.die_after:
            self.end()
        else:
            return True
        return False


def _send(writer: asyncio.StreamWriter, frame: MockFrame) -> None:
    writer.write(chunk(b"data: " + msgspec.json.encode(frame) + b"\n\n"))
