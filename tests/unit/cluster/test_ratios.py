"""Promises kept, and shares by tenant: the metrics that tell whether scheduling does what it says."""

import pytest
from prometheus_client import CollectorRegistry

from contracts.errors import ErrorInfo
from contracts.tasks import Outcome
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.ratios import WINDOW_TASKS, MovingRatio, Promises
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.cluster.tenant_labels import OTHER, TENANT_LABELS_MAX
from tests.unit.cluster.scripted import task
from tests.unit.cluster.scripted_core import CONFIG, ScriptedCore

DEADLINE_NS = 1_000


class Kept:
    """The two gauges, fed with ends of tasks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._promises = Promises({policy.set_id: policy for policy in CONFIG.sets}, self.registry)

    def end(self, outcome: Outcome, at_ns: int = DEADLINE_NS, priority: str = "interactive") -> None:
        live = LiveTask(task("a", priority=priority), b"", 0)
        live.set_id, live.deadline_ns = "set", DEADLINE_NS
        self._promises.ended(at_ns, live, outcome)
        self._promises.render()

    def deadlines(self, priority: str = "interactive") -> float | None:
        return self.registry.get_sample_value("deadlines_met_ratio", {"priority": priority})

    def slo(self, priority: str = "interactive") -> float | None:
        return self.registry.get_sample_value("slo_attainment_ratio", {"priority": priority})


def failed(code: str) -> Outcome:
    return Outcome("failed", error=ErrorInfo(code, "because"))  # type: ignore[arg-type]


GOOD = Outcome("finished", first_token_ms=900, finish_reason="stop")


def test_a_moving_ratio_is_a_plain_mean_at_first_and_forgets_later() -> None:
    ratio = MovingRatio()
    for kept, mean in ((True, 1), (False, 1 / 2), (False, 1 / 3), (True, 1 / 2)):
        ratio.add(kept)
        assert ratio.value == pytest.approx(mean)
    for _ in range(20 * WINDOW_TASKS):
        ratio.add(True)
    assert ratio.value > 0.999
    for _ in range(WINDOW_TASKS):
        ratio.add(False)
    assert 0.3 < ratio.value < 0.4


@pytest.mark.req("ORCH-3081")
def test_deadlines_are_met_by_ends_in_time_and_missed_by_late_ends_and_timeouts() -> None:
    kept = Kept()
    assert kept.deadlines() is None
    kept.end(GOOD)
    assert kept.deadlines() == 1
    kept.end(GOOD, at_ns=DEADLINE_NS + 1)
    assert kept.deadlines() == 1 / 2
    kept.end(failed("DEADLINE_UNMET"))
    kept.end(failed("DECODE_TIMEOUT"))
    assert kept.deadlines() == 1 / 4
    assert kept.deadlines("batch") is None


@pytest.mark.req("ORCH-3081")
@pytest.mark.parametrize("outcome", [Outcome("canceled"), failed("WORKER_RESET"), Outcome("dropped")])
def test_other_ends_say_nothing_about_deadlines(outcome: Outcome) -> None:
    kept = Kept()
    kept.end(outcome)
    assert kept.deadlines() is None


@pytest.mark.req("ORCH-3041")
def test_a_first_token_within_the_classes_slo_attains_it() -> None:
    kept = Kept()
    kept.end(GOOD)
    assert kept.slo() == 1
    kept.end(Outcome("finished", first_token_ms=901, finish_reason="stop"))
    kept.end(failed("WORKER_RESET"))
    kept.end(Outcome("dropped"))
    assert kept.slo() == 1 / 4
    kept.end(Outcome("canceled"))
    assert kept.slo() == 1 / 4
    kept.end(GOOD, priority="batch")  # a class without an SLO
    assert kept.slo("batch") is None


class Shares(ScriptedCore):
    """A core with shares to tell."""

    def __init__(self, shares: list[tuple[str, str, str, float]]) -> None:
        super().__init__()
        self.told = shares

    def shares(self) -> list[tuple[str, str, str, float]]:
        return self.told


def shown(telemetry: Telemetry, shares: list[tuple[str, str, str, float]]) -> dict[tuple[str, str], float]:
    telemetry.render(Shares(shares), 0)  # type: ignore[arg-type]
    return {
        (sample.labels["tenant"], sample.labels["priority"]): sample.value
        for family in telemetry.registry.collect()
        if family.name == "admission_share"
        for sample in family.samples
    }


@pytest.mark.req("ORCH-3076")
def test_shares_are_means_over_the_sets_that_served_anything() -> None:
    telemetry = Telemetry(CONFIG, {})
    assert shown(telemetry, []) == {}
    shares = [("set", "batch", "a", 0.75), ("set", "batch", "b", 0.25), ("two", "batch", "b", 1.0)]
    assert shown(telemetry, [*shares, ("idle", "batch", "a", 0.0)]) == {("a", "batch"): 0.375, ("b", "batch"): 0.625}
    assert shown(telemetry, shares[:2]) == {("a", "batch"): 0.75, ("b", "batch"): 0.25}


@pytest.mark.req("ORCH-3076", "ORCH-3028")
def test_tenants_beyond_the_label_budget_share_one_label() -> None:
    telemetry = Telemetry(CONFIG, {})
    count = 2 * TENANT_LABELS_MAX
    many = [("set", "batch", f"t{n}", 1 / count) for n in range(count)]
    for _ in range(2):
        found = shown(telemetry, many)
        assert len(found) == TENANT_LABELS_MAX
        assert found[OTHER, "batch"] == pytest.approx((count - TENANT_LABELS_MAX + 1) / count)
        assert sum(found.values()) == pytest.approx(1)
