"""What clients do when the scheduler is back: hear of what ended, and ask again for what was not answered.

Ingresses live on like replicas do: they watch their tasks anew, and send what they had no answer to once more.
"""

from typing import TYPE_CHECKING

from contracts.journal import Kept
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER

if TYPE_CHECKING:
    from orchestrator.simulation.clients import Clients


def hear_ends(clients: "Clients", kept: Kept) -> None:
    """Whoever watches a task hears its outcome, if that became durable and was never told."""
    clients.watchers.undone.clear()
    clients.unanswered = {job.task_id for job in clients.asked.values()}
    for each in kept.tasks:
        job = clients.jobs.get(each.task.task_id)
        if each.outcome is not None and job is not None and job.admitted_ns != NEVER:
            clients.watchers.ended(job, each.outcome)


def check_known(clients: "Clients", scheduler: Scheduler) -> None:
    """Raise `BrokenPromiseError` if a task that was accepted is not known any more."""
    for job in clients.jobs.values():
        if job.admitted_ns != NEVER and scheduler.task(job.task_id, job.info.tenant) is None:
            raise BrokenPromiseError(f"{job.task_id} was accepted, and the scheduler that recovered does not know it")


def ask_again(clients: "Clients") -> None:
    """All that was not answered is asked once more, under new numbers."""
    asked, cancels, closes = list(clients.asked.values()), list(clients.cancels.values()), list(clients.closes.values())
    clients.asked.clear()
    clients.cancels.clear()
    clients.closes.clear()
    for job in asked:
        clients.ask(job)
    for job in cancels:
        clients.cancel(job)
    for session_id, tenant in closes:
        clients.close_session(session_id, tenant)
