"""The plan of a chaos run: the same from the same seed, and as harsh as promised."""

from itertools import pairwise

import pytest

from tests.chaos.plan import KILLS, TROUBLES, FaultPlan, faults, recipes, tasks

SEEDS = (1, 2, 7, 99)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_plan_follows_from_the_seed(seed: int) -> None:
    assert recipes(seed) == recipes(seed)
    assert tasks(seed, 60, recipes(seed)) == tasks(seed, 60, recipes(seed))
    assert faults(seed, 60) == faults(seed, 60)
    assert faults(seed, 60) != faults(seed + 1, 60)
    assert recipes(seed) != recipes(seed + 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_something_is_killed_in_every_ten_seconds(seed: int) -> None:
    at_s = [0.0, *(fault.at_s for fault in faults(seed, 600) if fault.kind in KILLS), 600.0]
    assert max(after - before for before, after in pairwise(at_s)) <= 10


@pytest.mark.parametrize("seed", SEEDS)
def test_every_kind_has_its_turn_and_time_to_recover(seed: int) -> None:
    made = faults(seed, 600)
    assert {fault.kind for fault in made} == {*KILLS, *TROUBLES}
    for kind, (_, least_s) in KILLS.items():
        at_s = [fault.at_s for fault in made if fault.kind == kind]
        assert all(after - before >= least_s - 0.01 for before, after in pairwise(at_s)), kind


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_run_has_every_kind_already(seed: int) -> None:
    assert {fault.kind for fault in faults(seed, 110)} >= {*KILLS, *TROUBLES}


def test_one_trouble_of_a_kind_at_a_time() -> None:
    for kind in ("stop engine", "stop scheduler", "disk full"):
        made = [fault for fault in faults(5, 600) if fault.kind == kind]
        assert all(one.at_s + one.lasts_ms / 1000 <= two.at_s + 0.01 for one, two in pairwise(made))


def test_only_the_asked_kinds() -> None:
    made = faults(3, 120, ["kill engine"])
    assert {fault.kind for fault in made} == {"kill engine"}
    assert all(fault.otherwise == () for fault in made)
    moments = [fault.at_s for fault in faults(3, 120) if fault.kind in KILLS]
    assert [fault.at_s for fault in made] == moments
    assert {fault.kind for fault in faults(3, 120, ["cut replica link", "kill node"])} == {
        "cut replica link",
        "kill node",
    }


def test_a_kill_names_every_other_quick_kind_to_kill_instead() -> None:
    kills: list[FaultPlan] = [fault for fault in faults(4, 120) if fault.kind in KILLS]
    quick = {*KILLS} - {"kill node", "kill haproxy"}
    assert all({*fault.otherwise} == quick - {fault.kind} for fault in kills)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_are_five_hundred_tasks_of_every_sort(seed: int) -> None:
    made = recipes(seed)
    planned = tasks(seed, 600, made)
    assert len(planned) >= 500
    assert [plan.at_s for plan in planned] == sorted(plan.at_s for plan in planned)
    assert {plan.style for plan in planned} == {"one_call", "post_get", "shipped"}
    assert {plan.door for plan in planned} == {"own", "haproxy"}
    real = sum(made[plan.recipe].pool == "real" for plan in planned)
    assert 0.05 < real / len(planned) < 0.2
    for sort in ("leave_after", "cancel_after", "session"):
        assert sum(getattr(plan, sort) >= 0 for plan in planned) >= 10, sort
    assert sum(plan.slow_ms > 0 for plan in planned) >= 10
    assert {plan.recipe for plan in planned} == set(range(len(made)))


def test_clients_leave_and_cancel_inside_of_the_text() -> None:
    made = recipes(1)
    for plan in tasks(1, 600, made):
        assert plan.leave_after < made[plan.recipe].max_tokens
        assert plan.cancel_after < made[plan.recipe].max_tokens
        assert min(plan.leave_after, plan.cancel_after) == -1
        assert not (plan.style == "shipped" and plan.leave_after >= 0)


def test_recipes_are_distinct_texts() -> None:
    made = recipes(6)
    assert len({(recipe.pool, recipe.prompt, recipe.seed, recipe.max_tokens) for recipe in made}) == len(made)
