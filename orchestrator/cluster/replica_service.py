"""A replica's shell: one engine process, its attempts, and the token streams of its subscribers.

It brings the engine up and proves it with generated tokens before it says Ready (ORCH-3010),
runs the attempts that the scheduler starts, and reports their ends. An attempt ends exactly once:
whichever of the engine's end and the scheduler's stop comes first here, stands (ORCH-3026).
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
from contracts.errors import ErrorCode, ErrorInfo
from contracts.tasks import RESULT_BYTES_MAX
from orchestrator.cluster.attempt import Attempt, Result, outcome_of
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.ended import EndedAttempts
from orchestrator.cluster.measuring import Measurements
from orchestrator.cluster.transcript import ResumeMismatchError, TokenFlow, Transcript

log = structlog.get_logger(__name__)

PROGRESS_INTERVAL_S: Final = 0.25
#: Subscriptions that may wait for their attempt's start, and for how long, before they are told
#: "unknown": the scheduler tells ingress and replica at the same time, and the ingress may be faster.
EARLY_MAX: Final = 1024
EARLY_WAIT_S: Final = 2.0

_REQUEST: Final = msgspec.msgpack.Decoder(GenerateRequest)


#: Sends a message to the scheduler; dropped while there is none (it starts from nothing then).
Report = Callable[[msgspec.Struct], None]


class ReplicaService:
    """Runs attempts on one ready engine. Made anew for every launch of the engine's process."""

    def __init__(self, spec: EngineSpec, adapter: EngineAdapter, report: Report, flow: TokenFlow) -> None:
        self._spec = spec
        self._adapter = adapter
        self._report = report
        self._flow = flow
        self._running: dict[str, Attempt] = {}
        self._ended = EndedAttempts()
        self._early: dict[tuple[Connection, int], wire.Subscribe] = {}
        self._dirty: dict[Transcript, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._measurements = Measurements(adapter, report, self._spawn)
        self.broken = asyncio.Event()

    # --------------------------------------------------------------------- attempts

    def start(self, message: wire.StartAttempt) -> None:
        attempt = Attempt(message.task_id, message.attempt, message.resume_tokens, message.resume_digest)
        self._running[message.task_id] = attempt
        attempt.task = self._spawn(self._run(attempt, message.payload))
        for key, early in list(self._early.items()):
            if early.task_id == message.task_id and early.attempt == message.attempt:
                del self._early[key]
                self.subscribe(key[0], early)

    async def _run(self, attempt: Attempt, payload: bytes) -> None:
        try:
            request = _REQUEST.decode(payload)
            finish = await self._generate(attempt, request)
        except EngineError as failed:
            self._end(attempt, "failed", error=failed.info)
            await self._release(attempt, check=True)
        except ResumeMismatchError:
            self._mismatched(attempt)
            await self._release(attempt)
        except Exception as unexpected:  # a bug in an adapter must not lose the task
            log.exception("attempt.crashed", task_id=attempt.task_id)
            self._end(attempt, "failed", error=self._error("INTERNAL", f"the engine adapter failed: {unexpected!r}"))
            await self._release(attempt, check=True)
        else:
            self._end(attempt, "finished", finish=finish)

    async def _generate(self, attempt: Attempt, request: GenerateRequest) -> Finish:
        transcript, result_bytes = attempt.transcript, 0
        async for item in self._adapter.generate(attempt.key, request):
            if isinstance(item, Finish):
                transcript.complete()
                return item
            if request.workload != "completion":
                result_bytes += len(item.text)
                if result_bytes > RESULT_BYTES_MAX:
                    raise EngineError(self._too_large(request))
            attempt.last_ns = time.monotonic_ns()
            if not attempt.first_ns:
                attempt.first_ns = attempt.last_ns
            transcript.append(item.text, item.tokens)
            self._touch(transcript)
        raise EngineError(self._error("WORKER_RESET", "the engine's stream stopped without an end"))

    def _mismatched(self, attempt: Attempt) -> None:
        """The same task made other tokens: an alarm, never silently other text (ORCH-3086, ORCH-3045)."""
        if attempt.ended:
            return
        log.error("attempt.determinism_mismatch", job_id=attempt.task_id, replica_id=self._spec.replica_id)
        self._report(wire.ResumeMismatch(attempt.task_id, attempt.number, self._spec.replica_id))
        why = (
            "determinism: the attempt that took up this preempted task made other tokens than the one before it;"
            " none of them was sent. Submit the task again under a new task_id"
        )
        self._end(attempt, "failed", error=msgspec.structs.replace(self._error("WORKER_RESET", why), retriable=False))

    def _touch(self, transcript: Transcript) -> None:
        """Have new tokens sent at the end of this turn, together with those of other attempts."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty[transcript] = None

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        self._flow.flush(dirty)

    def stop(self, message: wire.StopAttempt) -> None:
        """Fence the attempt at once; the slot is reported free when the engine confirms."""
        attempt = self._running.get(message.task_id)
        if attempt is None or attempt.number != message.attempt:
            return  # it ended first; that report is under way
        assert attempt.task is not None
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
        self._running.pop(attempt.task_id, None)
        transcript = attempt.transcript
        tokens = transcript.encoded()
        ended = attempt.end(self._spec.replica_id, result, len(tokens), finish, error)
        if not transcript.held:  # else what the attempt before it made is the better transcript
            self._report(wire.AttemptTranscript(attempt.task_id, attempt.number, tokens))
        self._report(ended)
        transcript.result = result
        transcript.over = outcome_of(ended)
        self._flow.flush([transcript])
        self._ended.add((attempt.task_id, attempt.number), transcript, len(tokens))

    async def _release(self, attempt: Attempt, *, check: bool = False) -> None:
        """Wait until the engine let go of the slot; an engine that does not is broken.

        `check` asks for its health too: the slot of a dead engine must not be offered again.
        """
        try:
            await self._adapter.cancel(attempt.key)
        except EngineError as stuck:
            log.error("engine.stuck", task_id=attempt.task_id, error=stuck.info.message)
            self.broken.set()
            return
        if check and not await self._adapter.healthy():
            self.broken.set()
        else:
            self._report(ev.SlotReleased(attempt.task_id, attempt.number, self._spec.replica_id))

    def _error(self, code: ErrorCode, message: str) -> ErrorInfo:
        return ErrorInfo(code, message, engine=self._spec.engine, pool_id=self._spec.pool_id, retriable=True)

    def _too_large(self, request: GenerateRequest) -> ErrorInfo:
        message = (
            f"the results of {len(request.inputs or ())} inputs are over the limit of {RESULT_BYTES_MAX} bytes;"
            " send fewer inputs in a task"
        )
        return msgspec.structs.replace(self._error("INVALID_PARAMS", message), retriable=False)

    # --------------------------------------------------------------------- measuring

    def measure(self, message: wire.Measure) -> None:
        self._measurements.start(message)

    # -------------------------------------------------------------------- subscribers

    def subscribe(self, connection: Connection, message: wire.Subscribe) -> None:
        key = (message.task_id, message.attempt)
        attempt = self._running.get(message.task_id)
        if attempt is not None and attempt.number == message.attempt:
            transcript: Transcript | None = attempt.transcript
        else:
            transcript = self._ended.get(key)
        if transcript is not None and transcript.reaches(message.first):
            self._flow.subscribe(transcript, connection, message.sid, message.first, message.credit)
        elif transcript is None and not self._ended.is_gone(key) and len(self._early) < EARLY_MAX:
            self._early[connection, message.sid] = message
            asyncio.get_running_loop().call_later(EARLY_WAIT_S, self._give_up, connection, message.sid)
        else:
            connection.send(wire.StreamOver(message.sid, "unknown"))

    def _give_up(self, connection: Connection, sid: int) -> None:
        if self._early.pop((connection, sid), None) is not None:
            connection.send(wire.StreamOver(sid, "unknown"))

    # ----------------------------------------------------------------------- running

    async def report_progress(self) -> None:
        """Tell the scheduler how far attempts are, until canceled; feeds its idle watchdog."""
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            for attempt in self._running.values():
                count = len(attempt.transcript.texts)
                if count > attempt.reported:
                    attempt.reported = count
                    digest = attempt.transcript.digest()
                    self._report(ev.TokensProgressed(attempt.task_id, attempt.number, count, digest))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fail(self, why: str) -> list[str]:
        """Fail what runs: the engine or the scheduler is gone. Returns the keys of what the engine may still run."""
        running = list(self._running.values())
        for attempt in running:
            self._end(attempt, "failed", error=self._error("WORKER_RESET", why))
        return [attempt.key for attempt in running]

    async def abandon(self, why: str) -> None:
        """Fail what runs and wait for the loose ends."""
        keys = self.fail(why)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        freed = await asyncio.gather(*(self._adapter.cancel(key) for key in keys), return_exceptions=True)
        if any(isinstance(stuck, EngineError) for stuck in freed):
            self.broken.set()
