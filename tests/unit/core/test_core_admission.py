"""What is admitted, what is refused, and what an answer says."""

import pytest

from contracts.errors import ErrorInfo
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    Finish,
    Forget,
    MeasurePrompt,
    PromptMeasured,
    Reject,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    Start,
)
from tests.unit.core.core_kit import Core, ended, of, one, queue, replica, replica_set, started


def rejected(core: Core, task_id: str = "t", **over: object) -> ErrorInfo:
    """The error of a submission that must be refused and leave nothing behind."""
    commands = core.submit(task_id, **over)
    assert not of(commands, Admit)
    assert core.state_of(task_id) is None
    return one(commands, Reject).error


@pytest.mark.req("ORCH-2001", "ORCH-3029")
def test_a_task_with_a_free_slot_is_admitted_and_starts() -> None:
    core = Core(ready=(replica(),))
    commands = core.submit("t")
    assert [type(c) for c in commands[:2]] == [Admit, Start]
    assert one(commands, Admit) == Admit("set-a", 1, "t", 0, 0, 0)
    assert started(commands) == [("t", 1, "r0")]


@pytest.mark.req("ORCH-3014", "OC-CORE-1020")
def test_context_over_the_models_limit_is_refused() -> None:
    error = rejected(Core(ready=(replica(),)), ctx=101)
    assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
    assert "101" in error.message
    assert "100" in error.message


@pytest.mark.req("ORCH-2001")
@pytest.mark.parametrize(
    ("over", "served"),
    [
        ({"engine": "vllm"}, "llamacpp"),
        ({"model_ref": "huge"}, "small"),
        ({"workload": "rerank"}, "completion"),
        ({"sampler_profile_version": "v9"}, "v1"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_served(over: dict[str, str], served: str) -> None:
    error = rejected(Core(ready=(replica(),)), **over)
    assert error.code == "INVALID_PARAMS"
    assert served in error.message
    assert next(iter(over.values())) in error.message


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
def test_a_budget_that_leaves_no_room_for_a_prompt_is_refused_unmeasured() -> None:
    core = Core(ready=(replica(),))
    assert rejected(core, max_tokens=100).code == "INVALID_PARAMS"
    assert not of(core.submit("u", max_tokens=100), MeasurePrompt)


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
@pytest.mark.parametrize(
    ("prompt_bytes", "templated", "measured"), [(89, False, False), (90, False, True), (1, True, True)]
)
def test_only_a_prompt_that_may_not_fit_is_measured(prompt_bytes: int, templated: bool, measured: bool) -> None:
    core = Core(ready=(replica(),))
    commands = core.submit("t", prompt_bytes=prompt_bytes, templated=templated)
    assert bool(of(commands, MeasurePrompt)) == measured
    assert bool(of(commands, Admit)) != measured
    assert core.state_of("t") == ("measuring" if measured else "running")


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
def test_a_measured_prompt_is_admitted_up_to_the_last_token() -> None:
    core = Core(ready=(replica(slots=2),))
    core.submit("fits", templated=True)
    assert of(core.measured("fits", 90), Start)
    core.submit("long", templated=True)
    error = one(core.measured("long", 91), Reject).error
    assert error.code == "INVALID_PARAMS"
    assert all(number in error.message for number in ("91", "10", "101", "100"))
    assert core.state_of("long") is None


def test_a_prompt_that_cannot_be_measured_is_refused_with_the_reason() -> None:
    core = Core(ready=(replica(),))
    core.submit("t", templated=True)
    reason = ErrorInfo(code="INVALID_PARAMS", message="template refuses roles", retriable=False)
    assert one(core.measured("t", 0, reason), Reject).error == reason
    assert of(core.submit("t"), Admit)


@pytest.mark.req("ORCH-3015", "ORCH-3024")
def test_a_late_count_is_not_taken_for_another_task_under_the_id() -> None:
    core = Core(ready=(replica(),))
    core.submit("t", templated=True)
    late = core.measurements["t"]
    core.pass_ms(5_000)
    core.submit("t", templated=True, body_digest=b"another body")
    assert not core.tell(PromptMeasured("t", late, 5))
    assert of(core.measured("t", 5), Admit)


@pytest.mark.req("ORCH-3018")
def test_measuring_gives_up_after_its_timeout() -> None:
    core = Core(ready=(replica(),))
    core.submit("t", templated=True)
    assert not of(core.pass_ms(4_999), Reject)
    error = one(core.pass_ms(1), Reject).error
    assert (error.code, error.retriable) == ("POOL_UNREADY", True)
    assert not core.measured("t", 5)


@pytest.mark.req("ORCH-3018")
def test_measuring_moves_on_when_its_replica_is_lost() -> None:
    core = Core(ready=(replica("r0"), replica("r1")))
    assert one(core.submit("t", templated=True), MeasurePrompt).replica_id == "r0"
    assert one(core.tell(ReplicaLost("r0", "gone")), MeasurePrompt).replica_id == "r1"
    error = one(core.tell(ReplicaLost("r1", "gone")), Reject).error
    assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)


@pytest.mark.req("ORCH-3018", "ORCH-3010")
def test_without_a_ready_replica_tasks_are_refused_with_when_to_come_back() -> None:
    core = Core()
    error = rejected(core)
    assert (error.code, error.retriable, error.retry_after_ms) == ("POOL_UNAVAILABLE", True, 10_000)
    core.tell(ReplicaLoading("r0", "pool-a"))
    core.now_ms += 4_000
    assert (rejected(core).code, rejected(core).retry_after_ms) == ("POOL_UNREADY", 6_000)
    core.now_ms += 60_000
    assert rejected(core).retry_after_ms == 1_000


@pytest.mark.req("ORCH-3018")
def test_the_load_estimate_follows_past_loads() -> None:
    core = Core()
    core.tell(ReplicaLoading("r0", "pool-a"))
    core.now_ms += 3_000
    core.tell(ReplicaReady(replica("r0")))
    core.tell(ReplicaLost("r0", "gone"))
    core.tell(ReplicaLoading("r0", "pool-a"))
    assert rejected(core).retry_after_ms == 3_000


@pytest.mark.req("ORCH-2001", "ORCH-3024")
def test_the_same_request_again_gets_the_same_admission_and_enqueues_nothing() -> None:
    core = Core(ready=(replica(),))
    core.submit("runs")
    first = one(core.submit("waits"), Admit)
    assert (first.queue_position, first.predicted_start_ms) == (0, 110)
    core.submit("next")
    for _ in range(2):
        commands = core.submit("waits")
        again = one(commands, Admit)
        assert again == Admit("set-a", core.numbers, "waits", 0, 110, first.backoff_ms, replayed=True)
        assert len(commands) == 1
    core.tell(ended("runs"))
    core.tell(ended("waits"))
    assert one(core.submit("waits"), Admit).replayed
    assert core.state_of("waits") == "finished"


@pytest.mark.req("ORCH-3024")
@pytest.mark.parametrize("over", [{"body_digest": b"other"}, {"tenant": "rival"}])
@pytest.mark.parametrize("templated", [False, True])
def test_another_request_under_a_known_id_conflicts(over: dict[str, object], templated: bool) -> None:
    core = Core(ready=(replica(),))
    core.submit("t", templated=templated)
    command = one(core.submit("t", templated=templated, **over), Reject)
    assert (command.error.code, command.error.retriable) == ("TASK_ID_CONFLICT", False)
    assert command.set_id == ""


@pytest.mark.req("ORCH-3024")
def test_submissions_during_measuring_share_its_answer_up_to_a_bound() -> None:
    core = Core(ready=(replica(),))
    for _ in range(16):
        assert not of(core.submit("t", templated=True), Reject)
    error = one(core.submit("t", templated=True), Reject).error
    assert (error.code, error.policy_label) == ("ADMISSION_REJECT", "reject")
    admits = of(core.measured("t", 5), Admit)
    assert [a.submission for a in admits] == list(range(1, 17))
    assert [a.replayed for a in admits] == [False] + [True] * 15
    assert len({(a.queue_position, a.predicted_start_ms, a.backoff_ms) for a in admits}) == 1


@pytest.mark.req("ORCH-3017", "ORCH-3026")
def test_a_cancel_during_measuring_admits_and_ends_the_task() -> None:
    core = Core(ready=(replica(),))
    core.submit("t", templated=True)
    commands = core.cancel("t")
    assert [type(c) for c in commands[:3]] == [Admit, Finish, AnswerCancel]
    assert one(commands, Finish).outcome.state == "canceled"
    assert not of(core.measured("t", 5), Start)
    assert one(core.submit("t", templated=True), Admit).replayed


@pytest.mark.req("ORCH-3024")
def test_a_refused_id_may_be_tried_again() -> None:
    core = Core(replica_set(capacity=1, queues=(queue("interactive", 1),)), ready=(replica(),))
    core.submit("runs")
    core.submit("waits")
    assert rejected(core, "t").code == "ADMISSION_REJECT"
    core.tell(ended("runs"))
    assert of(core.submit("t", body_digest=b"changed"), Admit)


@pytest.mark.req("ORCH-3024")
def test_a_forgotten_id_is_new_again() -> None:
    core = Core(ready=(replica(),), ttl_ms=1_000)
    core.submit("t")
    core.tell(ended("t"))
    assert not of(core.pass_ms(999), Forget)
    assert one(core.pass_ms(1), Forget).task_id == "t"
    assert not one(core.submit("t"), Admit).replayed


def test_a_class_that_the_set_does_not_queue_is_refused() -> None:
    core = Core(replica_set(queues=(queue("interactive"),)), ready=(replica(),))
    assert rejected(core, priority="batch").code == "INVALID_PARAMS"


def test_of_several_sets_the_ready_one_that_fits_serves() -> None:
    short = replica_set(ctx=50)
    long = replica_set(set_id="set-b", pool_ids=("pool-b",), ctx=200)
    core = Core(short, long, ready=(replica("r0"), replica("r1", pool_id="pool-b", ctx=200)))
    assert one(core.submit("short", ctx=50), Admit).set_id == "set-a"
    assert one(core.submit("long", ctx=150), Admit).set_id == "set-b"
    core.tell(ReplicaLost("r0", "gone"))
    core.tell(ended("long", replica_id="r1"))
    assert one(core.submit("again", ctx=50), Admit).set_id == "set-b"
