"""The watchdog's bounds: on an attempt, on its first token, on the wait before a start."""

import pytest

from contracts.policies import PreemptionPolicy
from contracts.scheduling import Finish, ReplicaLost, ReplicaReady, Stop, TokensProgressed
from tests.unit.core.core_kit import Core, ended, of, one, queue, replica, replica_set

PATIENT = {"wall_timeout_ms": 60_000, "idle_timeout_ms": 30_000}


def core(**over: object) -> Core:
    made = Core(replica_set(**{**PATIENT, **over}), ready=(replica(),))
    made.submit("t")
    return made


@pytest.mark.req("ORCH-3016", "OC-CORE-1022")
def test_an_attempt_without_a_first_token_in_time_is_stopped() -> None:
    made = core(first_token_timeout_ms=2_000)
    assert not made.pass_ms(1_999)
    stop = one(made.pass_ms(1), Stop)
    assert (stop.reason, stop.why) == ("first_token", "stopped by the first_token timeout")
    error = one(made.tell(ended("t", result="stopped")), Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable) == ("DECODE_TIMEOUT", True)
    assert error.message == "stopped by the first_token timeout of 2000 ms"


@pytest.mark.req("ORCH-3016")
def test_once_the_first_token_is_there_only_the_other_bounds_hold() -> None:
    made = core(first_token_timeout_ms=2_000)
    made.pass_ms(1_000)
    made.tell(TokensProgressed("t", 1, 1, 7))
    assert not of(made.pass_ms(29_999), Stop)
    assert one(made.pass_ms(1), Stop).reason == "idle"


@pytest.mark.req("ORCH-3016")
def test_the_first_token_of_each_attempt_has_to_come_in_time() -> None:
    made = core(first_token_timeout_ms=2_000)
    made.tell(TokensProgressed("t", 1, 5, 7))
    made.tell(ReplicaLost("r0", "eof"))
    made.tell(ReplicaReady(replica("r1")))
    assert one(made.pass_ms(2_000), Stop).attempt == 2


@pytest.mark.req("ORCH-3016")
def test_what_decodes_nothing_has_no_first_token() -> None:
    made = Core(
        replica_set(**PATIENT, first_token_timeout_ms=2_000, workloads=("embedding",), determinism="best_effort"),
        ready=(replica(),),
    )
    made.submit("e", workload="embedding", determinism="", longest_input_bytes=5)
    assert made.state_of("e") == "running"
    assert not of(made.pass_ms(29_999), Stop)


@pytest.mark.req("ORCH-3016", "ORCH-3025")
def test_a_task_that_never_started_waits_no_longer_than_its_set_lets_it() -> None:
    made = core(queue_timeout_ms=3_000)
    made.submit("w")
    assert not of(made.pass_ms(2_999), Finish)
    error = one(made.pass_ms(1), Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable, error.pool_id) == ("POOL_UNAVAILABLE", True, "pool-a")
    assert error.message == (f"not started within the queue timeout of 3000 ms; try again in {error.retry_after_ms} ms")
    assert (error.retry_after_ms or 0) >= 1


@pytest.mark.req("ORCH-3016")
def test_the_deadline_comes_first_where_it_is_earlier() -> None:
    made = core(queue_timeout_ms=3_000)
    made.submit("w", deadline_ms=1_000)
    error = one(made.pass_ms(1_000), Finish).outcome.error
    assert error is not None
    assert error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3016", "ORCH-3009")
def test_a_task_that_started_once_waits_until_its_deadline() -> None:
    made = core(queue_timeout_ms=3_000)
    made.tell(ReplicaLost("r0", "eof"))
    assert not of(made.pass_ms(100_000), Finish)
    assert made.state_of("t") == "queued"


@pytest.mark.req("ORCH-3016", "ORCH-3086")
def test_the_bound_on_the_wait_holds_where_slots_may_be_taken_too() -> None:
    made = core(queue_timeout_ms=3_000, preemption=PreemptionPolicy("hard"), queues=(queue("interactive"),))
    made.submit("w", deadline_ms=20_000)
    assert one(made.pass_ms(3_000), Finish).task_id == "w"
