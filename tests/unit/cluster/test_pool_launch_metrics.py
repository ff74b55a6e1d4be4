"""Launches of engines are counted once each, by how they ended."""

import pytest

from contracts.pools import FaultKind
from tests.unit.cluster.test_pool_telemetry import Page


@pytest.mark.req("OC-POOL-3030")
def test_launches_are_counted_by_their_end() -> None:
    page = Page()
    page.order()
    kinds: tuple[FaultKind, ...] = ("headroom", "model", "headroom")
    for kind in kinds:
        page.launch()
        page.unready(kind)
        page.restart(kind)
    page.launch()
    assert page.outcomes == {"headroom": 2, "model": 1}
    page.ready()
    assert page.outcomes == {"headroom": 2, "model": 1, "ready": 1}
    assert page.value("preload_outcomes_total", outcome="ready") == 1


@pytest.mark.req("OC-POOL-3030")
def test_an_engine_that_fails_after_it_served_is_no_failed_launch() -> None:
    page = Page()
    page.order()
    page.launch()
    page.ready()
    page.unready("exit")
    page.restart("exit")
    page.lost()
    page.gone("node")
    assert page.outcomes == {"ready": 1}


@pytest.mark.req("OC-POOL-3030")
def test_a_replica_that_says_ready_again_was_not_launched_again() -> None:
    """Its link was cut, once while the engine came up and once later; the engine is the same."""
    page = Page()
    page.order()
    page.launch()
    page.lost()
    page.launch()
    page.ready()
    page.lost()
    page.ready()
    assert page.outcomes == {"ready": 1}


@pytest.mark.req("OC-POOL-3030")
def test_replicas_are_launched_each_for_itself() -> None:
    page = Page()
    for replica_id in ("pool-0", "pool-1"):
        page.order(replica_id)
        page.launch(replica_id)
    page.unready("model", "pool-1")
    page.unready("launch", "pool-2")
    page.ready()
    page.unready("exit", "pool-1")
    assert page.outcomes == {"model": 1, "ready": 1}


@pytest.mark.req("OC-POOL-3030")
@pytest.mark.parametrize("kind", ["actor", "node"])
def test_a_launch_ends_with_its_actor(kind: FaultKind) -> None:
    page = Page()
    page.order(incarnation=2)
    page.launch()
    page.gone("xid", incarnation=1)  # late: another one than the one that is launched
    page.lost()
    assert page.outcomes == {}
    page.gone(kind, incarnation=2)
    page.order(incarnation=3)
    assert page.outcomes == {kind: 1}


@pytest.mark.req("OC-POOL-3030")
@pytest.mark.parametrize(("told", "counted"), [(None, "actor"), ("lease", "lease")])
def test_a_launch_of_which_nothing_is_heard_ends_when_another_actor_is_ordered(
    told: FaultKind | None, counted: str
) -> None:
    page = Page()
    page.order()
    page.launch()
    if told is not None:
        page.restart(told)
    assert page.outcomes == {}
    page.order(incarnation=2)
    page.gone("exit", incarnation=1)
    assert page.outcomes == {counted: 1}


@pytest.mark.req("OC-POOL-3030")
def test_a_launch_of_a_replica_that_is_retired_has_no_outcome() -> None:
    page = Page()
    page.order()
    page.launch()
    page.retire()
    page.unready("exit")
    page.gone("actor")
    assert page.outcomes == {}
