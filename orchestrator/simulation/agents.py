"""Agents: closed-loop clients that wait for an answer, think, and ask the next thing of a growing session."""

from random import Random
from typing import TYPE_CHECKING, Final

from orchestrator.simulation.job import Job
from orchestrator.simulation.scenario import AgentArrivals
from orchestrator.simulation.sizes import drawer
from orchestrator.simulation.workloads import Workload

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
#: Task numbers of agents do not meet before one has had this many turns.
TURNS_PER_AGENT: Final = 1_000_000


class Agent:
    """One agent. It draws from its own generator, so that what happens to others does not change what it asks."""

    def __init__(
        self, world: "World", workload: Workload, arrivals: AgentArrivals, index: int, seed: int, until_ns: int
    ) -> None:
        section = workload.section
        rng = Random(f"{seed}/{section.name}/{index}")
        self._world = world
        self._workload = workload
        self._turns = arrivals.turns
        self._close_sessions = arrivals.close_sessions
        self._until_ns = until_ns
        self._think_ms = drawer(arrivals.think_ms, rng)
        self._prompt_tokens = drawer(section.prompt_tokens, rng)
        self._output_tokens = drawer(section.output_tokens, rng)
        self._deadline_ms = drawer(section.deadline_ms, rng)
        self._tenant = workload.tenant()
        self._priority = workload.priority()
        self._number = index * TURNS_PER_AGENT
        self._session = 0
        self._turn = 0
        self._context_tokens = 0
        self._name = f"{section.name}-{index}"

    def begin(self, from_ns: int) -> None:
        """The first turn comes after some thought."""
        self._world.at(from_ns + self._think_ms() * NS_PER_MS, self._ask, None)

    def answered(self, job: Job) -> None:
        """The turn is over, one way or the other. What was refused or failed does not grow the context."""
        if job.started_ns >= 0:
            self._context_tokens = job.prompt_tokens + job.output_tokens
        self._turn += 1
        self._world.at(self._world.now_ns + self._think_ms() * NS_PER_MS, self._ask, None)

    def _ask(self, _: None) -> None:
        world, section = self._world, self._workload.section
        if world.now_ns >= min(self._until_ns, world.horizon_ns):
            return
        added = self._prompt_tokens()
        room = self._workload.ctx - section.max_tokens - 1
        if self._turn >= self._turns or self._context_tokens + added > room:
            self._begin_session()
        job = self._workload.job(
            self._number,
            world.now_ns,
            tenant=self._tenant,
            priority=self._priority,
            prompt_tokens=min(room, self._context_tokens + added),
            output_tokens=self._output_tokens(),
            max_tokens=section.max_tokens,
            deadline_ms=self._deadline_ms(),
            session_id=f"{self._name}-{self._session}",
        )
        job.agent = self
        self._number += 1
        world.clients.arrive(job)

    def _begin_session(self) -> None:
        if self._close_sessions and self._turn:
            self._world.clients.close_session(f"{self._name}-{self._session}", self._tenant)
        self._session += 1
        self._turn = 0
        self._context_tokens = 0
