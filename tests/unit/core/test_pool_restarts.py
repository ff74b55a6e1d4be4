"""Launches that fail: backoff, breaker, capacity after a full GPU, and faults told by the GPU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.policies import RestartPolicy
from contracts.pools import FaultKind, LaunchEngine, NotePool, OrderReplica, ReplicaFaulted, ReplicaGone
from contracts.scheduling import ReplicaUnready, Start
from orchestrator.core.pools import restarts
from tests.unit.core.core_kit import MS, ended, of, one
from tests.unit.core.pool_kit import EXACT, Fleet, changes, pool


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
@given(
    failures=st.integers(0, 10_000),
    least_ms=st.integers(1, 5_000),
    more_ms=st.integers(0, 100_000),
    jitter=st.integers(0, 100),
    seed=st.integers(0, 2**63),
)
def test_the_wait_doubles_within_its_bounds(failures: int, least_ms: int, more_ms: int, jitter: int, seed: int) -> None:
    policy = RestartPolicy(least_ms, least_ms + more_ms, jitter)
    plain = RestartPolicy(least_ms, least_ms + more_ms, 0)
    base_ns = restarts.backoff_ns(plain, failures, seed, "r")
    assert base_ns == min(least_ms * 2 ** max(0, failures - 1), least_ms + more_ms) * MS
    wait_ns = restarts.backoff_ns(policy, failures, seed, "r")
    assert base_ns <= wait_ns <= base_ns * (100 + jitter) // 100
    assert wait_ns == restarts.backoff_ns(policy, failures, seed, "r")


@pytest.mark.req("ORCH-3053")
def test_jitter_sets_replicas_apart() -> None:
    waits = {restarts.backoff_ns(RestartPolicy(), 3, 7, f"pool-a-{n}") for n in range(50)}
    assert len(waits) > 40
    assert waits != {restarts.backoff_ns(RestartPolicy(), 3, 8, f"pool-a-{n}") for n in range(50)}


@pytest.mark.req("ORCH-3003", "ORCH-3053", "OC-POOL-3003", "OC-POOL-3011")
def test_a_launch_that_fails_is_tried_again_after_ever_longer_waits() -> None:
    fleet = Fleet(pool(replicas=1, restart=RestartPolicy(500, 3_000, 0, breaker_failures=99)))
    fleet.come("pool-a-0")
    for wait_ms in (500, 1_000, 2_000, 3_000, 3_000):
        note = one(fleet.fail("pool-a-0", "headroom", "2 GiB of VRAM short"), NotePool)
        assert (note.change, note.kind) == ("restart", "headroom")
        assert note.reason == f"2 GiB of VRAM short; tried again in {wait_ms} ms"
        assert not of(fleet.pass_ms(wait_ms - 1), LaunchEngine)
        assert one(fleet.pass_ms(1), LaunchEngine).replica_id == "pool-a-0"
    assert fleet.pool().restarts == fleet.member("pool-a-0").restarts == 5
    fault = fleet.pool().fault
    assert fault is not None
    assert (fault.kind, fault.reason, fault.replica_id) == ("headroom", "2 GiB of VRAM short", "pool-a-0")


@pytest.mark.req("OC-POOL-3003")
def test_the_engines_last_lines_are_kept() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.come("pool-a-0")
    fleet.tell(ReplicaUnready("pool-a-0", "exited", "exit", ("line 1", "line 2")))
    fault = fleet.member("pool-a-0").fault
    assert fault is not None
    assert fault.stderr == ("line 1", "line 2")
    # Told again while it waits: noted, not counted.
    assert not fleet.fail("pool-a-0", "model", "no such file")
    assert fleet.member("pool-a-0").failures == 1
    fault = fleet.member("pool-a-0").fault
    assert fault is not None
    assert fault.kind == "model"


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
def test_only_service_for_long_enough_starts_the_wait_over() -> None:
    fleet = Fleet(pool(replicas=1, restart=RestartPolicy(500, 60_000, 0, stable_after_ms=10_000)))
    fleet.come("pool-a-0")
    for wait_ms in (500, 1_000, 2_000):
        fleet.ready("pool-a-0")
        fleet.pass_ms(9_999)
        fleet.fail("pool-a-0")
        assert not of(fleet.pass_ms(wait_ms - 1), LaunchEngine)
        assert of(fleet.pass_ms(1), LaunchEngine)
    fleet.ready("pool-a-0")
    fleet.pass_ms(10_000)
    fleet.fail("pool-a-0")
    assert of(fleet.pass_ms(500), LaunchEngine)


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
def test_after_nothing_but_failures_one_replica_is_tried_at_a_time() -> None:
    fleet = Fleet(pool(replicas=3, restart=RestartPolicy(500, 8_000, 0, breaker_failures=3)))
    for replica_id in fleet.members:
        fleet.come(replica_id)
    fleet.fail("pool-a-0")
    fleet.fail("pool-a-1")
    notes = of(fleet.fail("pool-a-2"), NotePool)
    assert [note.change for note in notes] == ["breaker_open", "restart"]
    assert "3 launches of pool pool-a failed in a row, the last by exit: it broke" in notes[0].reason
    # The first two had their waits before; the second of them waits for what becomes of the first.
    assert [each.replica_id for each in of(fleet.pass_ms(60_000), LaunchEngine)] == ["pool-a-0"]
    fleet.fail("pool-a-0")
    fleet.pass_ms(0)
    assert fleet.launches[-1][1] == "pool-a-1"
    assert ("breaker_closed", "pool-a-1") in changes(fleet.ready("pool-a-1"))
    # Now the others are free to come, each at its time.
    assert {each.replica_id for each in of(fleet.pass_ms(8_000), LaunchEngine)} == {"pool-a-0"}
    assert fleet.member("pool-a-2").state == "loading"
    assert fleet.pool().failures == 0


@pytest.mark.req("ORCH-3053")
def test_with_the_breaker_open_each_waits_the_longest() -> None:
    fleet = Fleet(pool(replicas=1, restart=RestartPolicy(500, 8_000, 0, breaker_failures=2)))
    fleet.come("pool-a-0")
    fleet.fail("pool-a-0")
    fleet.pass_ms(500)
    fleet.fail("pool-a-0")
    assert not of(fleet.pass_ms(7_999), LaunchEngine)
    assert of(fleet.pass_ms(1), LaunchEngine)
    fleet.fail("pool-a-0")
    assert not of(fleet.pass_ms(7_999), LaunchEngine)
    assert of(fleet.pass_ms(1), LaunchEngine)


@pytest.mark.req("ORCH-3053")
def test_actors_that_die_again_and_again_wait_as_engines_do() -> None:
    fleet = Fleet(pool(replicas=1))
    for wait_ms in (500, 1_000, 2_000):
        incarnation = fleet.orders["pool-a-0"].incarnation
        commands = fleet.tell(ReplicaGone("pool-a-0", incarnation, "actor", "it could not be made"))
        assert changes(commands) == [("restart", "pool-a-0")]
        assert not of(fleet.pass_ms(wait_ms - 1), OrderReplica)
        assert one(fleet.pass_ms(1), OrderReplica).order.incarnation == incarnation + 1


@pytest.mark.req("ORCH-3039")
def test_a_gpu_out_of_memory_is_given_fewer_slots() -> None:
    fleet = Fleet(pool(replicas=1, slots=6, restart=RestartPolicy(1, 1, 0, breaker_failures=99)))
    fleet.come("pool-a-0")
    for slots in (4, 3, 2, 1, 1):
        commands = fleet.fail("pool-a-0", "vram_oom", "CUDA out of memory")
        assert ("capacity_reduced", "pool-a-0") in changes(commands)
        assert one(fleet.pass_ms(1), LaunchEngine).slots == slots
    # Host memory is another matter.
    assert ("capacity_reduced", "pool-a-0") not in changes(fleet.fail("pool-a-0", "host_oom", "killed"))


@pytest.mark.parametrize("kind", ["driver", "ecc", "xid"])
@pytest.mark.req("ORCH-3038", "ORCH-3053", "OC-POOL-3010")
def test_a_fault_of_the_gpu_drains_the_replica_then_launches_it_again(kind: FaultKind) -> None:
    fleet = Fleet(pool(replicas=2))
    fleet.up("pool-a-0", "pool-a-1")
    fleet.submit("t0")
    notes = of(fleet.tell(ReplicaFaulted("pool-a-0", kind, "error 48")), NotePool)
    assert [(note.change, note.kind) for note in notes] == [("drain_started", kind)]
    fleet.tell(ReplicaFaulted("pool-a-0", kind, "error 48"))
    assert one(fleet.submit("t1"), Start).replica_id == "pool-a-1"
    assert not of(fleet.pass_ms(900), LaunchEngine)
    commands = fleet.tell(ended("t0", replica_id="pool-a-0"))
    restart = one(commands, NotePool)
    assert (restart.change, restart.kind) == ("restart", kind)
    assert one(fleet.pass_ms(500), LaunchEngine).replica_id == "pool-a-0"
    fleet.ready("pool-a-0")
    assert fleet.home_ready() == ["pool-a-1", "pool-a-0"]
    assert fleet.members == ["pool-a-0", "pool-a-1"]


@pytest.mark.req("ORCH-3038")
def test_a_fault_leaves_30_s_at_most() -> None:
    fleet = Fleet(pool(replicas=1, drain_ms=300_000))
    fleet.up("pool-a-0")
    fleet.submit("t0")
    fleet.tell(ReplicaFaulted("pool-a-0", "ecc", "double-bit error"))
    assert fleet.member("pool-a-0").drain_until_ns == (fleet.now_ms + 30_000) * MS


def test_a_fault_while_it_loads_is_noted_and_left_to_the_launch() -> None:
    fleet = Fleet(pool(replicas=1, restart=EXACT))
    fleet.come("pool-a-0")
    assert not fleet.tell(ReplicaFaulted("pool-a-0", "xid", "31"))
    fault = fleet.pool().fault
    assert fault is not None
    assert fault.kind == "xid"
    fleet.ready("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3053")
def test_failures_before_long_service_are_forgiven_when_the_node_goes() -> None:
    for service_ms, failures in ((9_999, 1), (10_000, 0)):
        fleet = Fleet(pool(replicas=1, restart=RestartPolicy(500, 60_000, 0, stable_after_ms=10_000)))
        fleet.come("pool-a-0")
        fleet.fail("pool-a-0")
        fleet.pass_ms(500)
        fleet.ready("pool-a-0")
        fleet.pass_ms(service_ms)
        fleet.see()
        assert fleet.member("pool-a-0").failures == failures
