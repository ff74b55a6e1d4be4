"""Random schedules of faults: what they are like, that the scheduler stands them, and what is told of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.core import recovery
from orchestrator.scenariofile import load
from orchestrator.simulation import campaign, experiment
from orchestrator.simulation.faultkinds import Cut, SchedulerDown
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.schedules import KINDS, disturbed, schedule
from tests.simulation.sim_kit import scenario

ROOT = Path(__file__).resolve().parents[2]
CHAOS = ROOT / "examples" / "simulation" / "chaos.yaml"
LONG = scenario(seconds=300, pools={"gpu": {"replicas": 4}, "spare": {"replicas": 2}})


def chaos(*changes: str) -> Scenario:
    """About 300 tasks in twenty seconds, and a fault every six."""
    return load(CHAOS, ["tasks_max=300", "seconds=20", *changes])


def simulate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def span(fault: Any) -> tuple[float, float]:
    return fault.at_s, fault.at_s + getattr(fault, "for_s", getattr(fault, "down_s", 0))


# ------------------------------------------------------------------------ schedules


def test_a_seed_is_a_schedule() -> None:
    assert schedule(LONG, 5) == schedule(LONG, 5)
    assert schedule(LONG, 5) != schedule(LONG, 6)
    assert disturbed(LONG, 5).faults == schedule(LONG, 5)
    assert LONG.faults == []


def test_all_kinds_and_all_replicas_are_met() -> None:
    faults = [fault for seed in range(10) for fault in schedule(LONG, seed)]
    assert {fault.kind for fault in faults} == set(KINDS)
    met = {name for fault in faults if isinstance(fault, Cut) for name in fault.replicas}  # type: ignore[union-attr]
    assert met == {"gpu-0", "gpu-1", "gpu-2", "gpu-3", "spare-0", "spare-1"}
    assert {bool(fault.shutdown_ms) for fault in faults if isinstance(fault, SchedulerDown)} == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_faults_end_in_time_and_none_meets_another_of_its_kind(seed: int) -> None:
    until_s: dict[tuple[str, str], float] = {}
    last_s = 0.0
    for fault in schedule(LONG, seed):
        begin_s, end_s = span(fault)
        assert last_s <= begin_s < end_s + 0.001
        assert end_s < LONG.seconds
        last_s = begin_s
        for name in getattr(fault, "replicas", [""]):
            assert until_s.get((fault.kind, name), 0.0) <= begin_s
            until_s[fault.kind, name] = end_s


# ------------------------------------------------------------------------ campaigns


@pytest.mark.req("ORCH-3051", "ORCH-3017", "ORCH-3024", "ORCH-3025")
@pytest.mark.parametrize("seed", range(20))
def test_the_scheduler_stands_random_schedules(seed: int) -> None:
    verdict = campaign.run(chaos("check_every_steps=20"), 1000 + seed)
    assert verdict.broken == ""
    assert verdict.tasks > 200
    assert sum(verdict.ends.values()) == verdict.tasks


def test_processes_make_no_difference() -> None:
    what = scenario(seconds=8, progress_ms=0)
    alone = list(campaign.campaign(what, range(3)))
    assert list(campaign.campaign(what, range(3), workers=2)) == alone
    assert [verdict.seed for verdict in alone] == [0, 1, 2]


def test_a_broken_promise_is_told_and_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_resume", lambda _state, _homes, _kept: None)
    what = scenario(seconds=20)
    verdicts = [campaign.run(what, seed) for seed in range(12)]
    broken = [verdict for verdict in verdicts if verdict.broken]
    assert broken
    assert all("was accepted" in verdict.broken for verdict in broken)
    assert [verdict for verdict in verdicts if not verdict.broken]


def test_any_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(experiment.Workload, "next_try_ns", fail)
    verdict = campaign.run(scenario({"deadline_ms": 1}), 1)
    assert "ZeroDivisionError: nothing to divide by" in verdict.broken


# ------------------------------------------------------------------------ the command


def test_the_command_tells_of_each_schedule_and_of_all() -> None:
    done = simulate(CHAOS, "--schedules", 2, "--seed", 7, "--set", "tasks_max=120", "--set", "seconds=12")
    assert done.exit_code == 0, done.output
    head, *rows, total = done.stdout.splitlines()
    assert head.split()[:4] == ["seed", "faults", "tasks", "accepted"]
    assert [row.split()[0] for row in rows] == ["7", "8"]
    assert int(total.split()[2]) == sum(int(row.split()[2]) for row in rows)


def test_the_command_tells_all_as_json() -> None:
    done = simulate(CHAOS, "--schedules", 1, "--json", "--set", "tasks_max=50", "--set", "seconds=8")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["broken"] == ""


def test_the_command_fails_with_the_seed_that_broke_a_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        campaign, "run", lambda _what, seed, _folder: campaign.Verdict(seed, broken="lost" * (seed == 4))
    )
    failed = simulate(CHAOS, "--schedules", 3, "--seed", 3)
    assert failed.exit_code == 1
    assert "BROKEN lost" in failed.stdout
    assert "--schedules 1 --seed 4" in failed.stderr
    assert "1 of 3 schedules broke a promise" in failed.stderr


def test_schedules_need_a_scenario_and_nothing_else() -> None:
    assert simulate("--schedules", 2).exit_code == 2
    assert simulate(CHAOS, "--schedules", 2, "--log", "run.log").exit_code == 2
