"""One run of one task on a replica, as the replica keeps it."""

import asyncio
import time
from typing import Literal

from contracts import scheduling as ev
from contracts.engine import Finish
from contracts.errors import ErrorInfo
from contracts.tasks import Outcome
from orchestrator.cluster.transcript import Transcript

Result = Literal["finished", "stopped", "failed"]
#: Task and number of an attempt.
Key = tuple[str, int]


class Attempt:
    """One run of one task on this replica."""

    __slots__ = ("ended", "first_ns", "last_ns", "number", "reported", "started_ns", "task", "task_id", "transcript")

    def __init__(self, task_id: str, number: int, resume_tokens: int = 0, resume_digest: int = 0) -> None:
        self.task_id = task_id
        self.number = number
        self.transcript = Transcript(resume_tokens, resume_digest)
        self.started_ns = time.monotonic_ns()
        self.first_ns = 0
        self.last_ns = 0
        self.reported = 0
        self.ended = False
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        return self.task_id, self.number

    @property
    def name(self) -> str:
        """What the engine's adapter knows it by."""
        return f"{self.task_id}/{self.number}"

    def end(
        self, replica_id: str, result: Result, transcript_bytes: int, finish: Finish | None, error: ErrorInfo | None
    ) -> ev.AttemptEnded:
        """The report of its end."""
        return ev.AttemptEnded(
            task_id=self.task_id,
            attempt=self.number,
            replica_id=replica_id,
            result=result,
            slot_free=finish is not None,
            tokens_in=finish.tokens_in if finish else 0,
            tokens_out=len(self.transcript.texts),
            tokens_cached=finish.tokens_cached if finish else 0,
            first_token_ns=self.first_ns - self.started_ns if self.first_ns else 0,
            decode_ns=self.last_ns - self.first_ns,
            transcript_bytes=transcript_bytes,
            finish_reason=finish.finish_reason if finish else None,
            stop_sequence=finish.stop_sequence if finish else None,
            error=error,
            digest=self.transcript.digest(),
        )


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
