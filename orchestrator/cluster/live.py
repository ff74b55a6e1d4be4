"""What the scheduler's shell keeps of a task from its submission to its end."""

from contracts.journal import KeptTask
from contracts.tasks import TaskInfo
from orchestrator.cluster.held import Receiver


class LiveTask:
    """A task and its payload, which the core never reads.

    `on_time_probability` is what was told at admission. `preempted`: an attempt was stopped for another
    task; `paused` until the next one starts. `lost`: nobody knows whether the last attempt still runs; `failed_over`:
    the running one took its place. The first `resume_tokens` tokens of the running attempt are those of an
    earlier one. `unaware` are watchers that came while it was lost, and were not told of it.
    """

    __slots__ = (
        "attempt",
        "deadline_ns",
        "failed_over",
        "lost",
        "on_time_probability",
        "paused",
        "payload",
        "preempted",
        "replica_id",
        "resume_tokens",
        "set_id",
        "started_ns",
        "submitted_ns",
        "task",
        "unaware",
    )

    def __init__(self, task: TaskInfo, payload: bytes, now_ns: int) -> None:
        self.task = task
        self.payload = payload
        self.submitted_ns = now_ns
        # from admission
        self.set_id = ""
        self.deadline_ns = 0
        self.on_time_probability = 1.0
        # from the first start
        self.attempt = 0
        self.replica_id = ""
        self.started_ns = 0
        self.resume_tokens = 0
        self.preempted = False
        self.paused = False
        self.lost = False
        self.failed_over = False
        self.unaware: list[Receiver] = []

    def is_run_by(self, replica_id: str, attempt: int) -> bool:
        """Whether a replica speaks of this task's last attempt: an earlier task of its id may have one elsewhere."""
        return self.attempt == attempt and self.replica_id == replica_id


def restored(kept: KeptTask, payload: bytes) -> LiveTask:
    """A task as an earlier scheduler left it: in line again, and its last attempt perhaps still running."""
    live = LiveTask(kept.task, payload, kept.admitted_ns)
    live.set_id = kept.told.set_id if kept.start is None else kept.start.set_id
    live.deadline_ns = kept.deadline_ns
    live.on_time_probability = kept.told.on_time_probability
    if kept.start is not None:
        live.attempt, live.started_ns = kept.attempt, kept.started_ns
        live.replica_id, live.resume_tokens = kept.start.replica_id, kept.start.resume_tokens
        live.preempted = kept.preemptions + kept.moves > 0
        live.lost = kept.attempt > kept.over_attempt or kept.attempt == kept.lost_attempt
        live.paused = not live.lost
        live.failed_over = kept.is_failover
    return live
