"""A pool that is scaled to zero: its queue is the waiting room."""

import pytest

from contracts.pools import NodeInfo, NodesSeen
from contracts.scheduling import MeasurePrompt
from tests.unit.core.core_kit import of
from tests.unit.core.fleet_kit import Fleet, managed, pool


def scaled(**more: object) -> Fleet:
    return Fleet(managed(pool(replicas=2, least=0, **more), on_time_percent_min=50))


@pytest.mark.req("ORCH-3018")
def test_a_task_for_a_pool_at_zero_is_admitted_and_brings_a_replica() -> None:
    fleet = scaled()
    assert fleet.phases() == {}
    assert fleet.core.scheduler.is_ready()
    fleet.submit("first")
    fleet.submit("second")
    assert not fleet.refusals
    assert list(fleet.phases()) == ["pool-a-0"]
    fleet.pass_ms(fleet.load_ms)
    assert "first" in fleet.running
    fleet.pass_ms(500)
    assert fleet.outcomes["first"].state == fleet.outcomes["second"].state == "finished"
    assert "scaled_up" in fleet.notes()


@pytest.mark.req("ORCH-3029")
def test_the_predicted_start_includes_the_time_to_load() -> None:
    fleet = scaled()
    fleet.submit("t")
    # As long as loading is guessed to take while none was seen.
    assert fleet.admitted["t"].predicted_start_ms >= 10_000


@pytest.mark.req("ORCH-3079")
def test_a_deadline_that_loading_takes_up_is_refused() -> None:
    fleet = scaled()
    fleet.submit("t", deadline_ms=3_000)
    assert fleet.refusals["t"].code == "DEADLINE_UNMET"
    assert fleet.phases() == {}


@pytest.mark.req("ORCH-3015")
def test_a_prompt_that_nobody_can_measure_is_admitted_by_its_estimate() -> None:
    fleet = scaled()
    fleet.submit("t", templated=True)
    assert "t" in fleet.admitted
    assert not of(fleet.said, MeasurePrompt)
    fleet.pass_ms(1_000)
    assert fleet.outcomes["t"].state == "finished"


@pytest.mark.req("ORCH-3018")
def test_once_launches_fail_it_is_an_outage_again_and_says_why() -> None:
    fleet = scaled()
    fleet.broken["small"] = "no such file"
    fleet.submit("t")
    fleet.pass_ms(fleet.load_ms)
    fleet.submit("late")
    refused = fleet.refusals["late"]
    assert (refused.code, refused.retriable) == ("POOL_UNAVAILABLE", True)
    assert "(model: no such file)" in refused.message
    assert not fleet.core.scheduler.is_ready()
    fleet.broken.clear()
    fleet.pass_ms(3_000)
    assert fleet.outcomes["t"].state == "finished"


@pytest.mark.req("ORCH-3018")
def test_after_failures_an_empty_pool_is_tried_again() -> None:
    fleet = scaled()
    fleet.broken["small"] = "no such file"
    fleet.submit("t", deadline_ms=60_000)
    fleet.pass_ms(400_000)
    assert fleet.outcomes["t"].state == "failed"
    assert fleet.phases() == {}
    fleet.broken.clear()
    fleet.submit("again")
    fleet.pass_ms(120_000)
    assert fleet.outcomes["again"].state == "finished"


@pytest.mark.req("ORCH-3018")
def test_a_pool_that_is_never_empty_refuses_while_it_loads() -> None:
    fleet = Fleet(managed(pool(replicas=2, least=1)), start=False)
    fleet.submit("before-any-node")
    fleet.tell(NodesSeen((NodeInfo("n0"),)))
    fleet.pass_ms(fleet.load_ms - 1)
    fleet.submit("loading")
    assert fleet.refusals["before-any-node"].code == "POOL_UNAVAILABLE"
    assert fleet.refusals["loading"].code == "POOL_UNREADY"
    assert fleet.core.scheduler.readiness() == {"pool-a": "loading"}


@pytest.mark.req("ORCH-3018", "ORCH-2101")
def test_a_pool_at_zero_that_is_drained_takes_nothing() -> None:
    fleet = scaled()
    fleet.drain(0)
    fleet.submit("t")
    assert fleet.refusals["t"].code == "POOL_UNAVAILABLE"
    assert not fleet.core.scheduler.is_ready()


@pytest.mark.req("ORCH-2102")
def test_a_pool_at_zero_proves_a_new_model_before_it_takes_it() -> None:
    fleet = scaled()
    fleet.reload("other")
    assert list(fleet.phases()) == ["pool-a-0"]
    fleet.pass_ms(fleet.load_ms)
    assert fleet.health().model_ref == "other"
    fleet.pass_ms(300_000)
    assert fleet.phases() == {}
    fleet.submit("t")
    fleet.pass_ms(1_000)
    assert fleet.outcomes["t"].state == "finished"
    assert list(fleet.sets()) == ["other"]
