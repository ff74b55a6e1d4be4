"""What pools are started for, and what they promise: rules, and their way to the scheduler."""

import pytest

from tests.unit.config.config_kit import POOL, good, only, pair, pool, problems, scheduled


@pytest.mark.req("ORCH-3007", "ORCH-3046", "OC-CONFIG-6001")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("workload: embedding", "slots: 4", "workload (embedding and completion)"),
        ("slots: 4", "determinism: best_effort", "determinism (strict and best_effort)"),
    ],
)
def test_pools_of_one_set_serve_and_promise_the_same(first: str, second: str, told: str) -> None:
    problem = only(pair(first, second))
    assert problem.message == f"pools `a` and `b` form one replica set but differ in {told}"
    assert "or make them different sets" in problem.hint
    good(pair(first, f"{second}\n    ctx: 1024"))


@pytest.mark.req("ORCH-3095")
@pytest.mark.parametrize(
    ("engine", "workload", "able"),
    [
        ("tgi", "embedding", "llamacpp, vllm, triton"),
        ("tgi", "rerank", "llamacpp, vllm"),
        ("triton", "rerank", "llamacpp, vllm"),
    ],
)
def test_an_engine_is_refused_for_what_it_does_not_serve(engine: str, workload: str, able: str) -> None:
    text = POOL.replace("llamacpp", engine) + f"    model_path: m.gguf\n    workload: {workload}\n"
    (problem,) = [problem for problem in problems(text) if "workload" in problem.message]
    assert problem.message == f"engine `{engine}` does not serve workload `{workload}`"
    assert problem.hint == f"engines that do: {able}"
    assert problem.line == 7


@pytest.mark.req("ORCH-3095", "ORCH-3045")
def test_the_scheduler_is_told_of_both() -> None:
    plain, ranks = scheduled(
        "pools:\n" + pool("a") + pool("b", "ctx: 512", "workload: rerank", "determinism: best_effort")
    ).sets
    assert (plain.workloads, plain.determinism) == (("completion",), "strict")
    assert (ranks.workloads, ranks.determinism) == (("rerank",), "best_effort")
