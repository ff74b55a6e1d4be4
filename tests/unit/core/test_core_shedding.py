"""Circuit breakers in the scheduler: load is shed, tried again, and let through (ORCH-3040)."""

from typing import Any

import pytest

from contracts.policies import BreakerPolicy
from contracts.scheduling import Admit, Reject, Start
from tests.unit.core.core_kit import MS, Core, ended, of, one, queue, replica, replica_set

OPEN_MS = 5_000


def core(*pools: str) -> Core:
    """The objective of class interactive is a first token within 100 ms; class batch has none."""
    pools = pools or ("pool-a",)
    policy = replica_set(
        pool_ids=pools,
        queues=(queue("interactive", slo_first_token_ms=100), queue("batch")),
        breaker=BreakerPolicy(violations_percent=50, window_ms=60_000, samples_min=4, open_ms=OPEN_MS, probes=2),
    )
    return Core(policy, ready=tuple(replica(f"r-{pool}", pool_id=pool, slots=2) for pool in pools))


def serve(made: Core, task_id: str, first_token_ms: int = 0, result: str = "finished", **over: Any) -> str:
    """A task is served; gives the replica."""
    start = one(made.submit(task_id, **over), Start)
    tokens = {"tokens_out": 10} if result == "finished" else {"tokens_out": 2}
    made.tell(ended(task_id, 1, start.replica_id, result=result, first_token_ns=first_token_ms * MS, **tokens))
    return start.replica_id


def states(made: Core) -> dict[tuple[str, str], str]:
    return {(pool, priority): state for pool, priority, state in made.scheduler.breakers(made.now_ms * MS)}


def trip(made: Core, **over: Any) -> None:
    for n in range(4):
        serve(made, f"trip{made.numbers}-{n}", 101, **over)


@pytest.mark.req("ORCH-3040")
@pytest.mark.parametrize(("first_token_ms", "result"), [(101, "finished"), (50, "failed")])
def test_late_or_failed_attempts_open_it(first_token_ms: int, result: str) -> None:
    made = core()
    for n in range(4):
        assert states(made)["pool-a", "interactive"] == "closed"
        serve(made, f"t{n}", first_token_ms, result, determinism="best_effort")
    assert states(made) == {("pool-a", "interactive"): "open", ("pool-a", "batch"): "closed"}


@pytest.mark.req("ORCH-3040")
def test_what_is_within_the_objective_keeps_it_closed() -> None:
    made = core()
    for n in range(20):
        serve(made, f"t{n}", 100)
    assert states(made)["pool-a", "interactive"] == "closed"


@pytest.mark.req("ORCH-3040")
def test_while_open_the_class_is_refused_until_exactly_then_and_others_are_served() -> None:
    made = core()
    trip(made)
    error = one(made.submit("t"), Reject).error
    assert (error.code, error.retry_after_ms, error.retriable) == ("ADMISSION_REJECT", OPEN_MS, True)
    assert error.message == (
        f"class interactive fails its objective at present; load is shed; try again in {OPEN_MS} ms"
    )
    assert serve(made, "b", priority="batch") == "r-pool-a"
    made.pass_ms(OPEN_MS - 1)
    assert one(made.submit("t"), Reject).error.retry_after_ms == 1
    made.pass_ms(1)
    assert of(made.submit("t"), Admit)


@pytest.mark.req("ORCH-3040")
def test_half_open_lets_probes_through_and_their_success_closes_it() -> None:
    made = core()
    trip(made)
    made.pass_ms(OPEN_MS)
    assert states(made)["pool-a", "interactive"] == "half-open"
    for n in range(2):
        assert of(made.submit(f"probe{n}"), Admit)
    assert one(made.submit("third"), Reject).error.code == "ADMISSION_REJECT"
    for n in range(2):
        made.tell(ended(f"probe{n}", 1, "r-pool-a", first_token_ns=50 * MS))
    assert states(made)["pool-a", "interactive"] == "closed"
    assert of(made.submit("fourth"), Admit)


@pytest.mark.req("ORCH-3040")
def test_a_probe_that_fails_opens_it_again() -> None:
    made = core()
    trip(made)
    made.pass_ms(OPEN_MS)
    serve(made, "probe", 500)
    assert states(made)["pool-a", "interactive"] == "open"
    assert one(made.submit("t"), Reject).error.retry_after_ms == OPEN_MS


@pytest.mark.req("ORCH-3040", "ORCH-3091")
def test_a_pool_whose_breaker_is_open_is_passed_over_while_another_is_closed() -> None:
    made = core("pool-a", "pool-b")
    # The first pool is chosen on equal load, and misses the objective.
    trip(made)
    assert states(made)["pool-a", "interactive"] == "open"
    assert states(made)["pool-b", "interactive"] == "closed"
    assert serve(made, "t", 50) == "r-pool-b"
    assert serve(made, "b", 50, priority="batch") == "r-pool-a"


@pytest.mark.req("ORCH-3040")
def test_a_canceled_task_says_nothing_of_the_pool() -> None:
    made = core()
    for n in range(8):
        made.submit(f"t{n}")
        made.cancel(f"t{n}")
        made.tell(ended(f"t{n}", 1, "r-pool-a", result="stopped", first_token_ns=900 * MS))
    assert states(made)["pool-a", "interactive"] == "closed"
