"""An ingress's link to the scheduler: questions with answers, updates, and a new link when it breaks."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog

from contracts import messages as wire
from contracts.base import Frame
from contracts.errors import ErrorInfo, OrchError
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import ChannelError, Connection

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S: Final = 30.0
RECONNECT_BACKOFF_S: Final = 0.2
RECONNECT_WAIT_S: Final = 2.0
PENDING_MAX: Final = 10_000

Answer = TypeVar("Answer")
Locate = Callable[[], Awaitable[wire.Endpoint]]
Update = wire.TaskStarted | wire.TaskPaused | wire.TaskPlan | wire.TaskEnded

_NO_SCHEDULER: Final = ErrorInfo(
    "POOL_UNAVAILABLE", "the scheduler cannot be reached; try again shortly", retriable=True, retry_after_ms=1000
)
_OVERLOADED: Final = ErrorInfo(
    "ADMISSION_REJECT",
    f"this ingress has {PENDING_MAX} requests waiting for the scheduler; try again shortly",
    retriable=True,
    retry_after_ms=1000,
    policy_label="reject",
)


class SchedulerLink:
    """Asks the scheduler and hands its updates on; `on_lost` is told when the link breaks.

    Askers may be canceled at any await (clients hang up): answers to futures that are already
    done are dropped.
    """

    def __init__(
        self,
        secret: bytes,
        locate: Locate,
        node_id: str,
        peer_id: str,
        on_update: Callable[[Update], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._secret = secret
        self._locate = locate
        self._node_id = node_id
        self._peer_id = peer_id
        self._on_update = on_update
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self._linked = asyncio.Event()
        self._unlinked = asyncio.Event()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; must be called on the event loop that serves requests."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()

    def send(self, message: Frame) -> None:
        """Send what needs no answer; dropped while there is no link."""
        if self._connection is not None:
            self._connection.send(message)

    async def ask(self, question: Frame, req: int, answer: type[Answer]) -> Answer:
        """Send a question and wait for its answer. Raises OrchError."""
        if self._connection is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECONNECT_WAIT_S):
                    await self._linked.wait()
        if self._connection is None:
            raise OrchError(_NO_SCHEDULER)
        if len(self._pending) >= PENDING_MAX:
            raise OrchError(_OVERLOADED)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[req] = future
        try:
            self._connection.send(question)
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                reply = await future
        except TimeoutError:
            raise OrchError(_NO_SCHEDULER) from None
        finally:
            del self._pending[req]
        if isinstance(reply, wire.Failed):
            raise OrchError(reply.error)
        if not isinstance(reply, answer):
            raise TypeError(f"the scheduler answered {type(reply).__name__} instead of {answer.__name__}")
        return reply

    def _received(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, wire.TaskStarted | wire.TaskPaused | wire.TaskPlan | wire.TaskEnded):
            self._on_update(message)
            return
        future = self._pending.get(message.req)
        # The asker may have left in this very turn: its future is canceled then.
        if future is not None and not future.done():
            future.set_result(message)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(ChannelError):
                self._unlinked.clear()
                self._connection = await connect(
                    await self._locate(),
                    self._node_id,
                    self._secret,
                    "ingress",
                    self._peer_id,
                    wire.ToIngress,
                    self._received,
                    self._lost,
                )
                self._linked.set()
                await self._unlinked.wait()
            await asyncio.sleep(RECONNECT_BACKOFF_S)

    def _lost(self, _connection: Connection) -> None:
        log.warning("scheduler.lost")
        self._connection = None
        self._linked.clear()
        self._unlinked.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(OrchError(_NO_SCHEDULER))
        self._on_lost()
