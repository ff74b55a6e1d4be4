"""The core's commands, carried out: each becomes messages, which leave once the step is durable."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from contracts import messages as wire
from contracts import pools
from contracts import scheduling as ev
from contracts.policies import SchedulerConfig
from contracts.tasks import Outcome
from orchestrator.cluster.decisions import DecisionLog
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.news import News, Post
from orchestrator.cluster.planning import NS_PER_MS, admission_of, paused_metrics
from orchestrator.cluster.pool_dialogue import PoolDialogue
from orchestrator.cluster.queries import NO_SUCH_SESSION, NO_SUCH_TASK
from orchestrator.cluster.switchboard import Switchboard
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)


class Commands:
    """Carries out one command after the other; `wake` is called at the time that the core asked for."""

    def __init__(
        self,
        config: SchedulerConfig,
        core: Scheduler,
        clock: Callable[[], int],
        live: dict[str, LiveTask],
        transcripts: dict[str, bytes],
        switchboard: Switchboard,
        post: Post,
        news: News,
        dialogue: PoolDialogue,
        telemetry: Telemetry,
        wake: Callable[[], None],
    ) -> None:
        self._core = core
        self._clock = clock
        self._live = live
        self._transcripts = transcripts
        self._switchboard = switchboard
        self._replicas = switchboard.replicas
        self._post = post
        self._news = news
        self._pools = dialogue
        self._telemetry = telemetry
        self._decisions = DecisionLog(config)
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None

    def perform(self, now_ns: int, command: ev.AnyCommand) -> None:
        """Carry out a command of the step at `now_ns`."""
        self._telemetry.decided(now_ns, command)
        _PERFORM[type(command)](self, now_ns, command)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------ submissions

    def _admit(self, now_ns: int, command: ev.Admit) -> None:
        asked = self._switchboard.answered(command.submission)
        live = self._live[command.task_id]
        task = live.task
        if not command.replayed:
            live.set_id = command.set_id
            live.on_time_probability = command.on_time_probability
            live.deadline_ns = now_ns + task.deadline_ms * NS_PER_MS
            self._decisions.note(command, live)
        self._post(asked.connection, wire.Admitted(asked.req, admission_of(command)), task.task_id)
        if asked.watch and command.replayed:
            self._news.watch(asked.connection, task.task_id, task.tenant)
        elif asked.watch:  # whatever becomes of a new task comes behind this command
            self._switchboard.watch(task.task_id, asked.connection)
        if command.replayed and self._core.outcome(task.task_id, task.tenant) is not None:
            del self._live[task.task_id]  # sent again after its end: nothing will run it

    def _reject(self, _now_ns: int, command: ev.Reject) -> None:
        asked = self._switchboard.answered(command.submission)
        task_id = command.task_id
        self._post(asked.connection, wire.Failed(asked.req, command.error), task_id)
        first = self._live.get(task_id)
        if first is None:
            return
        # A refused resubmission (a conflict) leaves the task that holds the id alone, unless that has ended.
        if self._core.task(task_id, first.task.tenant) is None:
            del self._live[task_id]
            # Whoever attached while it was measured.
            self._news.ended(task_id, Outcome("failed", error=command.error))
        elif self._core.outcome(task_id, first.task.tenant) is not None:
            del self._live[task_id]

    def _measure(self, _now_ns: int, command: ev.MeasurePrompt) -> None:
        live = self._live[command.task_id]
        measure = wire.Measure(command.task_id, command.measurement, live.payload, live.task.ctx)
        self._post(self._replicas[command.replica_id], measure, command.task_id)

    # --------------------------------------------------------------------- attempts

    def _start(self, now_ns: int, command: ev.Start) -> None:
        task_id = command.task_id
        live = self._live[task_id]
        self._decisions.note(command, live)
        live.attempt, live.started_ns, live.replica_id = command.attempt, now_ns, command.replica_id
        live.set_id = command.set_id  # a restart may have brought a task to another one
        live.resume_tokens, live.paused = command.resume_tokens, False
        live.failed_over, live.lost = live.lost, False
        order = wire.StartAttempt(task_id, command.attempt, live.payload, command.resume_tokens, command.resume_digest)
        self._post(self._replicas[command.replica_id], order, task_id)
        self._news.started(live)

    def _stop(self, _now_ns: int, command: ev.Stop) -> None:
        live = self._live.get(command.task_id)
        if live is not None:
            self._decisions.note(command, live)
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            stop = wire.StopAttempt(command.task_id, command.attempt, command.reason)
            self._post(replica, stop, command.task_id)

    def _pause(self, _now_ns: int, command: ev.Pause) -> None:
        task_id = command.task_id
        live = self._live[task_id]
        self._decisions.note(command, live)
        if command.cause == "lost":  # told when it is made good, if the attempt does not turn out to run all the same
            live.lost = True
            return
        live.preempted = live.paused = True
        live.lost = False
        paused = wire.TaskPaused(task_id, command.attempt, paused_metrics(command))
        self._news.tell(self._switchboard.watchers(task_id), task_id, paused)

    def _finish(self, _now_ns: int, command: ev.Finish) -> None:
        live = self._live.get(command.task_id)
        if live is not None:
            self._decisions.note(command, live)
        self._news.ended(command.task_id, command.outcome)
        self._live.pop(command.task_id, None)

    # ---------------------------------------------------------------------- answers

    def _answer_cancel(self, _now_ns: int, command: ev.AnswerCancel) -> None:
        asked = self._switchboard.answered(command.request)
        answer = wire.Done(asked.req) if command.found else wire.Failed(asked.req, NO_SUCH_TASK)
        # Behind the task's end, which has to be durable first: a cancel that was confirmed must stand (ORCH-3026).
        self._post(asked.connection, answer, asked.canceling)

    def _answer_close(self, _now_ns: int, command: ev.AnswerClose) -> None:
        asked = self._switchboard.answered(command.request)
        answer = wire.Done(asked.req) if command.found else wire.Failed(asked.req, NO_SUCH_SESSION)
        self._post(asked.connection, answer, "")

    def _answer_shutdown(self, _now_ns: int, command: ev.AnswerShutdown) -> None:
        self._post(self._switchboard.answered(command.request).connection, command, "")

    # ------------------------------------------------------------------- everything else

    def _forget(self, _now_ns: int, command: ev.Forget) -> None:
        self._live.pop(command.task_id, None)
        self._transcripts.pop(command.task_id, None)

    def _drop_transcript(self, _now_ns: int, command: ev.DropTranscript) -> None:
        self._transcripts.pop(command.task_id, None)

    def _refuse(self, _now_ns: int, command: ev.RefuseReplica) -> None:
        log.error("replica.refused", replica_id=command.replica_id, reason=command.reason)
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            self._post(replica, wire.Refused(command.reason), "")

    def _note_pool(self, _now_ns: int, command: pools.NotePool) -> None:
        self._telemetry.learn(self._core.set_policies())
        self._pools.note(command)

    def _order(self, _now_ns: int, command: pools.OrderReplica | pools.RetireReplica) -> None:
        self._pools.order(command)

    def _launch(self, _now_ns: int, command: pools.LaunchEngine) -> None:
        self._pools.launch(command)

    def _answer_control(self, _now_ns: int, command: pools.AnswerControl) -> None:
        self._pools.answer(command)

    def _set_timer(self, _now_ns: int, command: ev.SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, command.at_ns - self._clock()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)


_PERFORM: Final[dict[type, Callable[[Commands, int, Any], None]]] = {
    ev.Admit: Commands._admit,
    ev.Reject: Commands._reject,
    ev.MeasurePrompt: Commands._measure,
    ev.Start: Commands._start,
    ev.Stop: Commands._stop,
    ev.Pause: Commands._pause,
    ev.Finish: Commands._finish,
    ev.AnswerCancel: Commands._answer_cancel,
    ev.AnswerClose: Commands._answer_close,
    ev.AnswerShutdown: Commands._answer_shutdown,
    ev.Forget: Commands._forget,
    ev.DropTranscript: Commands._drop_transcript,
    ev.RefuseReplica: Commands._refuse,
    ev.SetTimer: Commands._set_timer,
    pools.OrderReplica: Commands._order,
    pools.RetireReplica: Commands._order,
    pools.LaunchEngine: Commands._launch,
    pools.AnswerControl: Commands._answer_control,
    pools.NotePool: Commands._note_pool,
}
