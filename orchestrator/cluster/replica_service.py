"""A replica's shell: the attempts on one engine, and the token streams of their subscribers.

It runs what the scheduler starts and reports the ends. An attempt ends exactly once: whichever of the engine's end
and the scheduler's stop comes first here, stands (ORCH-3026). Attempts that an engine takes along
when it dies do not end here: the scheduler is told how far they were, and takes them up elsewhere (ORCH-3009).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Final

import msgspec
import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.engine import EngineAdapter, EngineError, EngineSpec, Finish, GenerateRequest
from contracts.errors import ErrorInfo
from contracts.tasks import RESULT_BYTES_MAX
from orchestrator.cluster.attempt import Attempt, Key, Result, outcome_of
from orchestrator.cluster.attempt_errors import attempt_error, other_tokens, too_large
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.early import EarlySubscriptions
from orchestrator.cluster.ended import EndedAttempts
from orchestrator.cluster.measuring import Measurements
from orchestrator.cluster.transcript import ResumeMismatchError, TokenFlow

log = structlog.get_logger(__name__)

PROGRESS_INTERVAL_S: Final = 0.25

_REQUEST: Final = msgspec.msgpack.Decoder(GenerateRequest)

#: Sends a message to the scheduler.
Report = Callable[[msgspec.Struct], None]


class ReplicaService:
    """Runs attempts on one ready engine. Made anew for every launch of the engine's process.

    `flush` has what was reported leave before anything else is sent; false: it cannot. `broken` is set when the engine
    has to be ended.
    """

    def __init__(
        self,
        spec: EngineSpec,
        adapter: EngineAdapter,
        report: Report,
        flow: TokenFlow,
        flush: Callable[[], bool] = lambda: True,
    ) -> None:
        self._spec = spec
        self._adapter = adapter
        self._report = report
        self._flush_reports = flush
        self._flow = flow
        self._running: dict[Key, Attempt] = {}
        self._releasing: dict[Key, Attempt] = {}
        self._ended = EndedAttempts()
        self._early = EarlySubscriptions()
        self._tasks: set[asyncio.Task[None]] = set()
        self._measurements = Measurements(adapter, report, self._spawn)
        self.measure = self._measurements.start
        self.drop_measurements = self._measurements.stop
        self.broken = asyncio.Event()

    # --------------------------------------------------------------------- attempts

    def start(self, message: wire.StartAttempt) -> None:
        """Run an attempt."""
        attempt = Attempt(message.task_id, message.attempt, message.resume_tokens, message.resume_digest)
        if attempt.key in self._running:
            return
        self._running[attempt.key] = attempt
        attempt.task = self._spawn(self._run(attempt, message.payload))
        for connection, early in self._early.take(*attempt.key):
            self.subscribe(connection, early)

    async def _run(self, attempt: Attempt, payload: bytes) -> None:
        try:
            request = _REQUEST.decode(payload)
            finish = await self._generate(attempt, request)
        except EngineError as failed:
            if failed.info.code != "WORKER_RESET":
                self._end(attempt, "failed", error=failed.info)
                await self._release(attempt, check=True)
            # The stream of an engine that dies breaks first: that is a loss, and no end of the attempt.
            elif await self._let_go(attempt, check=True):
                self._end(attempt, "failed", error=failed.info)
                self._released(attempt)
        except ResumeMismatchError:
            self._mismatched(attempt)
            await self._release(attempt)
        except Exception as unexpected:  # a bug in an adapter must not lose the task
            log.exception("attempt.crashed", task_id=attempt.task_id)
            error = attempt_error(self._spec, "INTERNAL", f"the engine adapter failed: {type(unexpected).__name__}")
            self._end(attempt, "failed", error=error)
            await self._release(attempt, check=True)
        else:
            self._end(attempt, "finished", finish=finish)

    async def _generate(self, attempt: Attempt, request: GenerateRequest) -> Finish:
        transcript, result_bytes = attempt.transcript, 0
        async for item in self._adapter.generate(attempt.name, request):
            if isinstance(item, Finish):
                transcript.complete()
                return item
            if request.workload != "completion":
                result_bytes += len(item.text)
                if result_bytes > RESULT_BYTES_MAX:
                    raise EngineError(too_large(self._spec, len(request.inputs or ())))
            attempt.last_ns = time.monotonic_ns()
            if not attempt.first_ns:
                attempt.first_ns = attempt.last_ns
            transcript.append(item.text, item.tokens)
            if not attempt.reported:
                # Before any is sent: the scheduler must never take for undelivered what was delivered.
                self._tell_progress(attempt)
                if not self._flush_reports():
                    self._flow.hold_back(transcript)
            self._flow.touch(transcript)
        raise EngineError(attempt_error(self._spec, "WORKER_RESET", "the engine's stream stopped without an end"))

    def _mismatched(self, attempt: Attempt) -> None:
        """The same task made other tokens: an alarm, never silently other text (ORCH-3086, ORCH-3045)."""
        if attempt.ended:
            return
        log.error("attempt.determinism_mismatch", job_id=attempt.task_id, replica_id=self._spec.replica_id)
        self._report(wire.ResumeMismatch(attempt.task_id, attempt.number, self._spec.replica_id))
        self._end(attempt, "failed", error=other_tokens(self._spec))

    def stop(self, message: wire.StopAttempt) -> None:
        """Fence the attempt at once; the slot is reported free when the engine confirms."""
        attempt = self._running.get((message.task_id, message.attempt))
        if attempt is None or attempt.task is None:
            return  # it ended first; that report is under way
        attempt.task.cancel()
        self._end(attempt, "stopped")
        self._spawn(self._release(attempt))

    def _end(
        self, attempt: Attempt, result: Result, *, finish: Finish | None = None, error: ErrorInfo | None = None
    ) -> None:
        """Report the end, once: the transcript to the scheduler, the outcome to subscribers."""
        if attempt.ended:
            return
        attempt.ended = True
        del self._running[attempt.key]
        if finish is None:
            self._releasing[attempt.key] = attempt
        transcript = attempt.transcript
        tokens = transcript.encoded()
        ended = attempt.end(self._spec.replica_id, result, len(tokens), finish, error)
        if not transcript.held:  # else what the attempt before it made is the better transcript
            self._report(wire.AttemptTranscript(*attempt.key, tokens))
        self._report(ended)
        transcript.result = result
        transcript.over = outcome_of(ended)
        self._flow.flush([transcript])
        self._ended.add(attempt.key, transcript, len(tokens))

    async def _release(self, attempt: Attempt, *, check: bool = False) -> None:
        """Wait until the engine let go of the slot of an ended attempt, and say so."""
        if await self._let_go(attempt, check=check):
            self._released(attempt)

    def _released(self, attempt: Attempt) -> None:
        if self._releasing.pop(attempt.key, None) is not None:
            self._report(ev.SlotReleased(*attempt.key, self._spec.replica_id))

    async def _let_go(self, attempt: Attempt, *, check: bool) -> bool:
        """Have the engine stop what it still does for an attempt; an engine that does not is broken.

        `check` asks for its health too: the slot of a dead engine must not be offered again.
        """
        try:
            await self._adapter.cancel(attempt.name)
            if not check or await self._adapter.healthy():
                return True
        except EngineError as stuck:
            log.error("engine.stuck", task_id=attempt.task_id, error=stuck.info.message)
        self.broken.set()
        return False

    def occupied(self) -> tuple[ev.RunningAttempt, ...]:
        """What takes a slot: attempts that run, and ended ones that the engine has not let go of."""
        running = [
            ev.RunningAttempt(*attempt.key, len(attempt.transcript.texts), attempt.transcript.digest(), attempt.ended)
            for attempt in (*self._running.values(), *self._releasing.values())
        ]
        return tuple(running)

    # -------------------------------------------------------------------- subscribers

    def subscribe(self, connection: Connection, message: wire.Subscribe) -> None:
        """Send an attempt's tokens to an ingress, from where it asks on."""
        key = (message.task_id, message.attempt)
        attempt = self._running.get(key)
        transcript = attempt.transcript if attempt is not None else self._ended.get(key)
        if transcript is not None:
            self._flow.subscribe(transcript, connection, message.sid, message.first, message.credit)
        elif self._ended.is_gone(key) or not self._early.wait(connection, message):
            connection.send(wire.StreamOver(message.sid, "unknown"))

    # ----------------------------------------------------------------------- running

    async def report_progress(self) -> None:
        """Tell the scheduler how far attempts are, until canceled; feeds its idle watchdog."""
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            for attempt in self._running.values():
                self._tell_progress(attempt)

    def _tell_progress(self, attempt: Attempt) -> None:
        count = len(attempt.transcript.texts)
        if count > attempt.reported:
            attempt.reported = count
            self._report(ev.TokensProgressed(*attempt.key, count, attempt.transcript.digest()))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def last_words(self) -> None:
        """The engine is gone: tell how far each attempt came, before the scheduler hears of the loss."""
        for attempt in self._running.values():
            self._tell_progress(attempt)
            if not attempt.transcript.held:
                self._report(wire.AttemptTranscript(*attempt.key, attempt.transcript.encoded()))

    def lose(self) -> None:
        """Give up what runs: its streams are told that nothing follows from here, and the scheduler knows why."""
        running, self._running = self._running, {}
        for attempt in running.values():
            attempt.ended = True
            attempt.transcript.give_up()
            self._flow.flush([attempt.transcript])

    async def close(self) -> None:
        """Give up what runs and wait for the loose ends."""
        self.lose()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
