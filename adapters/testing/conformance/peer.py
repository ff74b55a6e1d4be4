"""The scripted peer: answers an adapter's small calls as its engine would, and generations byte for byte as told."""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.testing.conformance.dialect import Dialect
from adapters.testing.peers.http import Answer, Call, answer_bytes, read_call

_CALLS_KEPT: Final = 256
_HANG_S: Final = 3600.0


class Close(Struct, frozen=True):
    """End the connection in order. Without it, or `Reset`, the connection stays open after the last step."""


class Reset(Struct, frozen=True):
    """Break the connection: the other side sees a reset."""


class Pause(Struct, frozen=True):
    """Wait, as an engine does that computes."""

    seconds: float


class Hang(Struct, frozen=True):
    """Say nothing more, on an open connection."""


Step = bytes | Close | Reset | Pause | Hang


class WirePeer:
    """Plays `scene` to every generation, and answers what else it is asked as a well engine does.

    `override_all` is the answer to any other request, and `mutation` changes the bodies of those answers. `hangs`:
    says nothing to any request but a generation. `holds`: tells the adapter that it still works on generations whose
    connection is gone. `active` are the bodies of the generations under way, `dropped` counts connections that the
    adapter ended, `sent_bytes` what of the scenes the adapter's side has taken.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.endpoint = ""
        self.reset()

    def reset(self) -> None:
        """Be a well engine again that has nothing to do."""
        self.scene: Sequence[Step] = (Hang(),)
        self.override_all: Answer | None = None
        self.mutation: Callable[[bytes], bytes] | None = None
        self.holds = False
        self.hangs = False
        self.active: list[bytes] = []
        self.calls: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self.dropped = 0
        self.sent_bytes = 0

    async def listen(self, path: Path | None = None) -> None:
        """Serve on a free port of the loopback, or on a Unix socket at `path`."""
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
            self.endpoint = f"unix:{path}"
            return
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.endpoint = f"http://{host}:{port}"

    async def close(self) -> None:
        """Be gone, with every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            call = await read_call(reader)
            self.calls.append(call)
            if self._dialect.is_generation(call):
                await self._generate(call, reader, writer)
            else:
                await self._answer(call, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if self.hangs:
            await asyncio.sleep(_HANG_S)
        answer = self.override_all or self._dialect.answer(call, self.active)
        if self.mutation is not None:
            answer = replace(answer, body=self.mutation(answer.body))
        writer.write(answer_bytes(answer))
        await writer.drain()

    async def _generate(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.active.append(call.body)
        playing = asyncio.ensure_future(self._play(tuple(self.scene), writer))
        gone = asyncio.ensure_future(reader.read())
        try:
            # A scene that ends in order keeps the connection until the adapter drops it.
            await asyncio.wait((playing, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.dropped += 1
            elif not playing.exception() and playing.result():
                await asyncio.wait((gone,))
                self.dropped += 1
        finally:
            for part in (playing, gone):
                part.cancel()
            await asyncio.gather(playing, gone, return_exceptions=True)
            if not self.holds and call.body in self.active:
                self.active.remove(call.body)

    async def _play(self, scene: Sequence[Step], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open after the scene."""
        for step in scene:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
                self.sent_bytes += len(step)
                # Twice, so that what was written is read on its own before more follows.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            elif isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Hang):
                await asyncio.sleep(_HANG_S)
            else:
                if isinstance(step, Reset):
                    _linger(writer, seconds=0)
                    writer.transport.abort()
                return False
        return True


def _linger(writer: asyncio.StreamWriter, seconds: int) -> None:
    """A socket that does not linger is reset by its end."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
