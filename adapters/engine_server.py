"""What all adapters of engine servers share: launching or attaching, readiness, watching, ending.

A server that this side launched is a child process with its fate tied to this one. One that runs already (an
`endpoint` in the spec) is attached to: it is never started or ended, and counts as gone when it has not answered
for a while.
"""

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

from msgspec import Struct

from adapters.attempts import Attempts
from adapters.child import ChildProcess
from adapters.errors import engine_error
from adapters.exchange import Address
from adapters.faults import classify
from adapters.folder import remove_folder
from adapters.http_client import EngineClient
from contracts.engine import EngineError, EngineExit, EngineSpec
from contracts.gpus import MemoryNeed
from contracts.pools import FaultKind

_HEALTH_INTERVAL_S: Final = 0.05
_LAST_WORDS_S: Final = 3.0
_ATTACHED_LOOK_S: Final = 1.0
_ATTACHED_MISSES_MAX: Final = 3
#: What ends a process whom somebody else kills, or who passes on that its own child was.
_KILLED: Final = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
#: The exit status of an attached engine that is gone: nobody knows a better one.
ATTACHED_GONE: Final = 255


class Launch(Struct, frozen=True):
    """How to start a server and reach it. `folder` is removed when it has ended; `secrets` stay out of its last words.

    `argv` begins with an absolute path, and is empty where the server runs already. `tree`: the server starts
    processes of its own.
    """

    address: Address
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()
    folder: Path | None = None
    tree: bool = False


class EngineServer(ABC):
    """One engine server behind the protocol (`EngineAdapter`); a subclass says what its engine's dialect is.

    It provides `_prepare`, `_is_ready`, `_refusal`, `_new_attempts` and what of the protocol is not here. After the
    process has ended, `close` and `launch` bring up another one in its place.
    """

    ENGINE: ClassVar[str]

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._child: ChildProcess | None = None
        self._client: EngineClient | None = None
        self._attempts: Attempts | None = None
        self._folder: Path | None = None
        self._gone = False

    # ------------------------------------------------------------------ a subclass's part

    @abstractmethod
    async def _prepare(self, spec: EngineSpec) -> Launch:
        """Check what must be right and say how to start the server. Not called for one to attach to."""

    @abstractmethod
    async def _is_ready(self, client: EngineClient) -> bool:
        """Whether the server answers its health check."""

    @abstractmethod
    def _refusal(self, status: int, body: bytes) -> EngineError:
        """What an answer other than 200 means."""

    @abstractmethod
    def _new_attempts(self, client: EngineClient) -> Attempts:
        """Made anew for every launch."""

    async def _look_around(self, client: EngineClient) -> None:  # noqa: B027  (most dialects need nothing)
        """Called once the server is ready, to learn what the dialect needs to know of it."""

    # -------------------------------------------------------------------------- process

    async def launch(self) -> None:
        """See `EngineAdapter`. Raises EngineError (POOL_UNREADY)."""
        await self.close()
        launch = self._attachment() if self._spec.endpoint else await self._prepare(self._spec)
        self._folder, self._gone = launch.folder, False
        try:
            if launch.argv:
                argv = [*self._spec.command_prefix, *launch.argv]
                env = {**launch.env, **dict(self._spec.env)}
                self._child = ChildProcess(argv, env, launch.secrets, tree=launch.tree)
            self._client = client = EngineClient(self.ENGINE, launch.address, launch.headers, self._refusal)
            self._attempts = self._new_attempts(client)
            async with asyncio.timeout(self._spec.ready_timeout_ms / 1000):
                await self._until_ready(client)
        except TimeoutError:
            message = f"the engine was not ready after {self._spec.ready_timeout_ms} ms{self._last_line()}"
            tail = self._child.stderr_tail if self._child else ()
            await self.close()
            raise self._unready(message, "launch", tail) from None
        except BaseException:
            await self.close()
            raise

    async def _until_ready(self, client: EngineClient) -> None:
        while not await self._is_ready(client):
            if self._child is not None and self._child.status is not None:
                message = f"the engine ended while starting: {self._status_text(self._child)}"
                raise self._unready(message, self._why_ended(self._child), self._child.stderr_tail)
            await asyncio.sleep(_HEALTH_INTERVAL_S)
        try:
            await self._look_around(client)
        except EngineError as error:
            raise await self._not_ready_after_all(error) from None

    async def _not_ready_after_all(self, error: EngineError) -> EngineError:
        """What a server that looked ready and then failed is to be called: by its last words, where it died."""
        child = self._child
        if child is not None and error.info.code == "WORKER_RESET":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), _LAST_WORDS_S)
        if child is None or child.status is None:
            unready = error.info.code in ("POOL_UNREADY", "POOL_UNAVAILABLE", "INVALID_PARAMS")
            return error if unready else self._unready(f"the engine failed when asked: {error.info.message}")
        message = f"the engine ended while starting: {self._status_text(child)}"
        return self._unready(message, self._why_ended(child), child.stderr_tail)

    def _attachment(self) -> Launch:
        """How to reach the engine that runs already. Raises EngineError (INVALID_PARAMS) for no endpoint."""
        spec = self._spec
        parts = urlsplit(spec.endpoint)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme == "unix" and parts.path:
            address = Address(socket_path=parts.path)
        elif parts.scheme == "http" and parts.hostname and port:
            address = Address(host=parts.hostname, port=port)
        else:
            message = f"pool {spec.pool_id}: {spec.endpoint!r} is no endpoint; give `http://host:port` or `unix:/path`"
            raise engine_error("INVALID_PARAMS", message, engine=self.ENGINE, retriable=False)
        key = os.environ.get(spec.api_key_env, "") if spec.api_key_env else ""
        if spec.api_key_env and not key:
            message = f"pool {spec.pool_id}: the variable {spec.api_key_env} holds no key for {spec.endpoint}; set it"
            raise self._unready(message)
        return Launch(address=address, headers={"Authorization": f"Bearer {key}"} if key else {})

    @property
    def pid(self) -> int | None:
        """Process id of the engine that was launched and still runs."""
        return self._child.pid if self._child is not None and self._child.status is None else None

    def _alive(self) -> bool:
        return not self._gone if self._child is None else self._child.status is None

    async def wait_exit(self) -> EngineExit:
        """See `EngineAdapter`. An attached engine is gone after three failed looks, a second apart."""
        client, _ = self._running()
        child = self._child
        if child is not None:
            status = await child.wait()
            return EngineExit(status=status, stderr_tail=child.stderr_tail, kind=self._why_ended(child))
        misses = 0
        while misses < _ATTACHED_MISSES_MAX:
            await asyncio.sleep(_ATTACHED_LOOK_S)
            misses = 0 if await self._is_ready(client) else misses + 1
        self._gone = True
        return EngineExit(status=ATTACHED_GONE, stderr_tail=(f"{self._spec.endpoint} does not answer any more",))

    async def healthy(self) -> bool:
        """See `EngineAdapter`."""
        return self._client is not None and await self._is_ready(self._client)

    async def close(self) -> None:
        """See `EngineAdapter`."""
        # Each part is forgotten once it is over, so that a close that was canceled can be repeated.
        if self._child is not None:
            await self._child.stop()
            self._child = None
        if self._attempts is not None:
            await self._attempts.close()
            self._attempts = None
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._folder is not None:
            remove_folder(self._folder)
            self._folder = None

    async def cancel(self, attempt_key: str) -> None:
        """See `EngineAdapter`. Raises EngineError (WORKER_RESET) when the engine holds on to the attempt."""
        if self._attempts is not None:
            await self._attempts.cancel(attempt_key)

    # --------------------------------------------------------------------------- errors

    def _running(self) -> tuple[EngineClient, Attempts]:
        if self._client is None or self._attempts is None:
            raise self._unready("the engine is not running")
        return self._client, self._attempts

    def _why_ended(self, child: ChildProcess) -> FaultKind:
        kind = classify(child.status, child.stderr_tail, child.oom_killed, gpu=self._spec.accelerator == "gpu")
        return killed_or(kind, child.status, asked=child.is_stopping)

    def _unready(self, message: str, kind: FaultKind = "launch", tail: tuple[str, ...] = ()) -> EngineError:
        return engine_error("POOL_UNREADY", message, engine=self.ENGINE, retriable=True, kind=kind, stderr_tail=tail)

    def _last_line(self) -> str:
        return f": {self._child.stderr_tail[-1]}" if self._child is not None and self._child.stderr_tail else ""

    def _status_text(self, child: ChildProcess) -> str:
        if child.status == -signal.SIGILL:
            return "its binary uses instructions that this CPU lacks (SIGILL)"
        return f"exit status {child.status}{self._last_line()}"


def killed_or(kind: FaultKind, status: int | None, *, asked: bool = False) -> FaultKind:
    """`killed` where nothing but a signal that nobody here sent (`asked`) tells why an engine ended, else `kind`."""
    return "killed" if kind == "exit" and status in _KILLED and not asked else kind


#: An engine that is attached to has taken its memory already.
ATTACHED_NEED: Final = MemoryNeed(weights_bytes=0, kv_slot_bytes=0, scratch_bytes=0, host_bytes=0)
