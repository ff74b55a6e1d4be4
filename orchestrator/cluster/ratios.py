"""How often promises are kept: deadlines met and SLOs attained, as moving means (ORCH-3041, ORCH-3081)."""

from collections.abc import Mapping
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Gauge

from contracts.policies import SetPolicy
from contracts.tasks import Outcome
from orchestrator.cluster.live import LiveTask

#: The mean is over about so many tasks; until there are as many, over all of them.
WINDOW_TASKS: Final = 200
#: Ends that are late whatever the clock says.
TIMED_OUT: Final = ("DEADLINE_UNMET", "DECODE_TIMEOUT")
NS_PER_MS: Final = 1_000_000


K = TypeVar("K")


class MovingRatio:
    """Share of trues among the latest observations."""

    __slots__ = ("_count", "value")

    def __init__(self) -> None:
        self._count = 0
        self.value = 0.0

    def add(self, kept: bool) -> None:
        """Take in one observation."""
        self._count = min(self._count + 1, WINDOW_TASKS)
        self.value += (kept - self.value) / self._count


class Promises:
    """Per class: tasks that ended by their deadline, and first tokens within the class's SLO.

    `sets` are the policies by set id, which others may add to.
    """

    def __init__(self, sets: Mapping[str, SetPolicy], registry: CollectorRegistry) -> None:
        self._sets = sets
        self._of_set: dict[tuple[str, str], MovingRatio] = {}
        self._met: dict[str, MovingRatio] = {}
        self._attained: dict[str, MovingRatio] = {}
        self._deadlines = Gauge(
            "deadlines_met_ratio",
            "ended tasks that met their deadline, moving mean; 0 to 1",
            ["priority"],
            registry=registry,
        )
        self._slos = Gauge(
            "slo_attainment_ratio",
            "ended tasks whose first token came within the class's SLO, moving mean; 0 to 1",
            ["priority"],
            registry=registry,
        )

    def ended(self, now_ns: int, live: LiveTask, outcome: Outcome) -> None:
        """Account an admitted task's end. What a client gave up itself says nothing about promises."""
        if outcome.state == "canceled":
            return
        priority = live.task.priority
        error = outcome.error
        if outcome.state == "finished" or (error is not None and error.code in TIMED_OUT):
            _ratio_of(self._met, priority).add(error is None and now_ns <= live.deadline_ns)
        slo_ms = self._slo_ms(live.set_id, priority)
        if slo_ms is not None:
            kept = outcome.first_token_ms is not None and outcome.first_token_ms <= slo_ms
            _ratio_of(self._attained, priority).add(kept)
            _ratio_of(self._of_set, (live.set_id, priority)).add(kept)

    def attainment(self, set_id: str, priority: str) -> float | None:
        """The share of a set's tasks of a class that met its SLO; None before any ended."""
        ratio = self._of_set.get((set_id, priority))
        return None if ratio is None else ratio.value

    def _slo_ms(self, set_id: str, priority: str) -> int | None:
        policy = self._sets.get(set_id)
        queues = policy.queues if policy is not None else ()
        return next((queue.slo_first_token_ms for queue in queues if queue.priority == priority), None)

    def render(self) -> None:
        """Bring the gauges up to date."""
        for gauge, ratios in ((self._deadlines, self._met), (self._slos, self._attained)):
            for priority, ratio in ratios.items():
                gauge.labels(priority).set(ratio.value)


def _ratio_of(ratios: dict[K, MovingRatio], key: K) -> MovingRatio:
    found = ratios.get(key)
    if found is None:
        found = ratios[key] = MovingRatio()
    return found
