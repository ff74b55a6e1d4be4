"""What the scheduler's shell keeps of a task from its submission to its end."""

from contracts.tasks import TaskInfo


class LiveTask:
    """A task and its payload, which the core never reads.

    `on_time_probability` is what was told at admission. `preempted`: an attempt was stopped for another
    task; `paused` until the next one starts. The first `resume_tokens` tokens of the running attempt are
    those of an earlier one.
    """

    __slots__ = (
        "attempt",
        "deadline_ns",
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
