"""A simulated replica takes the time that its speeds say, and can only repeat what it is like."""

from typing import Any

import pytest

from contracts.scheduling import Start
from orchestrator.simulation.experiment import pool_replicas
from orchestrator.simulation.flows import Flows
from orchestrator.simulation.job import Job
from orchestrator.simulation.replica import Replica
from orchestrator.simulation.scenario import PoolSection
from orchestrator.simulation.workloads import Workload
from tests.simulation.sim_kit import scenario

MS = 1_000_000


def replica(**over: Any) -> Replica:
    values = {"prefill_tokens_per_s": 1000, "decode_tokens_per_s": 100, "start_ms": 0, "slots": 4}
    (built,) = pool_replicas("gpu", PoolSection.model_validate(values | over), ctx=4096)
    built.state = "ready"
    return built


def job(number: int = 1, prompt_tokens: int = 200, output_tokens: int = 11, session_id: str = "") -> Job:
    workload = Workload(scenario().workloads[0], 0, 4096, Flows({}, {}, 1, 1), seed=1)
    return workload.job(
        number,
        0,
        tenant="acme",
        priority="interactive",
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=100,
        deadline_ms=1000,
        session_id=session_id,
    )


def start(task: Job, attempt: int = 1, **over: Any) -> Start:
    return Start("set", task.task_id, attempt, "gpu-0", **over)


def test_an_attempt_reads_its_prompt_and_then_decodes() -> None:
    task = job()
    attempt = replica(start_ms=3).begin(50 * MS, task, start(task))
    assert attempt.first_ns == (50 + 3 + 200) * MS
    assert attempt.ends_ns == attempt.first_ns + 10 * 10 * MS
    assert [attempt.tokens_at(attempt.first_ns + at) for at in (-1, 0, 10 * MS - 1, 10 * MS, 10_000 * MS)] == [
        0,
        1,
        1,
        2,
        11,
    ]


def test_decoding_is_slower_beside_other_busy_slots() -> None:
    home = replica(slowdown_percent=50)
    took = []
    for number in range(3):
        task = job(number)
        took.append(home.begin(0, task, start(task)).decode_ns)
    assert took == [10 * MS, 15 * MS, 20 * MS]


def test_a_slow_replica_takes_longer_for_all() -> None:
    home, task = replica(), job()
    home.slow = 3.0
    attempt = home.begin(0, task, start(task))
    assert (attempt.first_ns, attempt.ends_ns) == (600 * MS, 600 * MS + 10 * 30 * MS)


@pytest.mark.req("ORCH-3009")
def test_a_warm_start_skips_what_the_session_left_in_the_cache() -> None:
    home, turn, next_turn = replica(keeps_kv=True), job(session_id="s"), job(2, prompt_tokens=300, session_id="s")
    home.keep(turn)
    cold = home.begin(0, next_turn, start(next_turn))
    assert (cold.cached_tokens, cold.first_ns) == (0, 300 * MS)
    warm = home.begin(0, next_turn, start(next_turn, 2, warm=True))
    assert (warm.cached_tokens, warm.first_ns) == (211, 89 * MS)
    other = job(3, session_id="t")
    assert home.begin(0, other, start(other, warm=True)).cached_tokens == 0


@pytest.mark.req("ORCH-3022")
def test_kept_sessions_are_bounded_and_the_least_recently_used_goes() -> None:
    home = replica(keeps_kv=True, kv_tokens=500, slots=8)
    for number in range(3):
        home.keep(job(number, session_id=f"s{number}"))
    assert list(home.kv) == ["s1", "s2"]
    assert home.kv_used_permille() == 844
    assert replica().kv_used_permille() == 0


@pytest.mark.req("ORCH-3086")
def test_a_resumed_attempt_fails_where_the_text_differs() -> None:
    task, home, other = job(), replica(), replica()
    other.diverges = True
    digest = home.digest(task, 6)
    again = home.begin(0, task, start(task, 2, resume_tokens=6, resume_digest=digest))
    assert (again.fails, again.tokens_at(again.ends_ns)) == ("", 11)
    differs = other.begin(0, task, start(task, 2, resume_tokens=6, resume_digest=digest))
    assert "differs" in differs.fails
    assert differs.tokens_at(differs.ends_ns) == 6


def test_digests_tell_tasks_and_lengths_apart() -> None:
    home = replica()
    digests = {home.digest(job(number), tokens) for number in range(5) for tokens in range(1, 6)}
    assert len(digests) == 25
    assert home.digest(job(), 0) == 0


def test_a_dead_replica_holds_nothing() -> None:
    home, task = replica(keeps_kv=True), job(session_id="s")
    attempt = home.begin(0, task, start(task))
    home.keep(task)
    assert home.void() == [attempt]
    assert (home.running, home.kv, home.generation) == ({}, {}, 1)
