"""Those who watch tasks: they see attempts start, be lost and go on, and hear how tasks end.

Every promise is checked as it is heard: attempts follow each other, an admitted task ends once, nothing of a task
follows its end, and a finished task has all its tokens.
"""

from typing import TYPE_CHECKING

from contracts import scheduling as ev
from contracts.tasks import Outcome
from orchestrator.simulation.durability import TakenUp
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER, Job

if TYPE_CHECKING:
    from orchestrator.simulation.clients import Clients
    from orchestrator.simulation.world import World


class Watchers:
    """`undone` has tasks that were refused after they had been admitted without anybody's knowing."""

    def __init__(self, world: "World", clients: "Clients") -> None:
        self.undone: dict[str, Job] = {}
        self._world = world
        self._clients = clients
        self._early: set[str] = set()

    def started(self, command: ev.Start) -> Job:
        """An attempt of a task starts. Returns the task."""
        undone = self.undone.get(command.task_id)
        if undone is not None:
            return undone
        job = self._clients.jobs.get(command.task_id)
        if job is None or (job.admitted_ns == NEVER and job.task_id not in self._clients.unanswered):
            raise BrokenPromiseError(f"{command.task_id} starts, but it is not admitted or has ended")
        follows = command.attempt > job.attempts if self._world.recoveries else command.attempt == job.attempts + 1
        if not follows:
            raise BrokenPromiseError(f"{job.task_id}: attempt {command.attempt} follows attempt {job.attempts}")
        job.attempts = command.attempt
        now_ns = self._world.now_ns
        if job.started_ns == NEVER:
            job.started_ns = now_ns
            job.flow.serve(now_ns, job.prompt_tokens + job.output_tokens)
        if job.waiting:
            job.waiting = False
            job.flow.leave(now_ns)
        elif command.attempt > 1:
            self._clients.ledger.retried += 1
        return job

    def paused(self, command: ev.Pause) -> None:
        """An attempt is over or lost, and its task waits again. Who watches hears of it only if it was preempted."""
        job = self._clients.jobs.get(command.task_id)
        if job is None or job.waiting:
            if command.task_id in self.undone or command.task_id in self._clients.unanswered:
                return
            raise BrokenPromiseError(f"{command.task_id} waits again, but it is not running")
        if command.cause == "lost":
            self._clients.ledger.lost += 1
        else:
            job.preemptions += 1
        job.waiting = True
        job.flow.join(self._world.now_ns)

    def adopted(self, back: TakenUp) -> None:
        """A replica came back with a task that it still runs, and goes on with it."""
        job = back.job
        self._clients.ledger.adopted += 1
        if job.waiting:
            job.waiting = False
            job.flow.leave(self._world.now_ns)

    def finished(self, command: ev.Finish) -> None:
        """A task ended; whoever watches it is told."""
        if command.task_id in self.undone:
            return
        job = self._clients.jobs.get(command.task_id)
        if job is None and command.task_id in self._early:
            self._early.remove(command.task_id)
            return
        if job is not None and job.admitted_ns == NEVER and job.task_id in self._clients.unanswered:
            return  # its client hears of it with the answer to its submission
        if job is None or job.admitted_ns == NEVER:
            raise BrokenPromiseError(f"{command.task_id} ends, but it is not admitted or has ended before")
        self.ended(job, command.outcome)

    def heard_early(self, job: Job, outcome: Outcome) -> None:
        """A task was over before its client knew that it had been admitted; the news of its end may still come."""
        self._early.add(job.task_id)
        self.ended(job, outcome)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A task has its outcome."""
        if outcome.state == "finished" and outcome.tokens_out != job.output_tokens:
            raise BrokenPromiseError(f"{job.task_id} finished with {outcome.tokens_out} of {job.output_tokens} tokens")
        if outcome.state == "finished" and job.told_apart == job.attempts > 0 and not self._world.recoveries:
            raise BrokenPromiseError(f"{job.task_id} finished with other text than was delivered")
        if job.waiting:
            job.waiting = False
            job.flow.leave(self._world.now_ns)
        error = outcome.error
        self._clients.close(job, outcome.state if error is None else f"{outcome.state} {error.code}")

    def forgotten(self, command: ev.Forget) -> None:
        """Nothing is known of a task any more."""
        if self.undone.pop(command.task_id, None) is not None:
            return
        if command.task_id in self._clients.jobs and command.task_id not in self._clients.unanswered:
            raise BrokenPromiseError(f"{command.task_id} is forgotten, but it has not ended")
