"""The scheduler dies, its disk is full, links are cut: what was accepted ends once, and nobody is told otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import scheduling as ev
from contracts.journal import KeptTask
from orchestrator.core import attempts, journal, storage
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State
from orchestrator.simulation import experiment
from orchestrator.simulation.durability import Durability
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.eventlog import EventLog, replay
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.world import World
from tests.simulation.sim_kit import ran, report, scenario

#: The scheduler dies eight times within twenty seconds.
DEATHS = [{"kind": "scheduler", "at_s": 2 + 2 * n, "down_s": 0.4} for n in range(8)]


def disturbed(
    faults: list[dict[str, Any]], *workloads: dict[str, Any], seed: int = 1, run: bool = True, **over: Any
) -> World:
    """Three replicas under a load that fills them, for twenty seconds."""
    values: dict[str, Any] = {
        "seconds": 20,
        "check_every_steps": 1,
        "progress_ms": 300,
        "pools": {"gpu": {"replicas": 3, "slots": 3, "load_ms": 800, "release_ms": 10}},
        "faults": faults,
    }
    busy = {"arrivals": {"kind": "poisson", "per_second": 5}, "resend_percent": 20, "cancel_percent": 10}
    what = scenario(*[busy | each for each in workloads or ({},)], **(values | over))
    return ran(what, seed) if run else experiment.build(what, seed)


def outcomes(world: World) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in world.clients.ledger.rows():
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    return counts


@pytest.mark.req("ORCH-3051", "ORCH-3024")
@pytest.mark.parametrize("seed", range(3))
def test_deaths_of_the_scheduler_lose_nothing(seed: int) -> None:
    world = disturbed(DEATHS, seed=seed)
    assert world.recoveries >= 7
    ledger = world.clients.ledger
    assert ledger.adopted >= 10
    # Replicas live on: without other faults nothing fails but what was late anyway.
    assert set(outcomes(world)) <= {"finished", "canceled", "refused DEADLINE_UNMET", "failed DEADLINE_UNMET"}
    assert len(ledger) == world.clients.arrived > 70


@pytest.mark.req("ORCH-3051")
def test_a_scheduler_that_is_asked_to_end_lets_what_runs_finish() -> None:
    faults = [{"kind": "scheduler", "at_s": at_s, "down_s": 0.5, "shutdown_ms": 20_000} for at_s in (4, 10)]
    world = disturbed(faults)
    assert world.recoveries == 2
    # Nothing was under way when it ended.
    assert world.clients.ledger.adopted == 0
    assert outcomes(world)["refused POOL_UNAVAILABLE"] >= 1
    assert outcomes(world)["finished"] > 20


@pytest.mark.req("ORCH-3009")
def test_what_runs_on_replicas_whose_links_are_cut_is_taken_up_again() -> None:
    """All links at once, so that nothing can be started elsewhere meanwhile."""
    world = disturbed([{"kind": "cut", "at_s": at_s, "for_s": 0.5, "replicas": 3} for at_s in (4, 8, 12)])
    ledger = world.clients.ledger
    assert ledger.lost >= 5
    assert ledger.adopted >= ledger.lost // 2
    assert set(outcomes(world)) <= {"finished", "canceled", "refused POOL_UNAVAILABLE", "refused DEADLINE_UNMET"}


@pytest.mark.req("ORCH-3051", "OC-CTRL-2010")
def test_while_the_disk_is_full_nothing_is_accepted_and_what_runs_goes_on() -> None:
    world = disturbed([{"kind": "storage", "at_s": 6, "for_s": 4}])
    assert world.durability is not None
    assert world.durability.failures == 1
    rows = list(world.clients.ledger.rows())
    admitted_s = [row.admitted_ns / 1e9 for row in rows if row.admitted_ns != NEVER]
    # The last commit before, the first one that works again: up to a second later.
    assert not [at_s for at_s in admitted_s if 6.1 < at_s < 10]
    assert [row for row in rows if row.outcome == "finished" and row.ended_ns / 1e9 > 6]
    assert outcomes(world)["refused ADMISSION_REJECT"] >= 5
    assert [at_s for at_s in admitted_s if at_s > 11.1]


@pytest.mark.req("ORCH-3051", "ORCH-3009")
def test_who_watches_hears_of_a_loss_before_it_hears_that_it_was_none() -> None:
    """A full disk holds back the news of a loss; what was taken up meanwhile does not wait once that is told."""
    faults = [{"kind": "storage", "at_s": 6, "for_s": 4}, {"kind": "cut", "at_s": 7, "for_s": 0.5, "replicas": 3}]
    world = disturbed(faults, {"output_tokens": 200, "max_tokens": 200, "cancel_percent": 0}, run=False)
    world.run_until(9_900_000_000)
    assert world.durability is not None
    assert world.durability.failures == 1
    assert world.clients.ledger.adopted == 0  # not heard yet, nor the loss
    assert world.clients.ledger.lost == 0
    for at_ms in range(9_900, 12_000, 10):
        if not world.clients.ledger.lost:
            world.run_until(at_ms * 1_000_000)
    assert world.clients.ledger.adopted >= 3
    going_on = [attempt.job for replica in world.fleet.replicas.values() for attempt in replica.running.values()]
    assert len(going_on) >= 3
    assert not [job.task_id for job in going_on if job.waiting]


@pytest.mark.req("ORCH-3025", "ORCH-3009")
def test_a_task_that_crashes_engines_is_found_and_the_others_survive() -> None:
    poison = {"name": "poison", "arrivals": {"kind": "constant", "per_second": 0.15}, "poison_percent": 100}
    quiet = {"resend_percent": 0, "cancel_percent": 0}
    world = disturbed([], quiet | {"arrivals": {"kind": "poisson", "per_second": 2}}, quiet | poison)
    for row in world.clients.ledger.rows():
        if row.task_id.startswith("poison"):
            assert row.outcome == "failed WORKER_RESET"
            assert row.attempts == 3
        else:
            assert row.outcome in ("finished", "refused DEADLINE_UNMET", "refused POOL_UNREADY")
    assert outcomes(world)["finished"] > 20


@pytest.mark.req("ORCH-3045")
def test_other_text_than_was_delivered_never_finishes() -> None:
    faults: list[dict[str, Any]] = [{"kind": "diverging", "at_s": 0, "for_s": 30, "replicas": ["gpu-1"]}]
    faults += [{"kind": "crash", "at_s": at_s, "down_s": 4, "replicas": ["gpu-0", "gpu-2"]} for at_s in (3, 9, 15)]
    world = disturbed(faults, {"output_tokens": 100})
    assert outcomes(world).get("failed WORKER_RESET", 0) >= 3


@pytest.mark.req("ORCH-3051", "ORCH-3024")
def test_the_same_scenario_and_seed_give_the_same_deaths() -> None:
    what = scenario(seconds=15, progress_ms=300, faults=DEATHS[:5])
    assert report(what) == report(what)
    assert report(what).lost.recoveries == 5


@pytest.mark.req("ORCH-3051")
def test_a_log_holds_every_life_of_the_scheduler(tmp_path: Path) -> None:
    what = scenario(seconds=15, progress_ms=300, faults=DEATHS[:5])
    path = tmp_path / "run.log"
    with EventLog(path) as log:
        experiment.build(what, 1, log=log).run()
    assert replay(path, check_every_steps=1).same


# ------------------------------------------------------------------------ it would be noticed


def several(seeds: int, faults: list[dict[str, Any]], *workloads: dict[str, Any], **over: Any) -> None:
    for seed in range(seeds):
        disturbed(faults, *workloads, seed=seed, **over)


def test_answers_before_they_are_durable_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    post: Callable[..., None] = Durability._post
    monkeypatch.setattr(Durability, "_post", lambda self, _, subject, what: post(self, 0, subject, what))
    with pytest.raises(BrokenPromiseError, match="does not know it"):
        several(8, DEATHS, commit_ms=40, check_every_steps=0)


def test_a_start_that_is_not_kept_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = journal._task_changed

    def forgetful(found: dict[str, Any], state: State, task_id: str) -> TaskRecord | None:
        record = changed(found, state, task_id)
        kept = found.get(task_id)
        if isinstance(kept, KeptTask) and kept.outcome is None:
            record = state.tasks[task_id]
            attempt, record.attempt = record.attempt, 0
            found[task_id] = journal.kept_task(record)
            record.attempt = attempt
        return record

    monkeypatch.setattr(journal, "_task_changed", forgetful)
    with pytest.raises((BrokenPromiseError, AssertionError)):
        disturbed(DEATHS)


def test_a_start_while_replicas_are_awaited_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "is_held", property(lambda self: self.is_ending))
    with pytest.raises((BrokenPromiseError, AssertionError)):
        several(4, DEATHS)


def test_differing_text_that_is_let_pass_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "diverged", lambda _state, _event: None)
    with pytest.raises(BrokenPromiseError, match="other text than was delivered"):
        test_other_text_than_was_delivered_never_finishes()


def test_undone_tasks_that_live_on_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_give_up", lambda _state, _record: None)
    full = [{"kind": "storage", "at_s": 3 + 5 * n, "for_s": 1} for n in range(3)]
    with pytest.raises(BrokenPromiseError):
        several(4, full, {"on_refusal": {"kind": "retry"}})


def test_nothing_is_heard_while_there_is_no_scheduler() -> None:
    what = scenario(seconds=10, faults=[{"kind": "scheduler", "at_s": 3, "down_s": 4}])
    world = experiment.build(what, 1)
    world.run_until(5_000_000_000)
    steps = world.steps
    world.tell(ev.TimerFired())
    assert not world.is_up
    assert world.steps == steps
