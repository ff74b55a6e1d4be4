"""Who loses the place in a full queue: soft preemption and eviction by predicted completion (ORCH-3080, ORCH-3085)."""

from typing import Any

import pytest

from contracts.policies import PreemptionPolicy
from contracts.scheduling import Admit, Finish, Reject
from tests.unit.core.core_kit import Core, of, one, queue, replica, replica_set


def core(mode: Any = "soft", full: Any = "reject", **over: Any) -> Core:
    protect = over.pop("protect", ())
    values: dict[str, Any] = {
        "capacity": 3,
        "queues": (queue("interactive", 3, full), queue("batch", 3, full), queue("idle", 3, full)),
        "fairness": "wfq",
        "ordering": "edf",
        "eviction": "eta",
        "on_time_percent_min": 50,
        "wall_timeout_ms": 60_000,
        "idle_timeout_ms": 60_000,
        "preemption": PreemptionPolicy(mode, protect=protect),
    }
    made = Core(replica_set(**values | over), ready=(replica(),))
    made.submit("runs")
    return made


def dropped(commands: list[Any]) -> list[str]:
    return [finish.task_id for finish in of(commands, Finish) if finish.outcome.state == "dropped"]


@pytest.mark.req("ORCH-3085", "ORCH-3004")
def test_a_waiting_task_of_a_lower_class_gives_up_its_place_and_is_told_why() -> None:
    made = core()
    for n in range(3):
        made.submit(f"b{n}", priority="batch")
    commands = made.submit("high")
    assert [type(command) for command in commands[:2]] == [Finish, Admit]
    outcome = one(commands, Finish).outcome
    error = outcome.error
    assert error is not None
    assert (outcome.state, error.code, error.policy_label, error.retriable) == (
        "dropped",
        "ADMISSION_REJECT",
        "shed-low-priority",
        True,
    )
    assert (error.retry_after_ms or 0) >= 1
    assert error.message == (
        f"gave up its place in a full queue to a task of a higher class; try again in {error.retry_after_ms} ms"
    )
    assert made.state_of("high") == "queued"


@pytest.mark.req("ORCH-3085")
@pytest.mark.parametrize("over", [{"mode": "off"}, {"protect": ("batch",)}])
def test_nobody_gives_way_where_it_is_off_or_protected(over: dict[str, Any]) -> None:
    made = core(**over)
    for n in range(3):
        made.submit(f"b{n}", priority="batch")
    commands = made.submit("high")
    assert not dropped(commands)
    assert one(commands, Reject).error.code == "ADMISSION_REJECT"


@pytest.mark.req("ORCH-3085")
def test_nobody_gives_way_to_its_own_or_a_lower_class() -> None:
    made = core()
    for n in range(3):
        made.submit(f"b{n}", priority="batch")
    assert one(made.submit("same", priority="batch"), Reject)
    assert one(made.submit("lower", priority="idle"), Reject)


@pytest.mark.req("ORCH-3085")
def test_the_lowest_class_gives_way_first() -> None:
    made = core()
    for priority in ("idle", "batch", "idle"):
        made.submit(f"{priority}{made.numbers}", priority=priority)
    assert [dropped(made.submit(f"h{n}"))[0][:4] for n in range(3)] == ["idle", "idle", "batc"]


@pytest.mark.req("ORCH-3085")
def test_a_class_over_its_own_bound_takes_no_place_of_another() -> None:
    made = core(queues=(queue("interactive", 1), queue("batch", 3)))
    made.submit("high")
    made.submit("b", priority="batch")
    made.submit("c", priority="batch")
    commands = made.submit("too-many")
    assert not dropped(commands)
    assert one(commands, Reject).error.code == "ADMISSION_REJECT"


@pytest.mark.req("ORCH-3080")
def test_one_that_starts_last_goes_before_one_that_starts_soon() -> None:
    made = core()
    for n, deadline_ms in enumerate((3_000, 9_000, 6_000)):
        made.submit(f"b{n}", priority="batch", deadline_ms=deadline_ms)
    assert dropped(made.submit("high")) == ["b1"]


@pytest.mark.req("ORCH-3080")
def test_one_that_will_be_late_anyway_goes_first_of_all() -> None:
    made = core()
    made.submit("soon", priority="batch", deadline_ms=400)
    made.submit("later", priority="batch", deadline_ms=9_000)
    made.submit("last", priority="batch", deadline_ms=20_000)
    # What runs takes longer than foreseen: the first can no longer be on time.
    made.pass_ms(399)
    assert dropped(made.submit("high", deadline_ms=60_000)) == ["soon"]


@pytest.mark.req("ORCH-3080", "ORCH-3005")
@pytest.mark.parametrize(("eviction", "victim"), [("eta", "b1"), ("lru", "b0")])
def test_drop_lru_takes_the_oldest_or_the_one_that_misses_least(eviction: str, victim: str) -> None:
    made = core(mode="off", full="drop-lru", eviction=eviction)
    for n, deadline_ms in enumerate((3_000, 9_000, 6_000)):
        made.submit(f"b{n}", priority="batch", deadline_ms=deadline_ms)
    commands = made.submit("new", priority="batch", deadline_ms=5_000)
    assert dropped(commands) == [victim]
    error = one(commands, Finish).outcome.error
    assert error is not None
    assert error.code == "QUEUE_FULL_DROP_LRU"


@pytest.mark.req("ORCH-3085", "ORCH-3079")
def test_nobody_is_dropped_for_one_that_is_refused_anyway() -> None:
    made = core()
    for n in range(3):
        made.submit(f"b{n}", priority="batch", deadline_ms=60_000)
    commands = made.submit("hopeless", deadline_ms=1)
    assert not dropped(commands)
    assert one(commands, Reject).error.code == "DEADLINE_UNMET"
    assert [made.state_of(f"b{n}") for n in range(3)] == ["queued"] * 3
