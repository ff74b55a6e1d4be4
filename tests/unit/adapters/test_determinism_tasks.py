"""What the determinism suite asks: fixed for ever, enough of it, and told apart."""

import hashlib

import msgspec
import pytest

from adapters.testing.determinism.tasks import PLAN_DEFAULT, PLAN_FULL, PROMPTS, PROMPTS_MIN, SEEDS, Plan


@pytest.mark.req("OC-TEST-7003")
def test_there_are_64_seeds_and_they_never_change() -> None:
    assert len(set(SEEDS)) == len(SEEDS) == 64
    assert all(0 <= seed < 2**63 for seed in SEEDS)
    assert SEEDS[:5] == (0, 1, 2**32 - 1, 2**63 - 1, 3_192_219_941_094_330_299)
    assert hashlib.sha256(msgspec.json.encode(SEEDS)).hexdigest()[:16] == "9d3a65ece48bcf3c"


@pytest.mark.req("ORCH-3050", "OC-TEST-7003")
def test_prompts_reach_from_nothing_to_long_and_tasks_are_told_apart() -> None:
    assert len(PROMPTS) >= PROMPTS_MIN
    lengths = [len(prompt) for prompt in PROMPTS.values() if isinstance(prompt, str)]
    assert min(lengths) == 0
    assert max(lengths) > 1500
    assert any(isinstance(prompt, str) and not prompt.isascii() for prompt in PROMPTS.values())
    assert any(isinstance(prompt, list) for prompt in PROMPTS.values())
    for plan in (PLAN_DEFAULT, PLAN_FULL):
        tasks = plan.tasks()
        assert len({task.name for task in tasks}) == len(tasks) == 64 * len(PROMPTS)
        lengths = [task.request.max_tokens for task in tasks]
        assert min(lengths) >= plan.tokens_min
        assert max(lengths) <= plan.tokens_max
        assert len(set(lengths)) > 5
    assert not {task.name for task in PLAN_DEFAULT.tasks()} & {task.name for task in PLAN_FULL.tasks()}


@pytest.mark.req("OC-TEST-7003")
def test_dealing_leaves_out_no_seed_and_no_prompt() -> None:
    for turn in range(6):
        dealt = PLAN_DEFAULT.dealt(tuple(PROMPTS), turn)
        assert [task.seed for task in dealt] == list(SEEDS)
        assert {task.prompt_id for task in dealt} == set(PROMPTS)
    assert PLAN_DEFAULT.dealt(("long",), 0)[5].prompt_id == "long"
    assert len(PLAN_FULL.dealt(tuple(PROMPTS), 0)) == 64 * len(PROMPTS)


def test_continued_prompts_begin_alike_and_break_in_different_places() -> None:
    pairs = Plan(continued=64).continuations()
    assert len(pairs) == 64
    for begin, whole in pairs:
        assert begin.prompt
        assert whole.request.prompt
        assert whole.request.prompt.startswith(begin.prompt)
        assert begin.prompt != whole.request.prompt
    assert len({len(begin.prompt or "") for begin, _ in pairs}) > 50
    assert len({whole.request.prompt for _, whole in pairs}) == 64


def test_a_task_told_to_be_cold_differs_in_that_alone() -> None:
    task = PLAN_DEFAULT.task("short", SEEDS[4])
    cold = task.cold()
    assert cold.request.kv_hint == "cold"
    assert (cold.request.prompt, cold.request.seed) == (task.request.prompt, task.seed)
