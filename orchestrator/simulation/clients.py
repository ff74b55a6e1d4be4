"""The clients' side of the world: submits, hears answers, tries again, cancels, and keeps the books.

Every promise that the scheduler's contract makes to clients is checked as it is heard: a submission is
answered once, and what was accepted is not refused. `watchers` see to what follows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from contracts import scheduling as ev
from contracts.errors import HTTP_STATUS
from orchestrator.core import refusals
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER, Job
from orchestrator.simulation.ledger import Ledger
from orchestrator.simulation.watchers import Watchers

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
TOO_MANY: Final = 429


class Clients:
    """All clients and the tasks that have not ended.

    `deadline_override` gives single tasks another `deadline_ms` than their client's, for what-if questions.
    """

    def __init__(
        self, world: "World", ledger: Ledger, *, tasks_max: int, deadline_override: Mapping[str, int] | None = None
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.ledger = ledger
        self.watchers = Watchers(world, self)
        self.watched = ""
        self.arrived = 0
        self._world = world
        self._tasks_left = tasks_max
        self._override = dict(deadline_override or {})
        #: What waits for an answer, by request.
        self.asked: dict[int, Job] = {}
        self.cancels: dict[int, Job] = {}
        self.closes: dict[int, tuple[str, str]] = {}
        #: Tasks whose submission had no answer when the scheduler died: they may have been admitted, or have ended.
        self.unanswered: set[str] = set()
        self._numbers = 0
        self._draining = False

    @property
    def open(self) -> int:
        """Tasks that arrived and have not ended."""
        return len(self.jobs)

    # ------------------------------------------------------------------ asking

    def arrive(self, job: Job) -> None:
        """A client has a new task and submits it."""
        self.jobs[job.task_id] = job
        self.arrived += 1
        self._tasks_left -= 1
        if not self._tasks_left:
            self._world.end_arrivals()
        if self._override and job.task_id in self._override:
            job.info = msgspec.structs.replace(job.info, deadline_ms=self._override[job.task_id])
        self._submit(job)

    def _submit(self, job: Job) -> None:
        job.tries += 1
        self.ask(job)

    def ask(self, job: Job) -> None:
        """Send a task to the scheduler, as it is; an answer follows."""
        self._numbers += 1
        self.asked[self._numbers] = job
        self._world.tell(ev.TaskSubmitted(self._numbers, job.info))

    def _submit_again(self, job: Job) -> None:
        """The same task after a refusal, with what is left of the client's deadline."""
        if job.task_id not in self._override:
            left_ms = max(1, (job.deadline_ns - self._world.now_ns) // NS_PER_MS)
            job.info = msgspec.structs.replace(job.info, deadline_ms=left_ms)
        self._submit(job)

    def _resend(self, job: Job) -> None:
        """A client that did not see its answer sends the very same task once more."""
        if self.jobs.get(job.task_id) is job:
            self.ask(job)

    def cancel(self, job: Job) -> None:
        """A client gives a task up."""
        if self.jobs.get(job.task_id) is job:
            self._numbers += 1
            self.cancels[self._numbers] = job
            self._world.tell(ev.CancelRequested(self._numbers, job.task_id, job.info.tenant))

    def close_session(self, session_id: str, tenant: str) -> None:
        """A client ends a session in so many words."""
        self._numbers += 1
        self.closes[self._numbers] = (session_id, tenant)
        self._world.tell(ev.SessionCloseRequested(self._numbers, session_id, tenant))

    # ----------------------------------------------------------------- answers

    def admitted(self, command: ev.Admit) -> None:
        job = self._answered(command.submission, command.task_id)
        is_news = job.admitted_ns == NEVER and job.task_id in self.unanswered
        self.unanswered.discard(job.task_id)
        if command.replayed and not is_news:
            if (command.queue_position, command.predicted_start_ms) != (job.position, job.predicted_ms):
                raise BrokenPromiseError(f"{job.task_id} was sent again and got other numbers than the first time")
            self.ledger.replays += 1
            return
        if job.admitted_ns != NEVER:
            raise BrokenPromiseError(f"{job.task_id} was admitted twice")
        now_ns = self._world.now_ns
        job.admitted_ns = now_ns
        job.position = command.queue_position
        job.predicted_ms = command.predicted_start_ms
        job.probability = command.on_time_probability
        if command.predicted_start_ms:  # else it starts in this very step (ORCH-3029)
            job.waiting = True
            job.flow.join(now_ns)
        if job.promised_ns != NEVER:
            self.ledger.promise(job, kept=True)
        if job.cancel_after_ns != NEVER:
            self._world.at(now_ns + job.cancel_after_ns, self.cancel, job)
        if job.resend_after_ns != NEVER:
            self._world.at(now_ns + job.resend_after_ns, self._resend, job)
        if command.replayed:
            # It was admitted by a scheduler that died before it could say so, and may be over by now.
            outcome = self._world.scheduler.outcome(job.task_id, job.info.tenant)
            if outcome is not None:
                self.watchers.heard_early(job, outcome)

    def rejected(self, command: ev.Reject) -> None:
        job = self._answered(command.submission, command.task_id)
        self.unanswered.discard(job.task_id)
        if job.admitted_ns != NEVER:
            raise BrokenPromiseError(f"{job.task_id} was admitted before and refused when it was sent again")
        error, now_ns = command.error, self._world.now_ns
        if job.promised_ns != NEVER:
            self.ledger.promise(job, kept=False)
            job.promised_ns = NEVER
        self.ledger.refused(job, error)
        job.earliest_ms = error.earliest_deadline_ms or 0
        again_ns = job.workload.next_try_ns(job, now_ns, error)
        if again_ns is None:
            self.close(job, f"refused {error.code}")
            return
        if HTTP_STATUS[error.code] == TOO_MANY:
            job.promised_ns = again_ns
        self._world.at(again_ns, self._submit_again, job)

    def undone(self, command: ev.Admit) -> None:
        """An admission that could not be made durable: its client is told that the task is refused."""
        self.watchers.undone[command.task_id] = self.asked[command.submission]
        error = refusals.not_durable("no space left on device")
        self.rejected(ev.Reject(command.set_id, command.submission, command.task_id, error))

    def cancel_answered(self, command: ev.AnswerCancel) -> None:
        job = self.cancels.pop(command.request, None)
        if job is None:
            raise BrokenPromiseError(f"cancel request {command.request} was answered, but not asked or twice")
        if self.jobs.get(job.task_id) is job:
            raise BrokenPromiseError(f"{job.task_id}: its cancel was answered, but it has not ended")

    def close_answered(self, command: ev.AnswerClose) -> None:
        if self.closes.pop(command.request, None) is None:
            raise BrokenPromiseError(f"close request {command.request} was answered, but not asked or twice")

    # --------------------------------------------------------------------- end

    def no_more_arrivals(self) -> None:
        """From here on, only what has arrived is served out."""
        self._draining = True

    def check_all_answered(self) -> None:
        """Raise `BrokenPromiseError` for anything that is still owed."""
        if self.jobs:
            names = ", ".join(list(self.jobs)[:5])
            raise BrokenPromiseError(f"{len(self.jobs)} tasks never ended, first of all {names}")
        owed = len(self.asked) + len(self.cancels) + len(self.closes)
        if owed:
            raise BrokenPromiseError(f"{owed} submissions, cancels or closes were never answered")

    def _answered(self, submission: int, task_id: str) -> Job:
        job = self.asked.pop(submission, None)
        if job is None or job.task_id != task_id:
            raise BrokenPromiseError(f"submission {submission} of {task_id} was answered, but not asked or twice")
        return job

    def close(self, job: Job, outcome: str) -> None:
        """A client is done with a task."""
        del self.jobs[job.task_id]
        self.ledger.close(job, self._world.now_ns, outcome)
        if job.agent is not None:
            job.agent.answered(job)
        if job.task_id == self.watched or (self._draining and not self.jobs):
            self._world.halt()
