"""Whatever breaks: every submission is answered, every admitted task ends once, and the invariants hold throughout."""

from typing import Any

import pytest

from orchestrator.simulation.faults import UnknownReplicaError
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.world import World
from tests.simulation.sim_kit import ran, scenario

#: Endings that a task may have.
ENDS = ("finished", "canceled", "refused", "failed", "dropped")

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one-dies-for-good": [{"kind": "crash", "at_s": 8, "down_s": None}],
    "all-die-and-return": [{"kind": "crash", "at_s": 8, "down_s": 4, "replicas": 3}],
    "all-die-for-good": [{"kind": "crash", "at_s": 12, "down_s": None, "replicas": 3}],
    "flapping": [{"kind": "flapping", "at_s": 3, "for_s": 20, "up_s": 2, "down_s": 0.5, "replicas": 2}],
    "engine-down": [{"kind": "engine-down", "at_s": 6, "down_s": 5, "replicas": 2}],
    "slow": [{"kind": "slow", "at_s": 5, "for_s": 15, "factor": 6, "replicas": 2}],
    "hanging": [{"kind": "hanging", "at_s": 5, "for_s": 8, "replicas": 2}],
    "deaf": [{"kind": "hanging", "at_s": 5, "for_s": 4, "deaf": True, "replicas": ["gpu-1"]}],
    "failing": [{"kind": "failing", "at_s": 5, "for_s": 15, "percent": 60, "replicas": 3}],
    "lost-reports": [{"kind": "reports", "at_s": 4, "for_s": 20, "lost_percent": 25, "replicas": 3}],
    "late-and-double-reports": [
        {"kind": "reports", "at_s": 2, "for_s": 25, "duplicate_percent": 50, "late_ms": 900, "replicas": 3}
    ],
    "clock-jumps": [{"kind": "clock", "at_s": at, "jump_ms": ms} for at, ms in ((6, -4000), (12, 9000), (18, -100))],
    "cut": [{"kind": "cut", "at_s": at, "for_s": 1.5, "replicas": 2} for at in (4, 9, 14)],
    "cut-for-long": [{"kind": "cut", "at_s": 5, "for_s": 12, "replicas": 3}],
    "scheduler": [{"kind": "scheduler", "at_s": at, "down_s": 0.7} for at in (3, 8, 13, 20)],
    "scheduler-for-long": [{"kind": "scheduler", "at_s": 6, "down_s": 12}],
    "scheduler-asked-to-end": [{"kind": "scheduler", "at_s": at, "shutdown_ms": 1500} for at in (4, 12)],
    "disk-full": [{"kind": "storage", "at_s": 5, "for_s": 3}, {"kind": "storage", "at_s": 15, "for_s": 2}],
    "disk-full-and-dead": [
        {"kind": "storage", "at_s": 5, "for_s": 5},
        {"kind": "scheduler", "at_s": 7, "down_s": 1},
        {"kind": "scheduler", "at_s": 14, "down_s": 1},
    ],
    "scheduler-and-replicas": [
        {"kind": "scheduler", "at_s": 5, "down_s": 2},
        {"kind": "crash", "at_s": 5.5, "down_s": 3, "replicas": 2},
        {"kind": "cut", "at_s": 9, "for_s": 3, "replicas": 2},
        {"kind": "scheduler", "at_s": 10, "down_s": 1},
        {"kind": "reports", "at_s": 12, "for_s": 6, "lost_percent": 10, "duplicate_percent": 20, "late_ms": 300},
        {"kind": "engine-down", "at_s": 15, "down_s": 2, "why": "xid", "replicas": 2},
        {"kind": "scheduler", "at_s": 15, "down_s": 1},
    ],
    "everything": [
        {"kind": "crash", "at_s": 4, "down_s": 3},
        {"kind": "reports", "at_s": 5, "for_s": 15, "lost_percent": 10, "duplicate_percent": 20, "late_ms": 300},
        {"kind": "hanging", "at_s": 9, "for_s": 3},
        {"kind": "failing", "at_s": 12, "for_s": 6},
        {"kind": "diverging", "at_s": 14, "for_s": 6, "replicas": 2},
        {"kind": "clock", "at_s": 15, "jump_ms": -2000},
        {"kind": "crash", "at_s": 19, "down_s": 2, "replicas": 2},
    ],
}


def broken_world(faults: list[dict[str, Any]], seed: int) -> World:
    """Three replicas of three slots for half a minute, hard preemption, clients of every kind."""
    return ran(
        scenario(
            {"resend_percent": 15, "cancel_percent": 10, "on_refusal": {"kind": "retry"}, "max_tokens": 300},
            {
                "name": "urgent",
                "arrivals": {"kind": "poisson", "per_second": 0.5},
                "output_tokens": 20,
                "max_tokens": 20,
                "deadline_ms": 1500,
            },
            {
                "name": "batch",
                "priority": "batch",
                "arrivals": {"kind": "bursts", "on_per_second": 6, "on_s": 4, "off_s": 4},
                "deadline_ms": 60_000,
                "on_refusal": {"kind": "jitter"},
            },
            seconds=25,
            check_every_steps=1,
            progress_ms=500,
            pools={"gpu": {"replicas": 3, "slots": 3, "load_ms": 1500, "release_ms": 20}},
            scheduler={
                "results_max": 10,
                "wall_timeout_ms": 20_000,
                "idle_timeout_ms": 4000,
                "classes": {"interactive": {"weight": 8, "capacity": 12}, "batch": {"capacity": 12}},
                "preemption": {"mode": "hard", "max_per_min": 30},
            },
            faults=faults,
        ),
        seed,
    )


@pytest.mark.req("ORCH-3024", "ORCH-3017", "ORCH-3010", "ORCH-3016")
@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_is_lost_and_nothing_happens_twice(name: str) -> None:
    """The world itself raises on an answer, a start or an end too many, and on any that is owed at the end."""
    world = broken_world(SCHEDULES[name], seed=len(name))
    ledger = world.clients.ledger
    rows = list(ledger.rows())
    assert len({row.task_id for row in rows}) == len(rows) > 60
    for row in rows:
        assert row.outcome.startswith(ENDS)
        assert (row.admitted_ns == NEVER) == row.outcome.startswith("refused")
        if row.outcome == "finished":
            assert row.arrived_ns <= row.admitted_ns <= row.started_ns < row.first_ns <= row.ended_ns
    finished = sum(row.outcome == "finished" for row in rows)
    assert finished > (10 if name == "all-die-for-good" else 30)


def outcomes(world: World) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in world.clients.ledger.rows():
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    return counts


@pytest.mark.req("ORCH-3018")
def test_the_faults_do_what_they_are_called() -> None:
    plain = outcomes(broken_world([], 3))
    assert not any("WORKER_RESET" in name or "DECODE_TIMEOUT" in name for name in plain)
    crashed = outcomes(broken_world(SCHEDULES["all-die-for-good"], 3))
    assert crashed["failed POOL_UNAVAILABLE"] >= 1
    assert crashed["refused POOL_UNAVAILABLE"] >= 1
    world = broken_world(SCHEDULES["one-dies-for-good"], 3)
    assert world.clients.ledger.lost >= 1
    assert "failed WORKER_RESET" not in outcomes(world)
    hung = outcomes(broken_world(SCHEDULES["hanging"], 3))
    assert hung["failed DECODE_TIMEOUT"] >= 1
    failing = broken_world(SCHEDULES["failing"], 3)
    assert failing.clients.ledger.retried >= 3


@pytest.mark.req("ORCH-3016")
def test_an_end_that_nobody_heard_of_stands_when_the_attempt_is_stopped() -> None:
    """Reports get lost, tasks do not: the watchdog asks, and the replica tells how it ended."""
    lossy = [{"kind": "reports", "at_s": 0, "for_s": 100, "lost_percent": 40, "replicas": 3}]
    counts = outcomes(broken_world(lossy, 5))
    assert counts["finished"] > 30


def test_a_fault_of_an_unknown_replica_is_refused() -> None:
    with pytest.raises(UnknownReplicaError, match="no replica gpu-9; there are gpu-0"):
        ran(scenario(faults=[{"kind": "crash", "at_s": 1, "replicas": ["gpu-9"]}]))
