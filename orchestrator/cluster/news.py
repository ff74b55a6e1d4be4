"""What those who watch a task are told of it: its start, its pauses, its end."""

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from contracts import messages as wire
from contracts.tasks import Outcome
from orchestrator.cluster.held import Receiver
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.planning import NS_PER_MS, plan, running_metrics
from orchestrator.cluster.switchboard import Switchboard
from orchestrator.core.scheduler import Scheduler

#: Where a replica listens that is no longer here; only ended tasks still name it.
_NOWHERE: Final = wire.Endpoint("", "", "", 0)

#: Sends a message about a subject, once what it tells of is durable.
Post = Callable[[Receiver, Struct, str], None]


class News:
    """Reads the core; `post` sends."""

    def __init__(
        self,
        core: Scheduler,
        clock: Callable[[], int],
        live: Mapping[str, LiveTask],
        switchboard: Switchboard,
        post: Post,
    ) -> None:
        self._core = core
        self._clock = clock
        self._live = live
        self._switchboard = switchboard
        self._post = post

    def started(self, live: LiveTask) -> None:
        """An attempt begins: tell all who watch."""
        live.unaware.clear()
        watchers = self._switchboard.watchers(live.task.task_id)
        started = self._started(live.task.task_id, live.task.tenant) if watchers else None
        if started is not None:
            self.tell(watchers, live.task.task_id, started)

    def adopted(self, task_id: str, attempt: int) -> None:
        """A replica came back with an attempt. If that goes on, it is told to those who came while it was lost."""
        live = self._live.get(task_id)
        if live is None or not live.lost or live.attempt != attempt:
            return
        status = self._core.status(self._clock(), task_id, live.task.tenant)
        if status is None or status.state not in ("running", "stopping"):
            return
        live.lost = False
        unaware, live.unaware = live.unaware, []
        started = self._started(task_id, live.task.tenant) if unaware else None
        if started is not None:
            watching = self._switchboard.watchers(task_id)
            self.tell([each for each in unaware if each in watching], task_id, started)

    def ended(self, task_id: str, outcome: Outcome) -> None:
        """Nothing follows. Those who came while its attempt was lost, and hear only now of it, are told its start."""
        watchers = self._switchboard.stop_watching(task_id)
        live = self._live.get(task_id)
        unaware = [each for each in live.unaware if each in watchers] if live is not None else []
        started = self._started(task_id, live.task.tenant) if live is not None and unaware else None
        if started is not None:
            self.tell(unaware, task_id, started)
        self.tell(watchers, task_id, wire.TaskEnded(task_id, outcome))

    def tell(self, receivers: list[Receiver], task_id: str, message: Struct) -> None:
        for receiver in receivers:
            self._post(receiver, message, task_id)

    def watch(self, receiver: Receiver, task_id: str, tenant: str) -> None:
        """Tell how the task stands, and what comes if it has not ended."""
        live = self._live.get(task_id)
        if live is not None and live.lost:  # it may go on, here or elsewhere: what that will be is told then
            if receiver not in live.unaware:
                live.unaware.append(receiver)
            self._switchboard.watch(task_id, receiver)
            return
        started = self._started(task_id, tenant)
        if started is not None:
            self._post(receiver, started, task_id)
        metrics = plan(self._core, self._clock(), live) if live is not None and live.paused else None
        if live is not None and metrics is not None:
            self._post(receiver, wire.TaskPaused(task_id, live.attempt, metrics), task_id)
        outcome = self._core.outcome(task_id, tenant)
        if outcome is not None:
            self._post(receiver, wire.TaskEnded(task_id, outcome), task_id)
        else:
            self._switchboard.watch(task_id, receiver)

    def _started(self, task_id: str, tenant: str) -> wire.TaskStarted | None:
        view = self._core.started(self._clock(), task_id, tenant)
        if view is None:
            return None
        live = self._live.get(task_id)
        failed_over = live is not None and live.failed_over
        resumed = view.preempted and live is not None and not live.paused
        return wire.TaskStarted(
            task_id=task_id,
            attempt=view.attempt,
            replica=view.replica,
            endpoint=self._switchboard.endpoint(view.replica.replica_id) or _NOWHERE,
            queue_position=view.queue_position,
            predicted_start_ms=view.predicted_start_ms,
            queue_time_ms=view.queue_time_ns // NS_PER_MS,
            kv_warmth=view.kv_warmth and not failed_over,
            metrics=running_metrics(view, resumed=resumed, failed_over=failed_over),
            resume_tokens=live.resume_tokens if live is not None else 0,
            determinism=view.determinism,
        )
