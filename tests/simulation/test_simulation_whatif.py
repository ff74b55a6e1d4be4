"""What would have become of a refused task? The same world again, with that one task let in."""

import pytest

from orchestrator.simulation import experiment
from orchestrator.simulation.ledger import TaskRow
from tests.simulation.sim_kit import ran, scenario

MS = 1_000_000
WHAT = scenario({"arrivals": {"kind": "poisson", "per_second": 4}, "deadline_ms": 10_000})


@pytest.fixture(scope="module")
def rows() -> dict[str, TaskRow]:
    return {row.task_id: row for row in ran(WHAT).clients.ledger.rows()}


def refused(rows: dict[str, TaskRow]) -> TaskRow:
    return [row for row in rows.values() if row.outcome == "refused DEADLINE_UNMET"][20]


@pytest.mark.req("ORCH-3079")
def test_a_refused_task_is_let_in_with_the_deadline_that_it_was_told(rows: dict[str, TaskRow]) -> None:
    told = refused(rows)
    fate = experiment.what_if(WHAT, 1, told.task_id, told.earliest_deadline_ms)
    assert fate is not None
    assert fate.admitted_ns == told.arrived_ns == fate.arrived_ns
    assert fate.outcome in ("finished", "failed DEADLINE_UNMET")
    # It is judged by its own deadline, not by the one it was let in with.
    assert fate.deadline_ns == told.deadline_ns == told.arrived_ns + 10_000 * MS
    assert fate.on_time == (fate.outcome == "finished" and fate.ended_ns <= told.deadline_ns)


def test_up_to_the_task_nothing_is_different(rows: dict[str, TaskRow]) -> None:
    told = refused(rows)
    other = experiment.build(WHAT, 1, deadline_override={told.task_id: 60_000})
    other.run()
    again = {row.task_id: row for row in other.clients.ledger.rows()}
    before = [row for row in rows.values() if row.ended_ns < told.arrived_ns]
    assert len(before) > 40
    assert all(again[row.task_id] == row for row in before)
    assert again[told.task_id].outcome != told.outcome
    assert {row.task_id: row.arrived_ns for row in again.values()} == {
        row.task_id: row.arrived_ns for row in rows.values()
    }


def test_a_task_that_never_comes_has_no_fate() -> None:
    assert experiment.what_if(WHAT, 1, "chat.999999", 60_000) is None
