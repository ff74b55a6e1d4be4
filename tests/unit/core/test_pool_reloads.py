"""Reloads: beside what serves, then in one step; canaries; rollback."""

from zlib import crc32

import pytest

from contracts.pools import LaunchEngine, NodeInfo, NodesSeen, ReplicaFaulted
from contracts.scheduling import ReplicaLost, ReplicaReady, ReplicaUnready
from tests.unit.core.core_kit import of, replica
from tests.unit.core.fleet_kit import Fleet, managed, pool


def session_at(low: int, high: int) -> str:
    """A session whose place among all is from `low` to below `high`, in percent."""
    return next(f"s{n}" for n in range(1000) if low <= crc32(f"s{n}".encode()) % 100 < high)


@pytest.mark.req("ORCH-2102", "ORCH-3031", "OC-CTRL-2003")
def test_the_old_replicas_serve_until_all_new_ones_are_ready() -> None:
    fleet = Fleet(managed(pool(replicas=2)))
    assert fleet.reload("other") is None
    assert fleet.phases() == {"pool-a-0": "ready", "pool-a-1": "ready", "pool-a-2": "starting", "pool-a-3": "starting"}
    fleet.submit("before")
    assert fleet.home_of("before") == "small"
    fleet.pass_ms(fleet.load_ms)
    fleet.submit("after")
    assert fleet.home_of("after") == "other"
    assert fleet.health().model_ref == "other"
    fleet.pass_ms(1000)
    assert fleet.outcomes["before"].state == fleet.outcomes["after"].state == "finished"
    assert fleet.phases() == {"pool-a-2": "ready", "pool-a-3": "ready"}
    assert fleet.notes() == ["reload_started", "reload_done"]


@pytest.mark.req("ORCH-3031")
def test_what_the_old_set_admitted_is_served_by_it_also_what_waits() -> None:
    fleet = Fleet()
    for n in range(3):
        fleet.submit(f"t{n}")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms - 1)
    fleet.submit("t3")
    fleet.pass_ms(150)
    assert fleet.home_of("t3") == "small"
    assert fleet.sets()["small"].closing == "pool pool-a serves other now"
    fleet.pass_ms(300)
    assert [fleet.outcomes[f"t{n}"].state for n in range(4)] == ["finished"] * 4
    assert list(fleet.sets()) == ["other"]
    assert list(fleet.orders) == ["pool-a-1"]


@pytest.mark.req("ORCH-3031")
def test_old_replicas_that_nothing_waits_for_go_before_the_last_task_ends() -> None:
    fleet = Fleet(managed(pool(replicas=2)))
    fleet.service_ms = None
    fleet.submit("long")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms)
    assert [name for name in fleet.phases() if name in ("pool-a-0", "pool-a-1")] == [fleet.running["long"].replica_id]
    fleet.finish("long")
    assert sorted(fleet.phases()) == ["pool-a-2", "pool-a-3"]


@pytest.mark.req("ORCH-3031")
def test_at_the_deadline_what_the_old_set_still_has_ends_and_may_be_sent_again() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("runs")
    fleet.submit("waits")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms + 9_999)
    fleet.progress("runs", 4)
    assert not fleet.outcomes
    fleet.pass_ms(10)
    for task_id in ("runs", "waits"):
        error = fleet.outcomes[task_id].error
        assert error is not None
        assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)
        assert error.retry_after_ms
        assert "serves other now" in error.message
    assert fleet.phases() == {"pool-a-1": "ready"}
    assert list(fleet.sets()) == ["other"]


@pytest.mark.req("ORCH-3031")
def test_a_pool_may_be_reloaded_with_the_model_it_has() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("old")
    assert fleet.reload("small") is None
    fleet.pass_ms(fleet.load_ms)
    assert fleet.phases() == {"pool-a-1": "ready", "pool-a-0": "draining"}
    fleet.submit("new")
    assert fleet.running["new"].replica_id == "pool-a-1"
    # The old one's time is up: what it runs goes on where its set still has a replica.
    fleet.progress("old", 4, digest=99)
    fleet.pass_ms(10_010)
    assert fleet.core.state_of("old") == "queued"
    fleet.finish("new")
    again = fleet.running["old"]
    assert (again.replica_id, again.attempt) == ("pool-a-1", 2)
    assert (again.resume_tokens, again.resume_digest) == (4, 99)
    fleet.finish("old")
    assert fleet.outcomes["old"].state == "finished"


@pytest.mark.req("ORCH-3031", "OC-CTRL-2003")
def test_a_new_replica_that_fails_twice_rolls_back_and_nothing_old_is_touched() -> None:
    fleet = Fleet()
    fleet.broken["other"] = "no such file"
    fleet.reload("other")
    fleet.pass_ms(5_000)
    health = fleet.health()
    assert health.reload is not None
    assert health.reload.state == "rolled_back"
    assert "pool-a-1 failed 2 times, the last by model: no such file" in (health.reload.why or "")
    assert fleet.last_note("rolled_back").kind == "model"
    assert fleet.phases() == {"pool-a-0": "ready"}
    assert health.last_error is not None
    assert (health.last_error.kind, health.last_error.stderr) == ("model", ["cannot load"])
    fleet.submit("t")
    assert fleet.home_of("t") == "small"
    assert list(fleet.sets()) == ["small"]
    assert fleet.rollback() is not None


@pytest.mark.req("ORCH-3031")
def test_new_replicas_that_do_not_come_up_in_time_are_rolled_back() -> None:
    fleet = Fleet(managed(pool(reload_timeout_ms=3_000)))
    fleet.stuck.append("other")
    fleet.reload("other")
    fleet.pass_ms(2_999)
    assert sorted(fleet.phases()) == ["pool-a-0", "pool-a-1"]
    fleet.pass_ms(2)
    reload = fleet.health().reload
    assert reload is not None
    assert (reload.state, reload.why) == ("rolled_back", "0 of 1 replicas were Ready after 3000 ms")
    assert list(fleet.orders) == ["pool-a-0"]


@pytest.mark.req("ORCH-3031", "ORCH-3011")
def test_without_devices_for_the_new_replicas_the_reason_says_what_to_do() -> None:
    fleet = Fleet(managed(pool(devices=("0",), accelerator="gpu", reload_timeout_ms=3_000)), start=False)
    fleet.tell(NodesSeen((NodeInfo("n0", gpus=1),)))
    fleet.pass_ms(fleet.load_ms)
    fleet.reload("other")
    assert fleet.phases() == {"pool-a-0": "ready", "pool-a-1": "pending"}
    fleet.pass_ms(3_001)
    reload = fleet.health().reload
    assert reload is not None
    assert "GPU 0 of node n0 is held by pool-a-0; drain the pool first, or lower its replicas" in (reload.why or "")
    assert fleet.phases() == {"pool-a-0": "ready"}


@pytest.mark.req("ORCH-2102")
def test_what_cannot_be_done_is_refused_and_says_what_can() -> None:
    fleet = Fleet()
    unknown = fleet.reload("small", pool_id="pool-z")
    assert unknown is not None
    assert (unknown.code, unknown.message) == ("NOT_FOUND", "no pool 'pool-z' is managed here; managed: pool-a")
    foreign = fleet.reload("foreign")
    assert foreign is not None
    assert foreign.code == "INVALID_PARAMS"
    assert foreign.message.endswith("known: other, small, third")
    for canary in (0, 100):
        share = fleet.reload("other", canary)
        assert share is not None
        assert share.code == "INVALID_PARAMS"
    alike = fleet.reload("small", 10)
    assert alike is not None
    assert alike.code == "INVALID_PARAMS"
    for asked in (fleet.promote(), fleet.rollback()):
        assert asked is not None
        assert asked.code == "CONFLICT"
    assert fleet.reload("other") is None
    second = fleet.reload("third")
    assert second is not None
    assert (second.code, "a reload to other is under way" in second.message) == ("CONFLICT", True)
    drain = fleet.drain(0)
    assert drain is not None
    assert drain.code == "CONFLICT"


@pytest.mark.req("ORCH-3033")
def test_a_canary_takes_its_share_of_the_sessions_until_it_is_promoted() -> None:
    fleet = Fleet()
    fleet.reload("other", canary=30)
    canary, main = session_at(0, 30), session_at(30, 100)
    fleet.submit("early", session_id=canary)
    assert fleet.home_of("early") == "small"
    fleet.pass_ms(fleet.load_ms)
    assert fleet.health().reload is not None
    assert fleet.notes()[-1] == "canary_started"
    for n in range(2):
        fleet.submit(f"c{n}", session_id=canary)
        fleet.submit(f"m{n}", session_id=main)
        assert (fleet.home_of(f"c{n}"), fleet.home_of(f"m{n}")) == ("other", "small")
    fleet.submit("by-name", session_id=main, model_ref="other")
    assert fleet.home_of("by-name") == "other"
    fleet.submit("by-digest", session_id=canary, model_ref="sha256:small")
    assert fleet.home_of("by-digest") == "small"
    busy = fleet.reload("third")
    assert busy is not None
    assert "promote it or roll it back" in busy.message
    assert fleet.promote() is None
    fleet.submit("all", session_id=main)
    assert fleet.home_of("all") == "other"
    fleet.pass_ms(1_000)
    assert fleet.notes() == ["reload_started", "canary_started", "reload_done"]
    assert all(outcome.state == "finished" for outcome in fleet.outcomes.values())


@pytest.mark.req("ORCH-3033")
def test_a_canary_without_a_ready_replica_gives_its_sessions_back() -> None:
    fleet = Fleet()
    fleet.reload("other", canary=30)
    fleet.pass_ms(fleet.load_ms)
    fleet.tell(ReplicaLost("pool-a-1", "gone"))
    fleet.submit("t", session_id=session_at(0, 30))
    assert fleet.home_of("t") == "small"


@pytest.mark.req("ORCH-3033")
def test_a_canary_is_rolled_back_by_one_request_and_ends_what_it_has() -> None:
    fleet = Fleet()
    fleet.reload("other", canary=30)
    fleet.pass_ms(fleet.load_ms)
    canary = session_at(0, 30)
    fleet.submit("c0", session_id=canary)
    assert fleet.rollback() is None
    fleet.submit("c1", session_id=canary)
    assert (fleet.home_of("c0"), fleet.home_of("c1")) == ("other", "small")
    fleet.submit("by-name", model_ref="other")
    assert fleet.refusals["by-name"].code == "INVALID_PARAMS"
    fleet.pass_ms(1_000)
    assert fleet.outcomes["c0"].state == fleet.outcomes["c1"].state == "finished"
    assert fleet.phases() == {"pool-a-0": "ready"}
    reload = fleet.health().reload
    assert reload is not None
    assert (reload.state, reload.why) == ("rolled_back", "it was asked for")


@pytest.mark.req("ORCH-3031", "ORCH-3033")
def test_a_reload_under_way_is_rolled_back_at_once() -> None:
    fleet = Fleet()
    fleet.reload("other")
    assert fleet.rollback() is None
    assert fleet.phases() == {"pool-a-0": "ready"}
    fleet.pass_ms(1_000)
    assert fleet.phases() == {"pool-a-0": "ready"}
    assert fleet.health().model_ref == "small"


@pytest.mark.req("ORCH-3031")
def test_a_reload_that_is_done_is_undone_while_its_old_replicas_still_work() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("old")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms)
    assert fleet.rollback() is None
    fleet.pass_ms(fleet.load_ms)
    fleet.submit("new")
    assert fleet.home_of("new") == "small"
    assert fleet.sets()["small"].closing == ""
    fleet.finish("old")
    fleet.finish("new")
    assert fleet.phases() == {"pool-a-2": "ready"}


@pytest.mark.req("ORCH-2102")
def test_a_drained_pool_comes_back_by_a_reload() -> None:
    fleet = Fleet()
    fleet.drain(1_000)
    canary = fleet.reload("other", 10)
    assert canary is not None
    assert "leave canary_percent out" in canary.message
    assert fleet.reload("small") is None
    assert fleet.core.scheduler.readiness() == {"pool-a": "drained"}
    fleet.pass_ms(fleet.load_ms)
    fleet.submit("t")
    assert fleet.home_of("t") == "small"
    assert not fleet.health().drained


@pytest.mark.req("ORCH-2102")
def test_a_failed_reload_leaves_a_drained_pool_drained() -> None:
    fleet = Fleet()
    fleet.drain(0)
    fleet.broken["other"] = "bad file"
    fleet.reload("other")
    fleet.pass_ms(5_000)
    health = fleet.health()
    assert health.drained
    assert health.reload is not None
    assert health.reload.state == "rolled_back"
    assert not health.replicas


@pytest.mark.req("ORCH-3053")
def test_failures_of_what_is_rolled_back_leave_no_breaker_open() -> None:
    fleet = Fleet(managed(pool(replicas=6)))
    fleet.broken["other"] = "bad file"
    fleet.reload("other")
    fleet.pass_ms(5_000)
    assert fleet.health().breaker == "closed"
    assert fleet.health().metrics.replicas_ready == 6


@pytest.mark.req("ORCH-3031", "ORCH-3038")
def test_a_fault_of_an_old_replica_while_it_finishes_its_work_brings_no_new_engine() -> None:
    fleet = Fleet(managed(pool(drain_ms=300_000)))
    fleet.service_ms = None
    fleet.submit("old")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms)
    assert fleet.phases() == {"pool-a-1": "ready", "pool-a-0": "ready"}
    fleet.tell(ReplicaFaulted("pool-a-0", "driver", "error 79"))
    assert fleet.phases() == {"pool-a-1": "ready", "pool-a-0": "draining"}
    launches = [each.replica_id for each in of(fleet.said, LaunchEngine)]
    fleet.finish("old")
    assert fleet.outcomes["old"].state == "finished"
    fleet.pass_ms(60_000)
    assert fleet.phases() == {"pool-a-1": "ready"}
    assert [each.replica_id for each in of(fleet.said, LaunchEngine)] == launches
    assert list(fleet.sets()) == ["other"]


@pytest.mark.req("ORCH-3031", "ORCH-3038")
def test_what_waits_for_an_old_faulty_replica_is_served_once_it_has_a_new_engine() -> None:
    fleet = Fleet(managed(pool(drain_ms=300_000)))
    fleet.service_ms = None
    fleet.submit("runs")
    fleet.submit("waits")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms)
    fleet.tell(ReplicaFaulted("pool-a-0", "driver", "error 79"))
    fleet.finish("runs")
    fleet.pass_ms(500 + fleet.load_ms)
    assert fleet.running["waits"].replica_id == "pool-a-0"
    fleet.finish("waits")
    assert fleet.phases() == {"pool-a-1": "ready"}


@pytest.mark.req("ORCH-3033", "ORCH-3038")
def test_a_fault_of_a_new_replica_leaves_the_reload_to_its_launches() -> None:
    fleet = Fleet(managed(pool(replicas=2)))
    fleet.stuck.append("other")
    fleet.reload("other")
    fleet.pass_ms(1)
    fleet.tell(ReplicaReady(replica("pool-a-2", model_digest="sha256:other")))
    fleet.tell(ReplicaFaulted("pool-a-2", "ecc", "double-bit error"))
    assert fleet.phases()["pool-a-2"] == "waiting"
    fleet.stuck.clear()
    fleet.tell(ReplicaReady(replica("pool-a-3", model_digest="sha256:other")))
    assert fleet.health().model_ref == "small"
    fleet.pass_ms(1_000)
    assert fleet.health().model_ref == "other"
    assert fleet.phases() == {"pool-a-2": "ready", "pool-a-3": "ready"}


@pytest.mark.req("ORCH-3033")
def test_a_canary_is_not_promoted_while_one_of_its_replicas_is_down() -> None:
    fleet = Fleet(managed(pool(replicas=2)))
    fleet.reload("other", canary=50)
    fleet.pass_ms(fleet.load_ms)
    fleet.tell(ReplicaUnready("pool-a-2", "it broke", "exit"))
    error = fleet.promote()
    assert error is not None
    assert error.code == "CONFLICT"
    assert "not all replicas of the canary are Ready" in error.message
    fleet.pass_ms(10_000)
    assert fleet.promote() is None
    assert fleet.health().model_ref == "other"
