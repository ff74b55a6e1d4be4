"""One run of one task on a replica, as the replica keeps it."""

import asyncio
import time

from contracts import scheduling as ev
from contracts.tasks import Outcome
from orchestrator.cluster.transcript import Transcript


class Attempt:
    """One run of one task on this replica."""

    __slots__ = ("ended", "first_ns", "last_ns", "number", "reported", "started_ns", "task", "task_id", "transcript")

    def __init__(self, task_id: str, number: int) -> None:
        self.task_id = task_id
        self.number = number
        self.transcript = Transcript()
        self.started_ns = time.monotonic_ns()
        self.first_ns = 0
        self.last_ns = 0
        self.reported = 0
        self.ended = False
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        return f"{self.task_id}/{self.number}"


def outcome_of(ended: ev.AttemptEnded) -> Outcome:
    """The outcome a finished attempt is; the scheduler's core derives the same from its report."""
    return Outcome(
        state="finished" if ended.result == "finished" else "failed",
        tokens_in=ended.tokens_in,
        tokens_out=ended.tokens_out,
        tokens_cached=ended.tokens_cached,
        decode_ms=(ended.decode_ns + 500_000) // 1_000_000,
        finish_reason=ended.finish_reason,
        stop_sequence=ended.stop_sequence,
        error=ended.error,
    )
