"""Embeddings and ranks in the core: what they are checked for, what they cost, and what determinism a set keeps."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.policies import BudgetPolicy, PreemptionPolicy, SessionPolicy
from contracts.scheduling import Admit, Finish, MeasurePrompt, Reject, Start, TokensProgressed
from contracts.tasks import RESULT_BYTES_MAX
from orchestrator.core.predictor import Predictor
from tests.unit.core.core_kit import MS, TENANT, Core, ended, one, replica, replica_set, started, task

EMBED = replica_set(workloads=("embedding",))


def inputs(*sizes: int, **over: Any) -> dict[str, Any]:
    """An embedding of inputs of so many bytes."""
    fields = {
        "workload": "embedding",
        "items": len(sizes),
        "longest_input_bytes": max(sizes),
        "prompt_bytes": sum(sizes),
    }
    return fields | {"max_tokens": 1} | over


def embedder(**over: Any) -> Core:
    return Core(replica_set(**({"workloads": ("embedding",)} | over)), ready=(replica(token_ns=MS),))


# ------------------------------------------------------------------------ routing


@pytest.mark.req("OC-CORE-1020", "ORCH-3095")
@pytest.mark.parametrize("asked", ["completion", "rerank"])
def test_a_workload_that_the_set_does_not_serve_is_refused_by_name(asked: str) -> None:
    core = embedder()
    error = one(core.submit("a", workload=asked), Reject).error
    assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
    assert error.message == f"workload {asked!r} is not served by small; served: embedding"
    assert core.scheduler.capabilities()[0].supported_workloads == ["embedding"]


@pytest.mark.req("OC-CORE-1020")
def test_sets_of_one_model_share_the_workloads_among_them() -> None:
    other = replica_set(set_id="set-b", pool_ids=("pool-b",), ctx=50, model_refs=("small",))
    core = Core(EMBED, other, ready=(replica(), replica("r1", pool_id="pool-b", ctx=50)))
    assert one(core.submit("a", **inputs(10)), Start).replica_id == "r0"
    assert one(core.submit("b", ctx=50), Start).replica_id == "r1"
    error = one(core.submit("c", workload="rerank"), Reject).error
    assert error.message.endswith("served: completion, embedding")


@pytest.mark.req("OC-CORE-1020", "ORCH-3014")
def test_a_refusal_is_about_the_sets_of_the_tasks_own_workload() -> None:
    vectors = replica_set(set_id="set-b", pool_ids=("pool-b",), ctx=50, workloads=("embedding",))
    core = Core(replica_set(), vectors, ready=(replica(), replica("r1", pool_id="pool-b", ctx=50)))
    assert one(core.submit("c", ctx=200), Reject).error.message == "ctx 200 is over the model's limit of 100"
    assert one(core.submit("v", ctx=60, **inputs(10)), Reject).error.message == "ctx 60 is over the model's limit of 50"


@pytest.mark.req("ORCH-3045", "ORCH-3050")
def test_determinism_left_open_is_strict_wherever_a_strict_set_fits() -> None:
    loose = replica_set(set_id="set-b", pool_ids=("pool-b",), determinism="best_effort", ctx=200)
    both = (replica("r1", pool_id="pool-b", ctx=200), replica())
    core = Core(loose, replica_set(), ready=both)
    assert one(core.submit("open", determinism=""), Start).replica_id == "r0"
    assert one(core.submit("loose", determinism="best_effort"), Start).replica_id == "r1"
    core = Core(loose, replica_set(), ready=both)
    assert one(core.submit("strict"), Start).replica_id == "r0"
    # Only the other one has the context.
    assert one(core.submit("wide", determinism="", ctx=150), Start).replica_id == "r1"
    # A strict set that is not Ready is not given up for one that promises less.
    core = Core(loose, replica_set(), ready=both[:1])
    assert one(core.submit("waits", determinism=""), Reject).error.code == "POOL_UNAVAILABLE"


DETERMINISM = [
    ("strict", "", "strict"),
    ("strict", "strict", "strict"),
    ("strict", "best_effort", "best_effort"),
    ("best_effort", "", "best_effort"),
    ("best_effort", "best_effort", "best_effort"),
    ("best_effort", "strict", None),
]


@pytest.mark.req("ORCH-3045", "ORCH-3050")
@pytest.mark.parametrize(("promised", "asked", "kept"), DETERMINISM)
def test_a_task_gets_what_its_set_promises_or_is_refused(promised: str, asked: str, kept: str | None) -> None:
    core = Core(replica_set(determinism=promised), ready=(replica(),))
    commands = core.submit("a", determinism=asked)
    if kept is None:
        error = one(commands, Reject).error
        assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
        assert error.message.endswith("is not kept by the pools that serve small; send 'best_effort'")
        return
    assert started(commands) == [("a", 1, "r0")]
    view = core.scheduler.started(core.now_ms * MS, "a", TENANT)
    assert view is not None
    assert view.determinism == kept
    assert ("strict_determinism" in core.scheduler.capabilities()[0].features) == (promised == "strict")


@pytest.mark.req("ORCH-3095")
def test_strict_is_not_told_of_replicas_that_cannot_keep_it() -> None:
    core = Core(ready=(replica(exact=False),))
    assert "strict_determinism" not in core.scheduler.capabilities()[0].features


@pytest.mark.req("ORCH-3086")
def test_a_task_that_left_determinism_open_is_preempted_as_its_set_promises() -> None:
    for promised, preempted in (("strict", True), ("best_effort", False)):
        core = Core(
            replica_set(
                determinism=promised, preemption=PreemptionPolicy("hard"), ordering="edf", on_time_percent_min=85
            ),
            ready=(replica(interruptible_decode=True),),
        )
        core.submit("low", priority="batch", max_tokens=90, determinism="")
        core.tell(TokensProgressed("low", 1, 3, 7))
        commands = core.submit("urgent", deadline_ms=400, determinism="")
        assert bool([command for command in commands if type(command).__name__ == "Stop"]) == preempted


# ---------------------------------------------------------------------- admission


@pytest.mark.req("ORCH-3015", "OC-CORE-1021")
def test_the_longest_input_has_to_fit_and_max_tokens_does_not_count() -> None:
    core = embedder()
    assert started(core.submit("many", **inputs(*[96] * 50, max_tokens=99_900))) == [("many", 1, "r0")]
    commands = core.submit("long", **inputs(10, 97))
    assert one(commands, MeasurePrompt).task_id == "long"
    error = one(core.measured("long", 101), Reject).error
    assert (error.code, error.message) == (
        "INVALID_PARAMS",
        "the longest input has 101 tokens and ctx is 100; shorten it",
    )
    core.submit("long", **inputs(10, 97))
    assert one(core.measured("long", 100), Admit).task_id == "long"


@pytest.mark.req("ORCH-3015")
def test_counting_the_longest_input_does_not_stand_for_all_of_them() -> None:
    core = embedder()
    core.submit("first", **inputs(10))
    core.submit("sum", **inputs(*[400] * 10))
    core.measured("sum", 90)
    record = core.scheduler.state.tasks["sum"]
    assert (record.prompt_tokens, record.asked_tokens, record.kv_tokens) == (1000, 1000, 100)


def test_embeddings_that_nobody_could_hold_are_refused_with_what_would_do() -> None:
    core = Core(EMBED, ready=(replica(result_bytes=RESULT_BYTES_MAX // 100),))
    fit = inputs(*[5] * 100)
    assert started(core.submit("fit", **fit)) == [("fit", 1, "r0")]
    error = one(core.submit("over", **inputs(*[5] * 200)), Reject).error
    assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
    assert error.message.endswith("send at most 100 inputs in a task")


# --------------------------------------------------------------------------- cost


@pytest.mark.req("ORCH-3099", "ORCH-3075")
def test_inputs_are_paid_for_and_results_are_not() -> None:
    budget = SessionPolicy(budget=BudgetPolicy(tokens=1000))
    core = Core(
        replica_set(workloads=("embedding",), price_in_micros=1000, price_out_micros=10**9),
        ready=(replica(),),
        sessions=budget,
    )
    core.submit("a", **inputs(*[40] * 10))
    assert core.scheduler.state.tasks["a"].cost_tokens == 100
    done = one(core.tell(ended("a", tokens_in=120, tokens_out=10, finish_reason="stop", decode_ns=90 * MS)), Finish)
    assert done.outcome.tokens_out == 10  # of the transcript: what a stream has to deliver
    status = core.scheduler.status(core.now_ms * MS, "a", TENANT)
    assert status is not None
    assert (status.tokens_in, status.tokens_out, status.decode_ms) == (120, 0, 0)
    session = core.scheduler.session(core.now_ms * MS, TENANT, "session")
    assert session is not None
    assert session.budgets is not None
    assert session.budgets.tokens == 1000 - 120
    assert core.scheduler.state.sessions.find(core.now_ms * MS, TENANT, "session").used_micros == 120  # type: ignore[union-attr]


@pytest.mark.req("ORCH-3099", "ORCH-3017")
def test_what_a_canceled_embedding_has_read_is_paid_for() -> None:
    core = Core(EMBED, ready=(replica(),), sessions=SessionPolicy(budget=BudgetPolicy(tokens=1000)))
    core.submit("a", **inputs(*[40] * 10))
    core.cancel("a")
    core.tell(ended("a", result="stopped", tokens_out=4))
    session = core.scheduler.session(core.now_ms * MS, TENANT, "session")
    assert session is not None
    assert session.budgets is not None
    assert session.budgets.tokens == 1000 - 40


@pytest.mark.req("ORCH-3016", "ORCH-3029")
def test_each_result_is_its_share_of_the_work() -> None:
    core = embedder()
    core.submit("a", **inputs(*[40] * 10))
    core.tell(TokensProgressed("a", 1, 4, 7))
    assert core.scheduler.state.sets[0].running_tokens == 60
    status = core.scheduler.status(core.now_ms * MS, "a", TENANT)
    assert status is not None
    assert status.tokens_out == 0


@pytest.mark.req("ORCH-3079", "ORCH-3081")
def test_deadlines_are_judged_by_the_pace_of_inputs() -> None:
    core = embedder(on_time_percent_min=85, ordering="edf")
    # A millisecond a token by the self-test: 400 bytes are about 100 tokens.
    error = one(core.submit("late", **inputs(*[40] * 10), deadline_ms=50), Reject).error
    assert error.code == "DEADLINE_UNMET"
    assert error.earliest_deadline_ms is not None
    assert 80 < error.earliest_deadline_ms < 250
    assert started(core.submit("fine", **inputs(*[40] * 10), deadline_ms=400)) == [("fine", 1, "r0")]
    assert core.scheduler.status(core.now_ms * MS, "fine", TENANT).on_time_probability == 1.0  # type: ignore[union-attr]
    core.now_ms += 395
    assert core.scheduler.status(core.now_ms * MS, "fine", TENANT).on_time_probability == 1.0  # type: ignore[union-attr]
    core.now_ms += 10
    assert core.scheduler.status(core.now_ms * MS, "fine", TENANT).on_time_probability == 0.0  # type: ignore[union-attr]


@pytest.mark.req("ORCH-3081")
def test_the_pace_is_learnt_from_all_inputs_of_a_task() -> None:
    core = embedder()
    for n in range(20):
        core.submit(f"t{n}", **inputs(*[40] * 10))
        core.now_ms += 200
        # The first result after 20 ms, the last one 180 ms later.
        core.tell(ended(f"t{n}", tokens_in=100, tokens_out=10, first_token_ns=20 * MS, decode_ns=180 * MS))
    predictor = core.scheduler.state.sets[0].predictor
    assert predictor.service_ns(100, 0) == pytest.approx(200 * MS, rel=0.02)
    assert predictor.cost_ns == pytest.approx(2 * MS, rel=0.02)
    assert not predictor.knows_lengths(TENANT, "embedding")


@pytest.mark.req("ORCH-3081")
@pytest.mark.parametrize("workload", ["embedding", "completion"])
def test_an_engine_that_does_not_count_teaches_the_pace_of_what_was_estimated(workload: str) -> None:
    core = Core(replica_set(workloads=(workload,), ctx=1000), ready=(replica(ctx=1000, token_ns=MS),))
    for n in range(20):
        core.submit(f"t{n}", **(inputs(*[40] * 10) | {"workload": workload, "ctx": 1000}))
        core.now_ms += 200
        core.tell(ended(f"t{n}", tokens_in=0, tokens_out=1, first_token_ns=200 * MS))
    predictor = core.scheduler.state.sets[0].predictor
    assert predictor.service_ns(100, 0) == pytest.approx(200 * MS, rel=0.05)
    assert predictor.service_ns(200, 0) < 500 * MS
    assert predictor.cost_ns == pytest.approx(2 * MS, rel=0.05)
    predictor.prefilled(400, 0, 0, 10**12, 10**12)
    assert predictor.service_ns(100, 0) == pytest.approx(200 * MS, rel=0.05)


def test_a_waiting_embedding_that_was_preempted_pays_for_what_it_read() -> None:
    core = Core(EMBED)
    info = task("a", **inputs(*[40] * 10))
    home = core.scheduler.state.sets[0]
    quota = core.scheduler.state.quotas.tenant(TENANT)
    assert quota is not None
    record = home.new_record(info, quota, 1)
    assert [record.work_of(chunks) for chunks in (0, 3, 10)] == [0, 30, 100]


@given(
    prompt=st.integers(1, 10**6),
    more=st.integers(0, 10**6),
    slack=st.integers(1, 10**12),
    samples=st.lists(st.tuples(st.integers(1, 10**5), st.integers(1, 10**10)), max_size=20),
)
def test_more_input_takes_no_less_time_and_more_slack_is_no_less_sure(
    prompt: int, more: int, slack: int, samples: list[tuple[int, int]]
) -> None:
    predictor = Predictor(decodes=False)
    for tokens, prefill_ns in samples:
        predictor.prefilled(4 * tokens, tokens, 0, prefill_ns, prefill_ns)
    assert predictor.service_ns(prompt, 0) <= predictor.service_ns(prompt + more, 0)
    sure = [
        predictor.on_time("a", "embedding", 0, None, left_ns, 0, 0.0, predictor.prefill_ns(prompt))
        for left_ns in (slack, 2 * slack)
    ]
    assert 0.0 <= sure[0] <= sure[1] <= 1.0
