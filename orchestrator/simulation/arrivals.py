"""When tasks arrive that do not wait for one another: Poisson, constant, bursts, traces."""

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Final

from orchestrator.simulation.scenario import BurstArrivals, ConstantArrivals, PoissonArrivals
from orchestrator.simulation.traces import TraceTask
from orchestrator.simulation.workloads import Workload

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000

#: From one arrival to the next one.
NextArrival = Callable[[int], int]


class OpenLoop:
    """Tasks arrive by a random process, whatever becomes of those before."""

    def __init__(self, world: "World", workload: Workload, next_ns: NextArrival, until_ns: int) -> None:
        self._world = world
        self._workload = workload
        self._next_ns = next_ns
        self._until_ns = until_ns

    def begin(self, from_ns: int) -> None:
        """The first task arrives after one gap."""
        self._plan(from_ns, 0)

    def _plan(self, now_ns: int, number: int) -> None:
        at_ns = self._next_ns(now_ns)
        if at_ns < self._until_ns:
            self._world.at(at_ns, self._arrive, number)

    def _arrive(self, number: int) -> None:
        world = self._world
        now_ns = world.now_ns
        if now_ns >= world.horizon_ns:
            return
        job = self._workload.make(number, now_ns)
        self._plan(now_ns, number + 1)
        world.clients.arrive(job)


class Replay:
    """Tasks arrive as a trace has them; what it leaves out is drawn as the workload says."""

    def __init__(
        self, world: "World", workload: Workload, tasks: Iterator[TraceTask], speed: float, until_ns: int
    ) -> None:
        self._world = world
        self._workload = workload
        self._tasks = tasks
        self._speed = speed
        self._until_ns = until_ns
        self._from_ns = 0

    def begin(self, from_ns: int) -> None:
        """The trace's time 0 is at `from_ns`."""
        self._from_ns = from_ns
        self._plan(0)

    def _plan(self, number: int) -> None:
        task = next(self._tasks, None)
        if task is None:
            return
        at_ns = self._from_ns + int(task.at_ms * NS_PER_MS / self._speed)
        if at_ns < self._until_ns:
            self._world.at(at_ns, self._arrive, (number, task))

    def _arrive(self, what: tuple[int, TraceTask]) -> None:
        number, task = what
        world, workload = self._world, self._workload
        if world.now_ns >= world.horizon_ns:
            return
        max_tokens = task.max_tokens or workload.section.max_tokens
        job = workload.job(
            number,
            world.now_ns,
            tenant=task.tenant or workload.tenant(),
            priority=task.priority or workload.priority(),
            prompt_tokens=task.prompt_tokens or workload.prompt_tokens(),
            output_tokens=task.output_tokens or workload.output_tokens(),
            max_tokens=max_tokens,
            deadline_ms=task.deadline_ms or workload.deadline_ms(),
            session_id=task.session_id,
        )
        self._plan(number + 1)
        world.clients.arrive(job)


def process(arrivals: PoissonArrivals | ConstantArrivals | BurstArrivals, rng: Random) -> NextArrival:
    """The function that gives the time of the arrival after a given time."""
    match arrivals:
        case PoissonArrivals():
            per_ns = arrivals.per_second / NS_PER_S
            return lambda now_ns: now_ns + int(rng.expovariate(per_ns)) + 1
        case ConstantArrivals():
            gap_ns = max(1, int(NS_PER_S / arrivals.per_second))
            return lambda now_ns: now_ns + gap_ns
        case BurstArrivals():
            return _Bursts(arrivals, rng).next_ns


class _Bursts:
    """A Markov-modulated Poisson process of two states, exact: a gap that outlasts its state is drawn anew."""

    def __init__(self, arrivals: BurstArrivals, rng: Random) -> None:
        self._rates = (arrivals.off_per_second / NS_PER_S, arrivals.on_per_second / NS_PER_S)
        self._means_ns = (arrivals.off_s * NS_PER_S, arrivals.on_s * NS_PER_S)
        self._rng = rng
        self._on = 0
        self._change_ns = self._length_ns()

    def next_ns(self, now_ns: int) -> int:
        while True:
            rate = self._rates[self._on]
            at_ns = now_ns + int(self._rng.expovariate(rate)) + 1 if rate else self._change_ns
            if at_ns < self._change_ns:
                return at_ns
            now_ns = self._change_ns
            self._on = 1 - self._on
            self._change_ns += self._length_ns()

    def _length_ns(self) -> int:
        return int(self._rng.expovariate(1 / self._means_ns[self._on])) + 1
