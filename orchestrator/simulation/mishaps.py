"""What goes wrong with single attempts: a task that crashes its engine, and text that is not what was delivered."""

from typing import TYPE_CHECKING, Final

from contracts import scheduling as ev
from orchestrator.simulation.job import Job
from orchestrator.simulation.replica import Attempt

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

#: How often those who saw other text look for a scheduler to tell.
LOOK_NS: Final = 1_000_000_000


def deliver(job: Job, now_ns: int) -> None:
    """Before another attempt: what those before it have delivered by now."""
    last = job.last
    if last is None:
        return
    tokens = last.made_tokens if last.over else last.tokens_at(now_ns)
    if tokens > job.delivered_tokens:
        if not job.delivered_tokens:
            job.delivered_diverges = last.diverges
        job.delivered_tokens = tokens


def expect(world: "World", attempt: Attempt) -> None:
    """An attempt begins that will go wrong with its first token."""
    if attempt.first_ns:
        world.at(attempt.first_ns, _crash if attempt.job.poison else _differ, (world, attempt))


def _crash(what: tuple["World", Attempt]) -> None:
    """A task that is poison ends the engine that runs it; the replica brings it up again."""
    world, attempt = what
    if not attempt.over:
        world.fleet.lives.engine_down((attempt.replica, "exit"))
        world.fleet.lives.restart(attempt.replica)


def _differ(what: tuple["World", Attempt]) -> None:
    """Who watches sees other text than was delivered, and says so as soon as there is a scheduler to hear it."""
    world, attempt = what
    if attempt.over or attempt.job.last is not attempt:
        return
    if world.is_up:
        attempt.job.told_apart = attempt.number
        world.tell(ev.TokensDiverged(attempt.job.task_id, attempt.number))
    else:
        world.at(world.now_ns + LOOK_NS, _differ, what)
