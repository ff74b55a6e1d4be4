"""The service is about to end: what runs may finish for a while, what waits is left to the next start (ORCH-3051)."""

from contracts.scheduling import AnswerShutdown, ShutdownRequested
from orchestrator.core import refusals, submissions
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State


def requested(state: State, event: ShutdownRequested) -> None:
    """Admit and start nothing from now on. Asked for twice, the earlier deadline wins."""
    until_ns = max(1, state.now_ns + max(0, event.deadline_ms) * NS_PER_MS)
    if state.ending_requests:
        until_ns = min(until_ns, state.ending_until_ns)
    state.is_ending = True
    state.ending_requests.append(event.request)
    state.ending_until_ns = until_ns
    state.set_alarm()
    for record in list(state.tasks.values()):
        if record.state == "measuring":
            submissions.withdraw(state, record, refusals.restarting())


def settle(state: State) -> None:
    """Answer once no attempt runs, or when the time is up; to be asked at the end of every step."""
    if not state.ending_requests:
        return
    running = waiting = 0
    for home in state.sets:
        waiting += home.waiting
        for tasks in home.running.values():
            running += len(tasks)
    if running and state.now_ns < state.ending_until_ns:
        return
    for request in state.ending_requests:
        state.out.append(AnswerShutdown("", request, running, waiting))
    state.ending_requests.clear()
    state.ending_until_ns = 0
    state.set_alarm()
