"""Settling a task's accounts at its end: quotas, session, fairness, and what is learned (ORCH-3075, 3077, 3099)."""

from typing import Literal

from msgspec.structs import replace

from contracts.api import FinishReason
from contracts.errors import ErrorInfo
from contracts.scheduling import AttemptEnded
from contracts.tasks import Outcome
from orchestrator.core.estimates import cost_micros
from orchestrator.core.records import TaskRecord, round_ms
from orchestrator.core.state import State


def end_unserved(state: State, record: TaskRecord, outcome: Outcome) -> None:
    """End a task that waits; what earlier attempts used stays charged, the rest of its reservation is freed."""
    used_tokens = record.work_of(record.resume_tokens)
    if used_tokens and record.task.decodes:
        used_tokens += record.prompt_tokens
    _settle(state, record, used_tokens, 0)
    if outcome.state == "failed":
        _learn_chance(record, False)
    state.finish(record, outcome)
    # What it stood before may be able to start where it was not: on another side, with less KV.
    state.want_dispatch(record.home)


def end_served(
    state: State, record: TaskRecord, event: AttemptEnded, outcome: Outcome, late_ns: int | None = None
) -> None:
    """End a task with its last attempt: charge what it cost, and learn from it.

    `late_ns` is how long the attempt worked where its end is told late; else it did until now.
    """
    home, now_ns = record.home, state.now_ns
    slot_ns = now_ns - record.started_ns if late_ns is None else late_ns
    read_tokens, made_tokens = event.tokens_in, event.tokens_out
    if not record.task.decodes:
        # Only a finished attempt tells what it read; of another one the results tell.
        read_tokens, made_tokens = read_tokens or record.work_of(made_tokens), 0
    used_tokens = read_tokens + made_tokens
    finished = outcome.state == "finished"
    home.correct(record, used_tokens)
    _settle(state, record, used_tokens, slot_ns, cost_micros(home, read_tokens, made_tokens))
    if finished:
        _learn_service(record, event, slot_ns)
    if outcome.state != "canceled":
        _learn_chance(record, finished and now_ns <= record.deadline_ns)
        if home.breakers and record.served_by is not None:
            first_ns = record.started_ns - record.admitted_ns + event.first_token_ns
            home.breakers.observe(record, record.served_by.pool_id, finished, first_ns, now_ns)
    if finished and record.session is not None and record.served_by is not None:
        kv_tokens = used_tokens if record.served_by.keeps_kv else 0
        state.sessions.turn_served(now_ns, record.session, record.served_by.replica_id, kv_tokens)
    state.finish(record, outcome, event.transcript_bytes)


def _settle(state: State, record: TaskRecord, used_tokens: int, slot_ns: int, cost_micros: int = 0) -> None:
    """Correct what was charged in advance to what was used."""
    now_ns = state.now_ns
    record.quota.settle(now_ns, record.asked_tokens, used_tokens)
    if record.session is not None:
        state.sessions.settle(now_ns, record.session, record.asked_tokens, used_tokens, slot_ns, cost_micros)


def learn_wait(record: TaskRecord, waited_ns: int) -> None:
    """A task started for the first time; was that when it had been told?"""
    seen = record.outlook
    if seen is not None and seen.raw_wait_ns:
        home, task = record.home, record.task
        home.bias_of(task.priority, task.deadline_ms).learn(seen.raw_wait_ns, waited_ns)
        home.middle_of(task.priority, seen.wait_ns).learn(seen.wait_ns, waited_ns)


def _learn_chance(record: TaskRecord, on_time: bool) -> None:
    """A task was on time or not; how sure had it been told to be?

    Those that started at once teach too: where every task that would wait is refused, they are all there is.
    """
    if record.outlook is not None:
        record.home.on_time.observe(record.outlook.sureness, on_time)


def _learn_service(record: TaskRecord, event: AttemptEnded, slot_ns: int) -> None:
    task = record.task
    # Of an engine that does not count, times are learnt over what was estimated; sizes are not: it would be an echo.
    tokens_in = event.tokens_in or record.prompt_tokens
    prompt_bytes = task.prompt_bytes if event.tokens_in else 0
    if not task.decodes:
        prefill_ns = event.first_token_ns + event.decode_ns
        record.home.predictor.prefilled(prompt_bytes, tokens_in, event.tokens_cached, prefill_ns, slot_ns)
        return
    record.home.predictor.served(
        task.tenant,
        task.workload,
        prompt_bytes,
        tokens_in,
        event.tokens_cached,
        event.tokens_out,
        task.max_tokens,
        event.first_token_ns,
        event.decode_ns,
        slot_ns,
        event.finish_reason == "length",
        task.expected_tokens,
    )


# ------------------------------------------------------------------------ how an attempt ended


def last_heard(record: TaskRecord) -> AttemptEnded:
    """The report of an attempt that gives none: what was last heard of it."""
    return AttemptEnded(
        record.task.task_id,
        record.attempt,
        "",
        "stopped",
        slot_free=False,
        tokens_out=record.delivered_tokens,
        digest=record.tokens_digest,
    )


def failure(record: TaskRecord, error: ErrorInfo | None) -> ErrorInfo:
    """The error to show for a failed attempt: its own or WORKER_RESET, with engine and pool filled in."""
    if error is None:
        error = ErrorInfo(code="WORKER_RESET", message="the engine ended the attempt without a result", retriable=True)
    pool_id = record.served_by.pool_id if record.served_by is not None else None
    return replace(error, engine=error.engine or record.task.engine, pool_id=error.pool_id or pool_id)


def outcome_of(
    event: AttemptEnded,
    state: Literal["finished", "failed", "canceled"],
    finish_reason: FinishReason | None = None,
    error: ErrorInfo | None = None,
) -> Outcome:
    """The outcome of a task that ends with this report of its last attempt."""
    return Outcome(
        state=state,
        tokens_in=event.tokens_in,
        tokens_out=event.tokens_out,
        tokens_cached=event.tokens_cached,
        first_token_ms=round_ms(event.first_token_ns) if event.tokens_out and event.first_token_ns else None,
        decode_ms=round_ms(event.decode_ns),
        finish_reason=finish_reason,
        stop_sequence=event.stop_sequence,
        error=error,
    )
