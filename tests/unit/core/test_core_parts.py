"""The parts on their own: states, queues, timers, index, predictor, retention, determinism."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from contracts.api import TaskState
from contracts.scheduling import Finish, Forget, SetTimer, TimerFired
from orchestrator.core.invariants import check
from orchestrator.core.lifecycle import NEXT, IllegalTransition, advance
from orchestrator.core.placement import Replica, ReplicaIndex
from orchestrator.core.policies import StrictPriority
from orchestrator.core.predictor import LOAD_NS_GUESS, TOKEN_NS_GUESS, Predictor
from orchestrator.core.queues import GAPS_MAX, FifoFlow
from orchestrator.core.records import TaskRecord, ceil_ms, round_ms
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.timers import STALE_MAX, Timers
from tests.unit.core.core_kit import MS, Core, ended, of, one, queue, replica, replica_set, scripted_digest, task

HOME = ReplicaSet(replica_set(), StrictPriority())


def record(number: int = 0, tokens: int = 1) -> TaskRecord:
    return TaskRecord(task(f"t{number}"), HOME, HOME.flows[0], number, tokens)


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


@pytest.mark.req("ORCH-3004", "OC-CORE-1001", "OC-CORE-1003")
def test_a_flow_is_first_in_first_out_with_exact_positions() -> None:
    flow = FifoFlow("interactive", queue("interactive"))
    records = [record(n, tokens=n + 1) for n in range(200)]
    for each in records:
        flow.push(each)
    for n in [5, 0, 199, 1, *range(20, 180)]:
        flow.discard(records[n])
    left = [r for n, r in enumerate(records) if n not in {5, 0, 199, 1} and not 20 <= n < 180]
    assert [flow.position(r) for r in left] == list(range(len(left)))
    assert flow.gaps <= len(flow) + GAPS_MAX
    assert flow.tokens == sum(r.expected_tokens for r in left)
    assert (flow.oldest(), flow.newest()) == (left[0], left[-1])
    late = record(500)
    flow.push(late)
    assert flow.position(late) == len(left)
    assert [flow.pop() for _ in range(len(flow))] == [*left, late]
    assert flow.tokens == 0
    assert flow.oldest() is flow.newest() is None
    with pytest.raises(IndexError):
        flow.pop()


@pytest.mark.req("OC-CORE-1003")
def test_given_back_tasks_go_first_in_arrival_order() -> None:
    flow = FifoFlow("interactive", queue("interactive"))
    records = [record(n) for n in range(4)]
    for each in records:
        flow.push(each)
    first, second, third = flow.pop(), flow.pop(), flow.pop()
    for each in (third, first, second):
        flow.give_back(each)
    assert [flow.position(r) for r in records] == [0, 1, 2, 3]
    flow.discard(second)
    assert flow.oldest() is records[3]
    assert [flow.pop() for _ in range(3)] == [first, third, records[3]]


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
        each.info = replica(each.replica_id, slots=n + 1)
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
    full.info = replica("full")
    full.busy[("x", 1)] = record()
    with pytest.raises(AssertionError):
        index.take(full, ("y", 1), record())


@pytest.mark.req("ORCH-3029")
def test_the_predictor_moves_from_guess_over_self_test_to_measurement() -> None:
    predictor = Predictor()
    assert (predictor.token_ns, predictor.load_ns) == (TOKEN_NS_GUESS, LOAD_NS_GUESS)
    predictor.self_tested(7)
    assert predictor.token_ns == 7
    assert predictor.expected_tokens(task("t", max_tokens=50)) == 50
    predictor.served(1_000, 10)
    assert predictor.token_ns == 100
    assert predictor.expected_tokens(task("t", max_tokens=50)) == 10
    assert predictor.expected_tokens(task("t", max_tokens=4)) == 4
    assert predictor.expected_tokens(task("t", max_tokens=50, expected_tokens=80)) == 50
    for _ in range(100):
        predictor.served(6_000, 20)
    assert 295 <= predictor.token_ns <= 305
    assert predictor.work_ns(10, 2) == 5 * predictor.token_ns
    assert predictor.work_ns(10, 0) == 10 * predictor.token_ns
    predictor.served(0, 0)
    assert predictor.token_ns >= 1


def test_rounding() -> None:
    assert [round_ms(ns) for ns in (0, 499_999, 500_000, 1_400_000)] == [0, 0, 1, 1]
    assert [ceil_ms(ns) for ns in (0, 1, MS, MS + 1)] == [0, 1, 1, 2]


@pytest.mark.req("ORCH-3024")
@pytest.mark.parametrize("bound", [{"tasks_max": 2}, {"bytes_max": 200}])
def test_the_oldest_results_go_first(bound: dict[str, int]) -> None:
    core = Core(ready=(replica(),), **bound)
    gone = []
    for n in range(4):
        core.submit(f"t{n}")
        gone += [f.task_id for f in of(core.tell(ended(f"t{n}", transcript_bytes=100)), Forget)]
    assert gone == ["t0", "t1"]


@pytest.mark.req("ORCH-3024")
def test_a_result_over_the_byte_bound_is_told_and_not_kept() -> None:
    core = Core(ready=(replica(),), bytes_max=10)
    core.submit("t")
    commands = core.tell(ended("t", transcript_bytes=11))
    assert [type(c) for c in commands[:2]] == [Finish, Forget]


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
    core.scheduler.state.sets[0].flows[0].tokens += 1
    with pytest.raises(AssertionError, match="token sum"):
        check(core.scheduler)


def test_the_same_history_gives_the_same_commands_under_any_hash_seed() -> None:
    root = Path(__file__).resolve().parents[3]
    code = "from tests.unit.core.core_kit import scripted_digest; print(scripted_digest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {scripted_digest()}
