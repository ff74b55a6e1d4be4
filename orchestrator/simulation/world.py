"""The discrete-event world: a schedule, a clock, and one scheduler whose commands are carried out.

Nothing here waits and nothing is left to chance that the seed does not decide: the same scenario and
seed give the same events at the same times. The scheduler's clock is the world's plus an offset, so
that a fault can make it jump.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, Final

from contracts import scheduling as ev
from contracts.policies import SchedulerConfig
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation import reconnect
from orchestrator.simulation.durability import Durability, Noted, TakenUp, Undelivered
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import Job

if TYPE_CHECKING:
    from orchestrator.simulation.clients import Clients
    from orchestrator.simulation.eventlog import EventLog
    from orchestrator.simulation.fleet import Fleet
    from orchestrator.simulation.timeline import Timeline

#: What the scheduler's clock shows when the world's shows 0; no real monotonic clock starts at 0.
EPOCH_NS: Final = 1_000_000_000_000


class World:
    """Runs a scheduler against clients and replicas. `now_ns` counts from 0.

    Tasks arrive until `horizon_ns`; after that, what was admitted is served out, for at most `drain_ns`. With
    `commit_ns` there is a journal whose commits take so long, from which the scheduler can be started anew.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        horizon_ns: int,
        drain_ns: int,
        check_every_steps: int = 0,
        commit_ns: int | None = None,
        log: "EventLog | None" = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.is_up = True
        #: How often a scheduler went on where another ended.
        self.recoveries = 0
        self.durability = None if commit_ns is None else Durability(self, commit_ns)
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
        self._ending: tuple[int, Random] | None = None
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
            ev.Finish: clients.watchers.finished,
            ev.Pause: clients.watchers.paused,
            ev.Forget: clients.watchers.forgotten,
            ev.AnswerCancel: clients.cancel_answered,
            ev.AnswerClose: clients.close_answered,
            ev.Start: fleet.start,
            ev.Stop: fleet.stop,
            ev.MeasurePrompt: fleet.measure,
            ev.RefuseReplica: fleet.refused,
            ev.SetTimer: self._set_timer,
            ev.AnswerShutdown: self._may_end,
            Noted: fleet.noted,
            TakenUp: clients.watchers.adopted,
            Undelivered: fleet.undelivered,
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
        """Step the scheduler with one event and carry out what it commands; without a scheduler nothing is heard."""
        if not self.is_up:
            return
        told_ns = self.now_ns + self._skew_ns
        commands = self.scheduler.step(told_ns, event)
        self.steps += 1
        if self._log is not None:
            self._log.append(told_ns, event, commands)
        if self._check_every and self.steps % self._check_every == 0:
            invariants.check(self.scheduler)
        if self.durability is not None:
            self.durability.step(event, commands, self.scheduler.records(commands))
            return
        perform = self._perform
        for command in commands:
            perform[type(command)](command)

    def taken_up(self, job: Job) -> None:
        """Who watches a task hears that its attempt is not lost, once all that came before has been told."""
        if self.durability is None:
            self.perform(TakenUp(job))
        else:
            self.durability.taken_up(job)

    def perform(self, what: Any) -> None:
        """Carry out one command, or tell a replica that ends are noted."""
        self._perform[type(what)](what)

    # ------------------------------------------------------------------ the scheduler's own end

    def kill_scheduler(self, what: tuple[int, Random]) -> None:
        """The scheduler dies: every other time at once, else in the midst of what it is about to make durable."""
        if self.durability is not None and what[1].random() < 0.5:
            self.durability.disturb(self.end_scheduler, what, what[1])
        else:
            self.end_scheduler(what)

    def end_scheduler(self, what: tuple[int, Random]) -> None:
        """The scheduler dies now, and another one goes on after so many nanoseconds; replicas and clients live on."""
        down_ns, chance = what
        if not self.is_up or self.durability is None:
            return
        self.is_up = False
        self._timer_ns = None
        self._ending = None
        self.durability.crash(chance)
        self.fleet.lives.all_cut()
        self.at(self.now_ns + down_ns, self._recover, chance)

    def ask_to_end(self, what: tuple[int, int, Random]) -> None:
        """Have the scheduler let what runs finish for at most `shutdown_ms`, then end it for so many nanoseconds."""
        shutdown_ms, down_ns, chance = what
        self._ending = (down_ns, chance)
        self.tell(ev.ShutdownRequested(1, shutdown_ms))

    def fill_disk(self, is_full: bool) -> None:
        """Nothing becomes durable from now on, or everything does again."""
        if self.durability is not None:
            self.durability.disk_full = is_full

    def _may_end(self, _: ev.AnswerShutdown) -> None:
        if self._ending is not None:
            self.at(self.now_ns, self.end_scheduler, self._ending)

    def _recover(self, chance: Random) -> None:
        """Another scheduler begins with what the journal has; then replicas and clients find it."""
        assert self.durability is not None, "nothing was kept"
        kept = self.durability.journal.kept()
        self.is_up = True
        self.recoveries += 1
        self.scheduler = Scheduler(self.config)
        reconnect.hear_ends(self.clients, kept)
        self.tell(ev.ServiceRecovered(kept))
        reconnect.check_known(self.clients, self.scheduler)
        self.fleet.lives.all_return(chance)
        reconnect.ask_again(self.clients)

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
