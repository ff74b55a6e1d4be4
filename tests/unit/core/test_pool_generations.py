"""Replica sets that come and go with what pools serve, and the names that lead to them."""

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import BreakerPolicy
from orchestrator.core.digest import digest
from tests.unit.core.core_kit import queue, replica_set, task
from tests.unit.core.fleet_kit import Fleet, managed, pool


def reloaded(fleet: Fleet, model_ref: str, pool_id: str = "pool-a") -> None:
    assert fleet.reload(model_ref, pool_id=pool_id) is None
    fleet.pass_ms(fleet.load_ms)
    fleet.pass_ms(1_000)
    assert fleet.health(pool_id).model_ref == model_ref


def leads_to(fleet: Fleet, name: str) -> str:
    """The model behind a name, or what a task that asks for it is told."""
    found = fleet.core.scheduler.state.routes.find(task("t", model_ref=name))
    return found.message if isinstance(found, ErrorInfo) else found.policy.model_refs[0]


def two_sets() -> Fleet:
    other = managed(pool("pool-b", model_ref="other"), set_id="llamacpp/other/-/100/v1", model_refs=("other",))
    return Fleet(managed(pool("pool-a")), other)


@pytest.mark.req("ORCH-3007")
def test_a_new_set_is_the_pools_own_with_the_model_exchanged() -> None:
    fleet = Fleet(managed(set_id="llamacpp/small/q8/100/v1", model_refs=("small", "tiny"), capacity=5))
    reloaded(fleet, "other")
    (home,) = fleet.core.scheduler.state.sets
    assert (home.policy.set_id, home.policy.model_refs) == ("llamacpp/other/q8/100/v1", ("other",))
    assert (home.policy.capacity, home.policy.pool_ids) == (5, ("pool-a",))
    reloaded(fleet, "small")
    (home,) = fleet.core.scheduler.state.sets
    assert (home.policy.set_id, home.policy.model_refs) == ("llamacpp/small/q8/100/v1", ("small", "tiny"))


@pytest.mark.req("ORCH-3007")
def test_a_pool_joins_the_set_that_serves_its_new_model() -> None:
    fleet = two_sets()
    reloaded(fleet, "other")
    (home,) = fleet.core.scheduler.state.sets
    assert home.policy.pool_ids == ("pool-b", "pool-a")
    assert sorted(home.ready) == ["pool-a-1", "pool-b-0"]
    fleet.service_ms = None
    fleet.submit("t0", model_ref="other")
    fleet.submit("t1", model_ref="other")
    assert sorted(start.replica_id for start in fleet.running.values()) == ["pool-a-1", "pool-b-0"]
    for task_id in ("t0", "t1"):
        fleet.finish(task_id)
    reloaded(fleet, "small")
    assert {model: home.policy.pool_ids for model, home in fleet.sets().items()} == {
        "other": ("pool-b",),
        "small": ("pool-a",),
    }


@pytest.mark.req("ORCH-3007")
def test_sets_of_another_quantisation_are_not_joined() -> None:
    other = managed(pool("pool-b", model_ref="other"), set_id="llamacpp/other/q4/100/v1", model_refs=("other",))
    fleet = Fleet(managed(pool("pool-a")), other)
    reloaded(fleet, "other")
    assert [home.policy.pool_ids for home in fleet.core.scheduler.state.sets] == [("pool-b",), ("pool-a",)]


@pytest.mark.req("ORCH-3040")
def test_breakers_and_canary_shares_follow_the_pools_of_a_set() -> None:
    policy = BreakerPolicy(samples_min=2)
    fleet = Fleet(managed(pool("pool-a"), pool("pool-c", canary_percent=20), breaker=policy))
    (home,) = fleet.core.scheduler.state.sets
    assert len(home.canaries.indexes) == 2
    reloaded(fleet, "other", "pool-c")
    assert len(home.canaries.indexes) == 1
    assert {pool_id for pool_id, _, _ in home.breakers.states(0)} == {"pool-a"}
    left = fleet.sets()["other"]
    assert left.canaries.index_of_pool["pool-c"] is left.canaries.main
    reloaded(fleet, "small", "pool-c")
    assert {pool_id for pool_id, _, _ in home.breakers.states(0)} == {"pool-a", "pool-c"}
    assert len(home.canaries.indexes) == 2


@pytest.mark.req("ORCH-3014", "ORCH-3031")
def test_a_name_goes_with_the_last_pool_of_its_set_and_comes_back_with_it() -> None:
    fleet = Fleet(managed(pool("pool-a"), pool("pool-b")))
    reloaded(fleet, "other", "pool-a")
    assert (leads_to(fleet, "small"), leads_to(fleet, "other")) == ("small", "other")
    reloaded(fleet, "third", "pool-b")
    assert (leads_to(fleet, "small"), leads_to(fleet, "other")) == ("third", "other")
    assert fleet.rollback("pool-b") is None
    fleet.pass_ms(1_000)
    assert leads_to(fleet, "small") == "small"
    assert leads_to(fleet, "third") == "model 'third' is not served by llamacpp; served: other, small"


@pytest.mark.req("ORCH-3014", "ORCH-3031")
def test_a_configured_name_always_leads_somewhere() -> None:
    fleet = Fleet(managed(pool("pool-a"), pool("pool-b")))
    reloaded(fleet, "other", "pool-a")
    reloaded(fleet, "small", "pool-a")
    reloaded(fleet, "third", "pool-b")
    reloaded(fleet, "other", "pool-a")
    assert leads_to(fleet, "small") == "other"


@pytest.mark.req("ORCH-3014", "ORCH-3033")
def test_a_canary_alone_holds_no_name() -> None:
    fleet = Fleet(managed(pool("pool-a"), pool("pool-b")))
    reloaded(fleet, "third", "pool-b")
    assert fleet.reload("small", canary=50, pool_id="pool-b") is None
    fleet.pass_ms(fleet.load_ms)
    reloaded(fleet, "other", "pool-a")
    assert leads_to(fleet, "small") == "small"
    assert fleet.rollback("pool-b") is None
    assert leads_to(fleet, "small") == "other"


@pytest.mark.req("ORCH-3014")
def test_a_name_that_another_set_bears_does_not_go_along() -> None:
    wide = managed(pool("pool-b"), set_id="llamacpp/small/-/200/v1", ctx=200)
    fleet = Fleet(managed(pool("pool-a")), wide)
    # The fleet's replicas have a context of 100, so those of the wide set are refused: its name stays all the same.
    assert fleet.reload("other") is None
    fleet.pass_ms(1_000)
    found = fleet.core.scheduler.state.routes.find(task("t"))
    assert not isinstance(found, ErrorInfo)
    assert found.policy.ctx == 200


@pytest.mark.req("ORCH-3014", "ORCH-3024")
def test_a_digest_leads_to_replicas_of_exactly_that_model_or_nowhere() -> None:
    fleet = two_sets()
    assert leads_to(fleet, "sha256:small") == "small"
    assert leads_to(fleet, "sha256:other") == "other"
    assert leads_to(fleet, "sha256:ff") == "model 'sha256:ff' is not served by llamacpp; served: other, small"
    reloaded(fleet, "third")
    assert leads_to(fleet, "small") == "third"
    assert "is not served by llamacpp" in leads_to(fleet, "sha256:small")


@pytest.mark.req("ORCH-3014", "ORCH-3018")
def test_a_digest_is_known_through_a_short_outage() -> None:
    fleet = Fleet()
    fleet.drain(0)
    fleet.submit("t", model_ref="sha256:small")
    assert fleet.refusals["t"].code == "POOL_UNAVAILABLE"


def test_pools_without_scaling_stay_as_they_are() -> None:
    fleet = Fleet(replica_set(queues=(queue("interactive"), queue("batch"))), managed(pool("pool-b"), set_id="b"))
    refused = fleet.reload("other", pool_id="pool-a")
    assert refused is not None
    assert refused.message == "no pool 'pool-a' is managed here; managed: pool-b"
    reloaded(fleet, "other", "pool-b")
    assert [home.policy.set_id for home in fleet.core.scheduler.state.sets] == ["set-a", "llamacpp/other/-/100/v1"]
    assert leads_to(fleet, "small") == "small"


@pytest.mark.req("ORCH-3024")
def test_the_same_events_lead_to_the_same_decisions_about_pools() -> None:
    digests: list[str] = []
    for model_ref in ("other", "other", "third"):
        fleet = Fleet(managed(pool(replicas=2)))
        fleet.submit("t")
        fleet.reload(model_ref, canary=10)
        fleet.pass_ms(1_000)
        digests.append(digest(fleet.core.scheduler))
    assert digests[0] == digests[1] != digests[2]
