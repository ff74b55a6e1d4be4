"""The scheduler's Ray actors, on the head node: one leads, the other stands by with everything loaded.

Who has the journal's folder leads. The kernel gives the folder away when the leader's process ends, so there are never
two; Ray starts that process again, and it stands by from then on. Without a journal there is nobody to go on from, and
one actor only.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from typing import Any, Final

import ray
import structlog
from ray.util import get_node_ip_address

from contracts.messages import Endpoint
from contracts.policies import SchedulerConfig
from orchestrator.cluster import logs
from orchestrator.cluster.journal.errors import JournalError
from orchestrator.cluster.journal.store import Storage
from orchestrator.cluster.locating import SCHEDULER, STANDBY, node_id, only_one, schedulers
from orchestrator.cluster.scheduler_service import SchedulerService
from orchestrator.cluster.terminating import when_terminated

log = structlog.get_logger(__name__)

START_TIMEOUT_S: Final = 60.0
#: Objects made between two collections of the scheduler process, by generation.
GC_THRESHOLDS: Final = (50_000, 20, 100)
#: How long an answer may take that is due.
ANSWER_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.2


class SchedulerActor:
    """The scheduler of the cluster, or who takes over from it; wants to lead from its first `endpoint` call on."""

    def __init__(self, config: SchedulerConfig, secret: bytes, storage: Storage) -> None:
        logs.configure()
        self._config = config
        self._secret = secret
        self._storage = storage
        self._service: SchedulerService | None = None
        self._starting: asyncio.Task[Endpoint] | None = None
        when_terminated(self._close)

    async def secret(self) -> bytes:
        """The cluster's secret, for what is deployed later; whoever can call actors is inside the cluster."""
        return self._secret

    async def endpoint(self) -> Endpoint:
        """Where it listens, once it leads.

        Raises JournalError while another leads, or what was kept cannot be read; the next call tries again.
        """
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._service = SchedulerService(self._config, self._secret, storage=self._storage)
            self._starting = asyncio.create_task(self._start(self._service))
        return await asyncio.shield(self._starting)

    async def _start(self, service: SchedulerService) -> Endpoint:
        endpoint = await service.start(node_id(), get_node_ip_address())
        # What was loaded by now stays, and the core makes no cycles: full collections would only pause it.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return endpoint

    async def shutdown(self, deadline_ms: int) -> tuple[int, int] | None:
        """Accept and start nothing more, and let what runs end for so long: (running, waiting) that are left.

        None: it does not lead.
        """
        if self._starting is None or not self._starting.done() or self._starting.exception() is not None:
            return None
        assert self._service is not None
        left = await self._service.shutdown(deadline_ms)
        return left.running, left.waiting

    async def _close(self) -> None:
        """Commit what waits; tasks that run go on at their replicas."""
        if self._service is not None:
            await self._service.close()


def start_scheduler(config: SchedulerConfig, secret: bytes, storage: Storage) -> None:
    """Start the scheduler's actors and wait until one leads. Raises JournalError."""

    def start(name: str) -> Any:
        options = only_one(name) | {"max_concurrency": 1000}
        return ray.remote(SchedulerActor).options(**options).remote(config, secret, storage)

    leader = start(SCHEDULER)
    try:
        ray.get(leader.endpoint.remote(), timeout=START_TIMEOUT_S)
    except BaseException as failed:
        ray.kill(leader)  # it is detached, and would be taken for a service that is up
        if isinstance(failed, ray.exceptions.RayTaskError) and isinstance(failed.cause, JournalError):
            raise failed.cause from None
        raise
    if storage.journal:
        start(STANDBY)


def drain_scheduler(deadline_ms: int, is_hurried: Callable[[], bool]) -> tuple[int, int] | None:
    """Have the scheduler end its work: (running, waiting) that are left; None without an answer."""
    with contextlib.suppress(ray.exceptions.RayError):  # Ray is gone: nothing is left to be ended
        answers = [actor.shutdown.remote(deadline_ms) for actor in schedulers()]
        until = time.monotonic() + deadline_ms / 1000 + ANSWER_TIMEOUT_S
        while answers and time.monotonic() < until and not is_hurried():
            answered, answers = ray.wait(answers, timeout=_POLL_S)
            for answer in answered:
                with contextlib.suppress(ray.exceptions.RayError):  # only this one is
                    left: tuple[int, int] | None = ray.get(answer)
                    if left is not None:
                        return left
    return None
