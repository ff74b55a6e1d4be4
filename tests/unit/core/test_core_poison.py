"""Tasks that crash engines: they are told apart from those that were merely there, and end."""

import pytest

from contracts.policies import PreemptionPolicy
from contracts.pools import FaultKind
from contracts.scheduling import AnyCommand, Finish, ReplicaReady, ReplicaUnready, Start
from orchestrator.core.failover import CRASH_KINDS, CRASHES_MAX
from orchestrator.core.preemption import find_victim
from tests.unit.core.core_kit import MS, Core, ended, of, one, queue, replica, replica_set, started


def crash(core: Core, replica_id: str = "r0", kind: FaultKind = "exit", **over: object) -> list[AnyCommand]:
    """An engine crashes and comes up again."""
    down = core.tell(ReplicaUnready(replica_id, "segfault", kind))
    return down + core.tell(ReplicaReady(replica(replica_id, **over)))


def crashes(core: Core, task_id: str) -> int:
    return core.scheduler.state.tasks[task_id].crashes


@pytest.mark.req("ORCH-3009", "ORCH-3025")
@pytest.mark.parametrize("kind", CRASH_KINDS)
def test_what_crashes_every_engine_is_quarantined(kind: FaultKind) -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    for _ in range(CRASHES_MAX - 1):
        assert not of(crash(core, kind=kind), Finish)
    error = one(crash(core, kind=kind), Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable) == ("WORKER_RESET", False)
    assert error.message == "quarantined: 3 attempts of task t crashed the engine, the last one r0: segfault"


@pytest.mark.parametrize("kind", ["killed", "actor", "node", "lease", "host_oom", "driver", "gpu_lost", "mask"])
def test_what_others_did_to_an_engine_is_no_crash(kind: FaultKind) -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    for _ in range(CRASHES_MAX + 1):
        assert not of(crash(core, kind=kind), Finish)
    assert crashes(core, "t") == 0


def test_suspects_run_apart_so_that_the_next_crash_finds_one_of_them() -> None:
    core = Core(ready=(replica("r0", slots=3),))
    for task_id in ("poison", "a", "b"):
        core.submit(task_id)
    # All three are suspects: they run one by one on the only replica.
    assert started(crash(core, slots=3)) == [("poison", 2, "r0")]
    assert started(crash(core, slots=3)) == [("poison", 3, "r0")]
    commands = crash(core, slots=3)
    assert one(commands, Finish).task_id == "poison"
    assert started(commands) == [("a", 2, "r0")]
    assert [crashes(core, task_id) for task_id in ("a", "b")] == [1, 1]
    assert started(core.tell(ended("a", 2))) == [("b", 2, "r0")]


def test_suspects_have_a_replica_each() -> None:
    core = Core(ready=(replica("r0", slots=2),))
    core.submit("a")
    core.submit("b")
    core.tell(ReplicaUnready("r0", "segfault"))
    assert started(core.tell(ReplicaReady(replica("r1", slots=2)))) == [("a", 2, "r1")]
    assert started(core.tell(ReplicaReady(replica("r2", slots=2)))) == [("b", 2, "r2")]


def test_others_go_by_suspects_that_wait_for_each_other() -> None:
    core = Core(ready=(replica("r0", slots=3),))
    for task_id in ("a", "b", "c"):
        core.submit(task_id)
    assert started(crash(core, slots=3)) == [("a", 2, "r0")]
    # In the same line, behind two suspects; and in a lower class.
    assert started(core.submit("same")) == [("same", 1, "r0")]
    assert started(core.submit("lower", priority="batch")) == [("lower", 1, "r0")]
    core.submit("next")
    # With a slot free for one of them, the first has it.
    assert started(core.tell(ended("a", 2))) == [("b", 2, "r0")]
    assert started(core.tell(ended("same"))) == [("next", 1, "r0")]


def test_a_line_of_nothing_but_suspects_keeps_no_other_line_waiting() -> None:
    core = Core(ready=(replica("r0", slots=2),))
    core.submit("a")
    core.submit("b")
    crash(core, slots=2)
    assert started(core.submit("other", tenant="other")) == [("other", 1, "r0")]
    # And it goes on where it was once there is a place.
    assert started(core.tell(ended("a", 2))) == [("b", 2, "r0")]


def test_a_suspect_that_finds_no_room_is_not_passed_over() -> None:
    core = Core(ready=(replica("r0", slots=2, kv_tokens=100), replica("r1", slots=2, kv_tokens=100)))
    core.submit("a", max_tokens=90, prompt_bytes=5)
    core.submit("big", max_tokens=75, prompt_bytes=5)
    core.tell(ReplicaUnready("r0", "segfault"))
    core.submit("small", max_tokens=10, prompt_bytes=5)
    assert [core.state_of(each) for each in ("a", "big", "small")] == ["queued", "running", "queued"]
    assert started(core.tell(ended("big", 1, "r1"))) == [("a", 2, "r1")]


@pytest.mark.req("ORCH-3086")
def test_no_slot_is_taken_for_a_suspect_beside_another_one() -> None:
    policy = replica_set(
        queues=(queue("interactive"), queue("batch")), preemption=PreemptionPolicy("hard"), on_time_percent_min=50
    )
    core = Core(policy, ready=(replica("r0", slots=2, interruptible_decode=True),))
    core.submit("s1", deadline_ms=60_000)
    core.submit("s2", deadline_ms=60_000)
    crash(core, slots=2, interruptible_decode=True)
    core.submit("low", priority="batch")
    suspect = core.scheduler.state.tasks["s2"]
    running = core.scheduler.state.tasks["s1"].replica
    assert suspect.state == "queued"
    assert running is not None
    assert running.suspect() is core.scheduler.state.tasks["s1"]
    # `low` could give up its slot to anybody, but not to a second suspect.
    assert find_victim(suspect.home, suspect, core.now_ms * MS) is None
    suspect.crashes = 0
    victim = find_victim(suspect.home, suspect, core.now_ms * MS)
    suspect.crashes = 1
    assert victim is core.scheduler.state.tasks["low"]


def test_the_crash_of_a_suspect_makes_suspects_of_those_beside_it_and_convicts_none_of_them() -> None:
    core = Core(ready=(replica("r0", slots=2),))
    core.submit("poison")
    crash(core, slots=2)
    for n in range(CRASHES_MAX - 1):
        core.submit(f"by{n}")
        commands = crash(core, slots=2)
    assert [finish.task_id for finish in of(commands, Finish)] == ["poison"]
    assert [crashes(core, f"by{n}") for n in range(CRASHES_MAX - 1)] == [1] * (CRASHES_MAX - 1)
    assert of(commands, Start)
