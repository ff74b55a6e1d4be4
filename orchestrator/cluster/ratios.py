"""How often promises are kept: deadlines met and SLOs attained, as moving means (ORCH-3041, ORCH-3081)."""

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from contracts.policies import SchedulerConfig
from contracts.tasks import Outcome
from orchestrator.cluster.live import LiveTask

#: The mean is over about so many tasks; until there are as many, over all of them.
WINDOW_TASKS: Final = 200
#: Ends that are late whatever the clock says.
TIMED_OUT: Final = ("DEADLINE_UNMET", "DECODE_TIMEOUT")
NS_PER_MS: Final = 1_000_000


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
    """Per class: tasks that ended by their deadline, and first tokens within the class's SLO."""

    def __init__(self, config: SchedulerConfig, registry: CollectorRegistry) -> None:
        self._slo_ms = {
            (policy.set_id, queue.priority): queue.slo_first_token_ms
            for policy in config.sets
            for queue in policy.queues
            if queue.slo_first_token_ms is not None
        }
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
        slo_ms = self._slo_ms.get((live.set_id, priority))
        if slo_ms is not None:
            first_ms = outcome.first_token_ms
            _ratio_of(self._attained, priority).add(first_ms is not None and first_ms <= slo_ms)

    def render(self) -> None:
        """Bring the gauges up to date."""
        for gauge, ratios in ((self._deadlines, self._met), (self._slos, self._attained)):
            for priority, ratio in ratios.items():
                gauge.labels(priority).set(ratio.value)


def _ratio_of(ratios: dict[str, MovingRatio], priority: str) -> MovingRatio:
    found = ratios.get(priority)
    if found is None:
        found = ratios[priority] = MovingRatio()
    return found
