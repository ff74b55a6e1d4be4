"""The first and the last event of a stream, made of what scheduler and replica tell."""

from typing import Final

from contracts.api import End, Started
from contracts.errors import ErrorInfo
from contracts.messages import TaskStarted
from contracts.tasks import Outcome, TaskInfo

TRANSCRIPT_GONE: Final = ErrorInfo(
    "NOT_FOUND",
    "the task has ended and what it made is no longer kept; submit it again under a new task_id",
    retriable=False,
)


def terminal_event(outcome: Outcome, task: TaskInfo) -> End | ErrorInfo:
    """How the task ended. The tokens of an embedding or a rerank are its results: none was generated."""
    if outcome.error is not None:
        return outcome.error
    return End(
        tokens_out=outcome.tokens_out if task.decodes else 0,
        decode_ms=outcome.decode_ms if task.decodes else 0,
        finish_reason=outcome.finish_reason or "stop",
        tokens_in=outcome.tokens_in,
        tokens_cached=outcome.tokens_cached,
        stop_sequence=outcome.stop_sequence,
    )


def started_event(started: TaskStarted, task: TaskInfo) -> Started:
    """Who runs the task, and with what."""
    replica = started.replica
    return Started(
        queue_position=started.queue_position,
        predicted_start_ms=started.predicted_start_ms,
        engine=replica.engine,
        engine_version=replica.engine_version,
        model_digest=replica.model_digest,
        pool_id=replica.pool_id,
        replica_id=replica.replica_id,
        accelerator=replica.accelerator,
        seed=task.seed,
        attempt=started.attempt,
        sampler_profile_version=replica.sampler_profile_version,
        queue_time_ms=started.queue_time_ms,
        kv_warmth=started.kv_warmth,
        labels=task.labels,
        determinism="strict" if started.determinism == "strict" else "best_effort",
    )
