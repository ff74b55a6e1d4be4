"""The parts on their own: states, timers, index, retention, determinism."""

import itertools
from typing import Any, get_args

import pytest

from contracts.api import TaskState
from contracts.policies import TenantPolicy
from contracts.scheduling import Admit, DropTranscript, Finish, Forget, SetTimer, TimerFired, TokensProgressed
from orchestrator.core import dispatch
from orchestrator.core.invariants import check
from orchestrator.core.lifecycle import NEXT, IllegalTransition, advance
from orchestrator.core.placement import Replica, ReplicaIndex
from orchestrator.core.quotas import TenantQuota
from orchestrator.core.records import TaskRecord, ceil_ms, round_ms
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.residency import Residency
from orchestrator.core.timers import STALE_MAX, Timers
from tests.unit.core.core_kit import MS, Core, ended, of, one, replica, replica_set, scripted_digest, task
from tests.unit.core.hash_seeds import printed

HOME = ReplicaSet(replica_set(), Residency())
QUOTA = TenantQuota("acme", TenantPolicy("acme"))


def record(number: int = 0) -> TaskRecord:
    return HOME.new_record(task(f"t{number}"), QUOTA, number)


def contents(record: TaskRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in TaskRecord.__slots__}


STATES: tuple[TaskState, ...] = get_args(TaskState)


@pytest.mark.req("ORCH-3024", "ORCH-3017")
@pytest.mark.parametrize(("here", "there"), list(itertools.product(STATES, STATES)))
def test_only_the_tables_transitions_happen_and_others_change_nothing(here: TaskState, there: TaskState) -> None:
    subject = record()
    subject.state = here
    before = contents(subject)
    if there in NEXT[here]:
        advance(subject, there)
        assert contents(subject) == {**before, "state": there}
    else:
        with pytest.raises(IllegalTransition, match=f"{here} -> {there}"):
            advance(subject, there)
        assert contents(subject) == before


def test_the_table_names_every_state_and_ends_end() -> None:
    assert set(NEXT) == set(STATES)
    assert {s for s in STATES if not NEXT[s]} == {"finished", "failed", "canceled", "dropped"}
    assert {there for ways in NEXT.values() for there in ways} == set(STATES) - {"measuring"}


def test_timers_fire_in_order_and_only_as_last_armed() -> None:
    timers = Timers()
    timers.arm("b", 20)
    timers.arm("a", 20)
    timers.arm("c", 5)
    timers.arm("c", 30)
    timers.arm("d", 1)
    timers.disarm("d")
    assert timers.pop_due(19) is None
    assert [timers.pop_due(30) for _ in range(4)] == ["b", "a", "c", None]


def test_the_timer_heap_is_bounded_by_the_live_timers() -> None:
    timers = Timers()
    for n in range(10_000):
        timers.arm(f"t{n % 3}", 1_000_000 - n)
        assert timers.heap_size <= 2 * len(timers) + STALE_MAX


def test_the_shells_timer_is_set_only_when_it_would_ring_too_late() -> None:
    timers = Timers()
    assert timers.next_alarm(0) is None
    timers.arm("a", 50)
    assert timers.next_alarm(0) == 50
    assert timers.next_alarm(0) is None
    timers.arm("b", 40)
    assert timers.next_alarm(0) == 40
    timers.disarm("b")
    assert timers.next_alarm(0) is None
    assert timers.next_alarm(40) == 50
    timers.alarm_rang()
    assert timers.next_alarm(10) == 50


def test_an_early_timer_is_set_again() -> None:
    core = Core(ready=(replica(),))
    alarm = one(core.submit("t"), SetTimer).at_ns
    assert one(core.tell(TimerFired()), SetTimer).at_ns == alarm


@pytest.mark.req("OC-CORE-1012")
def test_the_index_finds_the_least_loaded_without_growing() -> None:
    index = ReplicaIndex()
    replicas = [Replica(f"r{n}", "pool-a", HOME, n, 0) for n in range(5)]
    for n, each in enumerate(replicas):
        each.came_up(replica(each.replica_id, slots=n + 1, kv_tokens=1_000_000))
        index.add(each)
    keys: list[tuple[Replica, tuple[str, int]]] = []
    for n in range(3_000):
        if index.free_slots:
            best = index.least_loaded()
            assert best is not None
            loads = [(len(r.busy) / r.slots, len(r.busy), r.sequence) for r in replicas]
            assert (len(best.busy) / best.slots, len(best.busy), best.sequence) == min(loads)
            index.take(best, (f"t{n}", 1), record(n))
            keys.append((best, (f"t{n}", 1)))
        else:
            for held, key in keys[::2]:
                index.release(held, key)
            keys = keys[1::2]
        assert index.heap_size <= 2 * len(index) + 64
    full = Replica("full", "pool-a", HOME, 9, 0)
    full.came_up(replica("full"))
    full.busy[("x", 1)] = record()
    with pytest.raises(AssertionError):
        index.take(full, ("y", 1), record())


def test_rounding() -> None:
    assert [round_ms(ns) for ns in (0, 499_999, 500_000, 1_400_000)] == [0, 0, 1, 1]
    assert [ceil_ms(ns) for ns in (0, 1, MS, MS + 1)] == [0, 1, 1, 2]


@pytest.mark.req("ORCH-3024")
def test_the_oldest_results_go_first() -> None:
    core = Core(ready=(replica(),), tasks_max=2)
    gone = []
    for n in range(4):
        core.submit(f"t{n}")
        gone += [f.task_id for f in of(core.tell(ended(f"t{n}", transcript_bytes=100)), Forget)]
    assert gone == ["t0", "t1"]


def dropped(core: Core, task_id: str, transcript_bytes: int) -> list[str]:
    """Whose transcripts go when a task ends with one."""
    core.submit(task_id)
    commands = core.tell(ended(task_id, transcript_bytes=transcript_bytes))
    assert not of(commands, Forget)
    return [command.task_id for command in of(commands, DropTranscript)]


@pytest.mark.req("ORCH-3024", "ORCH-2001")
def test_transcripts_that_take_too_much_room_go_and_their_tasks_stay_known() -> None:
    core = Core(ready=(replica(),), tasks_max=1000, bytes_max=2560)
    assert [dropped(core, f"small-{n}", 10) for n in range(100)] == [[]] * 100
    # Large ones may have half of the room: an older one goes for the next, and the small ones stay.
    assert [dropped(core, f"large-{n}", 1000) for n in range(3)] == [[], ["large-0"], ["large-1"]]
    # Many small ones go for each other.
    assert [dropped(core, f"more-{n}", 10) for n in range(57)] == [[]] * 56 + [["small-0"]]
    for task_id in ("large-0", "small-0", "large-2"):
        again = one(core.submit(task_id), Admit)
        assert again.replayed
        assert core.state_of(task_id) == "finished"


@pytest.mark.req("ORCH-3086", "ORCH-3024")
def test_a_drained_embeddings_transcript_counts_when_the_task_expires() -> None:
    core = Core(replica_set(workloads=("embedding",)), ready=(replica(),))
    core.submit("a", workload="embedding", items=4, longest_input_bytes=5, prompt_bytes=20, deadline_ms=500)
    core.tell(TokensProgressed("a", 1, 2, 7))
    record = core.scheduler.state.tasks["a"]
    dispatch.stop(core.scheduler.state, record, "drain")
    core.tell(ended("a", result="stopped", slot_free=False, tokens_out=2, digest=7, transcript_bytes=300))
    assert record.state == "queued"
    core.pass_ms(1_000)
    assert (core.state_of("a"), core.scheduler.state.retention.bytes) == ("failed", 300)


@pytest.mark.req("ORCH-3024")
def test_a_result_over_the_byte_bound_is_told_and_not_kept() -> None:
    core = Core(ready=(replica(),), bytes_max=10)
    core.submit("t")
    commands = core.tell(ended("t", transcript_bytes=11))
    assert [type(c) for c in commands[:2]] == [Finish, DropTranscript]
    assert core.state_of("t") == "finished"


def test_a_clock_that_steps_back_does_not_turn_time_back() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.now_ms -= 500
    assert not of(core.tell(ended("t")), Forget)
    assert core.scheduler.state.now_ns == (core.now_ms + 500) * MS


def test_the_invariants_notice_a_broken_book() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.submit("w")
    core.scheduler.state.sets[0].tiers[0].cost_tokens += 1
    with pytest.raises(AssertionError, match="token sum"):
        check(core.scheduler)


def test_the_same_history_gives_the_same_commands_under_any_hash_seed() -> None:
    code = "from tests.unit.core.core_kit import scripted_digest; print(scripted_digest())"
    assert printed(code) == {scripted_digest()}
