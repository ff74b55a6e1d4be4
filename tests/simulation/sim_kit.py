"""Small scenarios, and worlds that have run them."""

from typing import Any

from orchestrator.simulation import experiment
from orchestrator.simulation.report import Report
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.world import World

CHAT: dict[str, Any] = {
    "name": "chat",
    "arrivals": {"kind": "poisson", "per_second": 2},
    "output_tokens": {"kind": "lognormal", "median": 60, "sigma": 0.6, "max": 300},
    "max_tokens": 300,
    "deadline_ms": 20_000,
}


def scenario(*workloads: dict[str, Any], **over: Any) -> Scenario:
    """Two replicas of two slots for a minute, unless told otherwise; workloads are CHAT with changes."""
    values: dict[str, Any] = {
        "seconds": 60,
        "progress_ms": 0,
        "pools": {"gpu": {"replicas": 2, "slots": 2}},
        "workloads": [CHAT | workload for workload in workloads or ({},)],
    }
    return Scenario.model_validate(values | over)


def ran(what: Scenario, seed: int = 1) -> World:
    """The world of a scenario after its end."""
    world = experiment.build(what, seed)
    world.run()
    return world


def report(what: Scenario, seed: int = 1) -> Report:
    """A scenario's report."""
    return experiment.run(what, seed)
