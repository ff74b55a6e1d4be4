"""All that the ingress knows of the cluster."""

from collections.abc import AsyncIterator
from typing import Final, Literal, Protocol

from msgspec import Struct

from contracts.api import Admission, End, Metrics, Session, Started, TaskStatus, Token
from contracts.control import Capabilities, DrainRequest, PoolHealth, ReloadRequest, ReplicaSetStatus
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo

#: What a pool's id looks like, in the configuration and in paths.
POOL_ID_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Tokens(Struct, frozen=True, gc=False):
    """Consecutive tokens of a stream; `first` is the index of the first one."""

    first: int
    texts: list[str]

    def each(self) -> list[Token]:
        return [Token(text, self.first + n) for n, text in enumerate(self.texts)]


StreamEvent = Started | Tokens | Metrics | End | ErrorInfo


class Readiness(Struct, frozen=True):
    """Whether tasks can be served now, and per pool what it is waiting for."""

    ready: bool
    pools: dict[str, str]


class PoolAccepted(Struct, frozen=True):
    """Body of a control request's 202: it was taken on. How it goes on is told by the pool's health."""

    pool_id: str
    status: Literal["accepted"] = "accepted"


class EventSource(Protocol):
    """Events of one task, in order; `aclose` releases what the stream holds, read or not."""

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...

    async def __anext__(self) -> StreamEvent: ...

    async def aclose(self) -> None: ...


class PoolGateway(Protocol):
    """The control plane: look at pools and replica sets, drain and reload pools. Methods raise `OrchError`.

    Those that change something return once it is taken on. NOT_FOUND names the pools that there are; CONFLICT
    says what is under way, or that there is nothing to do.
    """

    async def pool_health(self, pool_id: str) -> PoolHealth:
        """How a pool and its replicas are (ORCH-2103)."""

    async def drain_pool(self, pool_id: str, request: DrainRequest) -> None:
        """Empty a pool and stop it (ORCH-2101)."""

    async def reload_pool(self, pool_id: str, request: ReloadRequest) -> None:
        """Have a pool serve another model (ORCH-2102)."""

    async def promote_pool(self, pool_id: str) -> None:
        """Have a pool's canary take over (ORCH-3033)."""

    async def rollback_pool(self, pool_id: str) -> None:
        """Undo a pool's last reload (ORCH-3033)."""

    async def replica_sets(self) -> list[ReplicaSetStatus]:
        """Load and objectives of every replica set (ORCH-2104)."""

    async def capabilities(self) -> Capabilities:
        """What the engines here can serve (ORCH-3095)."""


class Gateway(PoolGateway, Protocol):
    """Submit, stream, cancel and look at tasks, look at and end sessions. Methods raise `OrchError`."""

    async def submit(self, task: TaskInfo, request: GenerateRequest) -> Admission:
        """Have a task admitted."""

    async def open(self, task: TaskInfo, request: GenerateRequest, after: int = -1) -> tuple[Admission, EventSource]:
        """`submit` and `stream` in one exchange; the caller closes the events."""

    def stream(self, task_id: str, tenant: str, after: int = -1) -> EventSource:
        """Events of a task from token `after + 1` on, ending with one `End` or `ErrorInfo`.

        Raises NOT_FOUND for a task that is unknown, forgotten, or another tenant's.
        """

    async def cancel(self, task_id: str, tenant: str) -> None:
        """Cancel a task; when this returns, no token of it will follow. Ended tasks are left alone."""

    async def status(self, task_id: str, tenant: str) -> TaskStatus:
        """State, position and outcome of a task."""

    async def task_info(self, task_id: str, tenant: str) -> TaskInfo:
        """The admitted task, as it was submitted."""

    async def session(self, session_id: str, tenant: str) -> Session:
        """How a session stands. Raises NOT_FOUND for one that has ended, or is another tenant's."""

    async def close_session(self, session_id: str, tenant: str) -> None:
        """End a session. Raises NOT_FOUND as `session` does."""

    async def metrics(self) -> bytes:
        """The cluster's metrics, Prometheus text format."""

    async def readiness(self) -> Readiness:
        """Readiness of the pools."""

    def count_rejected(self, engine: str, reason: str) -> None:
        """Count a request that was refused before it reached the scheduler."""
