"""The discrete-event world: a schedule, a clock, and one scheduler whose commands are carried out.

Nothing here waits and nothing is left to chance that the seed does not decide: the same scenario and
seed give the same events at the same times. The scheduler's clock is the world's plus an offset, so
that a fault can make it jump.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from contracts import scheduling as ev
from contracts.policies import SchedulerConfig
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation.errors import BrokenPromiseError

if TYPE_CHECKING:
    from orchestrator.simulation.clients import Clients
    from orchestrator.simulation.eventlog import EventLog
    from orchestrator.simulation.fleet import Fleet
    from orchestrator.simulation.timeline import Timeline

#: What the scheduler's clock shows when the world's shows 0; no real monotonic clock starts at 0.
EPOCH_NS: Final = 1_000_000_000_000


class World:
    """Runs a scheduler against clients and replicas. `now_ns` counts from 0.

    Tasks arrive until `horizon_ns`; after that, what was admitted is served out, for at most `drain_ns`.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        horizon_ns: int,
        drain_ns: int,
        check_every_steps: int = 0,
        log: "EventLog | None" = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.now_ns = 0
        self.horizon_ns = horizon_ns
        self.steps = 0
        self.fleet: Fleet
        self.clients: Clients
        self.timeline: Timeline
        self._drain_ns = drain_ns
        self._check_every = check_every_steps
        self._log = log
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self._skew_ns = EPOCH_NS
        self._timer_ns: int | None = None
        self._halted = False
        self._perform: dict[type, Callable[[Any], None]] = {}
        if log is not None:
            log.begin(config)

    def people(self, fleet: "Fleet", clients: "Clients") -> None:
        """Put replicas and clients into the world; once, before it runs."""
        self.fleet = fleet
        self.clients = clients
        self._perform = {
            ev.Admit: clients.admitted,
            ev.Reject: clients.rejected,
            ev.Finish: clients.finished,
            ev.Pause: clients.paused,
            ev.Forget: clients.forgotten,
            ev.AnswerCancel: clients.cancel_answered,
            ev.AnswerClose: clients.close_answered,
            ev.Start: fleet.start,
            ev.Stop: fleet.stop,
            ev.MeasurePrompt: fleet.measure,
            ev.RefuseReplica: fleet.refused,
            ev.SetTimer: self._set_timer,
        }

    # ------------------------------------------------------------------ schedule

    def at(self, at_ns: int, act: Callable[[Any], None], argument: Any) -> None:
        """Have `act(argument)` called at that time; what is due at the same time happens in the order asked for."""
        self._sequence += 1
        heappush(self._heap, (at_ns if at_ns > self.now_ns else self.now_ns, self._sequence, act, argument))

    def run(self) -> None:
        """Until every task that arrived has ended. Raises `BrokenPromiseError` if one does not."""
        self.run_until(self.horizon_ns)
        self.now_ns = self.horizon_ns
        self.clients.no_more_arrivals()
        if self.clients.open:
            self.run_until(self.horizon_ns + self._drain_ns)
        self.clients.check_all_answered()

    def run_until(self, at_ns: int) -> None:
        """Let everything up to and including `at_ns` happen, or until something halts the world."""
        heap = self._heap
        self._halted = False
        while heap and heap[0][0] <= at_ns and not self._halted:
            self.now_ns, _, act, argument = heappop(heap)
            act(argument)

    def halt(self) -> None:
        """End the `run_until` under way after what happens just now."""
        self._halted = True

    def end_arrivals(self) -> None:
        """No task arrives after this instant."""
        self.horizon_ns = self.now_ns
        self._halted = True

    # ------------------------------------------------------------------ scheduler

    def tell(self, event: ev.AnyEvent) -> None:
        """Step the scheduler with one event and carry out what it commands."""
        told_ns = self.now_ns + self._skew_ns
        commands = self.scheduler.step(told_ns, event)
        self.steps += 1
        if self._log is not None:
            self._log.append(told_ns, event, commands)
        if self._check_every and self.steps % self._check_every == 0:
            invariants.check(self.scheduler)
        perform = self._perform
        for command in commands:
            perform[type(command)](command)

    def jump_clock(self, jump_ns: int) -> None:
        """The scheduler's clock shows another time from now on; its timer rings by the new time."""
        self._skew_ns += jump_ns
        if self._timer_ns is not None:
            self.at(self._timer_ns - self._skew_ns, self._ring, self._timer_ns)

    def _set_timer(self, command: ev.SetTimer) -> None:
        if command.at_ns <= self.now_ns + self._skew_ns:
            raise BrokenPromiseError(f"SetTimer asks for {command.at_ns} ns, which is over")
        self._timer_ns = command.at_ns
        self.at(command.at_ns - self._skew_ns, self._ring, command.at_ns)

    def _ring(self, timer_ns: int) -> None:
        # A timer that was replaced, or that the clock jumped away from, is silent.
        if timer_ns == self._timer_ns and timer_ns <= self.now_ns + self._skew_ns:
            self._timer_ns = None
            self.tell(ev.TimerFired())
