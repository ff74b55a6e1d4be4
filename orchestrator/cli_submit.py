"""`llorch submit`: one task from the command line, tokens as they come, then one line that sums up."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Console

from contracts.api import End, Metrics, Started, TaskRequest, Token
from contracts.errors import ErrorInfo, OrchError
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError, StreamBrokenError

#: Exit statuses of every command that talks to a server.
OK, FAILED, USAGE, CANNOT_CONNECT, INTERRUPTED = 0, 1, 2, 3, 130

#: How long Ctrl-C waits for the server to confirm the cancel.
CANCEL_MAX_S = 5

#: What the reader can do about an error, by code.
ADVICE = {
    "INVALID_PARAMS": "correct the request",
    "DEADLINE_UNMET": "allow more time with --deadline-ms, or submit when the queue is shorter",
    "UNAUTHENTICATED": "give a key: --key, LLORCH_API_KEY, or start `llorch run` in this folder",
    "FORBIDDEN": "check the key; `llorch run` makes a new development key at each start",
    "NOT_FOUND": "check the id; ended tasks are kept for a limited time only",
    "ADMISSION_REJECT": "the queue is full or a quota is used up: try again later",
    "QUEUE_FULL_DROP_LRU": "the task gave way to newer ones: submit it again",
    "POOL_UNREADY": "the engine is still loading: `llorch status` shows how far it is",
    "POOL_UNAVAILABLE": "no replica can serve this now: see `llorch status`",
    "DECODE_TIMEOUT": "the engine stalled and the task was stopped: submit it again",
    "WORKER_RESET": "the engine failed under the task: submit it again",
}


@dataclass
class Summary:
    """What the closing line tells. Times are on this machine's clock, in nanoseconds from the call.

    `on_time_probability` is the first that was told, `budgets` what the latest planning frame left the session.
    """

    began_ns: int
    started: Started | None = None
    on_time_probability: float | None = None
    budgets: str = ""
    preempted: bool = False
    first_token_ns: int | None = None
    end: End | None = None

    def note(self, metrics: Metrics) -> None:
        """Take in a planning frame (ORCH-3100)."""
        if self.on_time_probability is None:
            self.on_time_probability = metrics.on_time_probability
        self.budgets = _budgets(metrics) or self.budgets
        self.preempted = self.preempted or bool(metrics.preempted)

    def line(self, now_ns: int) -> str:
        """For people: tokens, times, and what it takes to repeat the task."""
        parts = [f"{_amount(self.end)} in {(now_ns - self.began_ns) / 1e9:.2f} s"]
        if self.first_token_ns is not None:
            parts.append(f"first token {(self.first_token_ns - self.began_ns) / 1e6:.0f} ms")
            decode_s = (now_ns - self.first_token_ns) / 1e9
            if self.end and self.end.tokens_out > 1 and decode_s > 0:
                parts.append(f"{(self.end.tokens_out - 1) / decode_s:.1f} tokens/s")
        if self.started:
            parts.append(f"queue position {self.started.queue_position}")
            parts.append(f"replica {self.started.replica_id}")
            parts.append(f"seed {self.started.seed}")
        if self.on_time_probability is not None:
            parts.append(f"{self.on_time_probability:.0%} sure to be on time")
        if self.preempted:
            parts.append("preempted on the way")
        if self.end:
            parts.append(f"ended by {self.end.finish_reason}")
        if self.budgets:
            parts.append(f"left to the session: {self.budgets}")
        return " · ".join(parts)


def _results(end: End) -> Sequence[object]:
    """What an embedding or a rerank gave, in the order of its answer."""
    return end.embeddings or end.ranks or ()


def _amount(end: End | None) -> str:
    """What was made: tokens, or results of so many tokens read."""
    if end is not None and _results(end):
        return f"{len(_results(end))} results of {end.tokens_in} tokens"
    return f"{end.tokens_out if end else 0} tokens"


def _budgets(metrics: Metrics) -> str:
    """The bounded budgets in words (ORCH-3099)."""
    left = []
    if metrics.tokens_budget_remaining is not None:
        left.append(f"{metrics.tokens_budget_remaining} tokens")
    if metrics.time_budget_remaining_ms is not None:
        left.append(f"{metrics.time_budget_remaining_ms / 1000:.1f} s")
    if metrics.cost_budget_remaining is not None:
        left.append(f"cost {metrics.cost_budget_remaining:.4f}")
    return ", ".join(left)


async def submit(url: str, key: str, request: TaskRequest, err: Console) -> int:
    """Stream one task to standard output; returns the exit status. Cancelled (Ctrl-C), it cancels the task."""
    task_id = str(request.task_id)
    async with Client(url, key) as client:
        try:
            await _show(client, request, err)
        except asyncio.CancelledError:
            await _cancel(client, task_id, err)
            raise
        except OrchError as error:
            show_error(err, error.info)
            return FAILED
        except CannotConnectError as error:
            show_no_server(err, url, error)
            return CANNOT_CONNECT
        except StreamBrokenError as error:
            err.print(f"The stream broke and could not be taken up again: {error}", markup=False)
            err.print(f"The task may still run: llorch status {task_id}", markup=False)
            return FAILED
    return OK


async def _show(client: Client, request: TaskRequest, err: Console) -> None:
    summary = Summary(time.monotonic_ns())
    async for event in client.run(request):
        if isinstance(event, Token):
            if summary.first_token_ns is None:
                summary.first_token_ns = time.monotonic_ns()
            sys.stdout.write(event.t)
            sys.stdout.flush()
        elif isinstance(event, Started):
            summary.started = event
        elif isinstance(event, Metrics):
            summary.note(event)
        elif isinstance(event, End):
            summary.end = event
    now_ns = time.monotonic_ns()
    results = _results(summary.end) if summary.end else ()
    sys.stdout.write("".join(f"{msgspec.json.encode(result).decode()}\n" for result in results) or "\n")
    sys.stdout.flush()
    err.print(summary.line(now_ns), style="dim", markup=False, highlight=False, soft_wrap=True)


async def _cancel(client: Client, task_id: str, err: Console) -> None:
    """Best effort within a bound: the reader pressed Ctrl-C and waits."""
    try:
        await asyncio.wait_for(client.cancel(task_id), CANCEL_MAX_S)
        err.print(f"\ncanceled {task_id}", markup=False)
    except (OrchError, CannotConnectError, TimeoutError) as error:
        err.print(f"\ncould not confirm the cancel of {task_id}: {error}", markup=False)


def show_error(err: Console, info: ErrorInfo) -> None:
    """A typed error in plain words, with what to do about it (ORCH-3025)."""
    err.print(f"{info.code}: {info.message}", style="red", markup=False, soft_wrap=True)
    advice = ADVICE.get(info.code)
    if advice:
        err.print(f"  {advice}", markup=False, soft_wrap=True)
    if info.earliest_deadline_ms:
        err.print(f"  would be accepted with --deadline-ms {info.earliest_deadline_ms}", markup=False)
    if info.retry_after_ms:
        err.print(f"  worth trying again in {info.retry_after_ms / 1000:.1f} s", markup=False)


def show_no_server(err: Console, url: str, error: Exception) -> None:
    err.print(f"Cannot reach {url}: {error}", style="red", markup=False, soft_wrap=True)
    err.print("  start it with `llorch run`, or name another with --url or LLORCH_URL", markup=False)
