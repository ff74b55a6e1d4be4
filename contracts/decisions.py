"""The decisions about a task that outlive the scheduler: how it was admitted, how its last attempt started, and why
that was to stop.
"""

from typing import Literal

from contracts.base import Command
from contracts.tasks import Budgets


class Admit(Command, frozen=True, gc=False):
    """Answer a submission: accepted. `replayed` marks the same task submitted again.

    `on_time_probability` is the chance that the task ends before its deadline, 0 to 1. `accelerator` is what the
    set's pools run on.
    """

    submission: int
    task_id: str
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int
    replayed: bool = False
    on_time_probability: float = 1.0
    budgets: Budgets | None = None
    accelerator: str = "gpu"

    @property
    def why(self) -> str:
        if self.replayed:
            return "the same request was admitted before"
        if not self.predicted_start_ms:
            return "a slot is free"
        return (
            f"{self.queue_position} ahead, starts in about {self.predicted_start_ms} ms,"
            f" {self.on_time_probability:.0%} sure to be on time"
        )


Placement = Literal["least-loaded", "affinity", "handed-over"]

#: first_token: none came in time; stale: an attempt that was given up goes on; diverged: it makes other tokens than
#: the one before it.
StopReason = Literal["cancel", "wall", "idle", "first_token", "preempt", "drain", "stale", "diverged"]


class Start(Command, frozen=True, gc=False):
    """Run an attempt of a task on a replica that has a free slot for it.

    `resume_tokens` tokens with the rolling digest `resume_digest` were made by an attempt that was stopped or
    lost: the replica makes them again, compares, and goes on (ORCH-3086). `warm`: the replica
    should still hold the session's KV. `slack_ms` is what is left until the deadline; `busy` of `slots`
    slots were taken. `handed-over`: the slot was preempted for this task.
    """

    task_id: str
    attempt: int
    replica_id: str
    resume_tokens: int = 0
    resume_digest: int = 0
    warm: bool = False
    placement: Placement = "least-loaded"
    waited_ms: int = 0
    slack_ms: int = 0
    busy: int = 0
    slots: int = 0

    @property
    def why(self) -> str:
        return (
            f"{self.placement}: {self.replica_id} with {self.busy} of {self.slots} slots taken"
            f"{', session KV warm' if self.warm else ''};"
            f" waited {self.waited_ms} ms, {self.slack_ms} ms to the deadline"
        )
