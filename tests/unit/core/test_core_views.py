"""What can be read: status, the started view, forecasts that follow measured service."""

import pytest

from contracts.errors import ErrorInfo
from contracts.scheduling import Admit, SlotReleased, TokensProgressed
from tests.unit.core.core_kit import MS, TENANT, Core, ended, one, replica


def read(core: Core, task_id: str, tenant: str = TENANT) -> object:
    return core.scheduler.status(core.now_ms * MS, task_id, tenant)


@pytest.mark.req("ORCH-3024")
def test_another_tenants_task_is_unknown() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.tell(ended("t"))
    assert read(core, "t", "rival") is None
    assert core.scheduler.task("t", "rival") is None
    assert core.scheduler.outcome("t", "rival") is None
    assert core.scheduler.started(0, "t", "rival") is None
    info = core.scheduler.task("t", TENANT)
    assert info is not None
    assert info.task_id == "t"


def test_status_through_a_tasks_life() -> None:
    core = Core(ready=(replica(),))
    core.submit("first")
    core.submit("t", labels={"k": "v"})
    status = core.scheduler.status(core.now_ms * MS, "t", TENANT)
    assert status is not None
    assert (status.state, status.queue_position, status.predicted_start_ms, status.labels) == (
        "queued",
        0,
        110,
        {"k": "v"},
    )
    core.now_ms += 70
    core.tell(ended("first"))
    core.tell(TokensProgressed("t", 1, 3, 0))
    status = core.scheduler.status(core.now_ms * MS, "t", TENANT)
    assert status is not None
    assert (status.state, status.queue_position, status.replica_id, status.pool_id) == ("running", None, "r0", "pool-a")
    assert (status.tokens_out, status.queue_time_ms, status.attempt, status.engine_version) == (3, 70, 1, "b1")
    core.tell(ended("t", tokens_in=4, decode_ns=9 * MS, first_token_ns=2 * MS))
    status = core.scheduler.status(core.now_ms * MS, "t", TENANT)
    assert status is not None
    assert (status.state, status.tokens_in, status.tokens_out, status.decode_ms) == ("finished", 4, 10, 9)
    assert (status.first_token_ms, status.finish_reason, status.error) == (2, "length", None)


@pytest.mark.req("ORCH-3029")
def test_a_started_stream_tells_what_admission_told() -> None:
    core = Core(ready=(replica(),))
    core.submit("first")
    told = one(core.submit("t", deadline_ms=500), Admit)
    core.submit("behind")
    assert core.scheduler.started(core.now_ms * MS, "t", TENANT) is None
    core.now_ms += 70
    core.tell(ended("first"))
    core.now_ms += 30
    view = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert view is not None
    assert (view.queue_position, view.predicted_start_ms) == (told.queue_position, told.predicted_start_ms)
    assert (view.queue_time_ns, view.time_budget_remaining_ms, view.queue_depth) == (70 * MS, 400, 1)
    assert (view.attempt, view.replica) == (1, replica())
    assert core.scheduler.queue_depth("set-a", "interactive") == 1
    with pytest.raises(KeyError):
        core.scheduler.queue_depth("nowhere", "interactive")


@pytest.mark.req("ORCH-3029")
def test_predictions_follow_measured_service_and_progress() -> None:
    core = Core(ready=(replica(),))
    core.submit("a")
    core.now_ms += 300
    core.tell(ended("a"))
    # 300 ms for 11 tokens, one of them of the prompt by its estimate, instead of the self-test's 10 ms each.
    core.submit("b")
    assert one(core.submit("c"), Admit).predicted_start_ms == 300
    core.tell(TokensProgressed("b", 1, 4, 0))
    assert one(core.submit("d", expected_tokens=2), Admit).predicted_start_ms == 491
    assert one(core.submit("e"), Admit).predicted_start_ms == 573


@pytest.mark.req("ORCH-3029")
def test_more_slots_wait_less() -> None:
    core = Core(ready=(replica("r0", slots=2), replica("r1", slots=2)))
    for n in range(4):
        assert one(core.submit(f"t{n}"), Admit).predicted_start_ms == 0
    assert one(core.submit("w"), Admit).predicted_start_ms == 28


def test_a_failed_task_shows_its_error_and_the_outcome_can_be_read() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    assert core.scheduler.outcome("t", TENANT) is None
    error = ErrorInfo(code="INTERNAL", message="x", engine="llamacpp", pool_id="pool-a", retriable=False)
    core.tell(ended("t", result="failed", error=error, slot_free=False))
    status = core.scheduler.status(core.now_ms * MS, "t", TENANT)
    outcome = core.scheduler.outcome("t", TENANT)
    assert status is not None
    assert outcome is not None
    assert status.error == outcome.error == error
    core.tell(SlotReleased("t", 1, "r0"))
