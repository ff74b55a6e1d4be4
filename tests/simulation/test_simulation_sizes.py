"""Drawn sizes keep to their bounds, their shape and their seed."""

from random import Random
from statistics import mean, median
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.simulation.sizes import SIZE_MAX, Size, drawer

SIZE: TypeAdapter[Any] = TypeAdapter(Size)


def draws(spec: Any, count: int = 4000, seed: int = 7) -> list[int]:
    draw = drawer(SIZE.validate_python(spec), Random(seed))
    return [draw() for _ in range(count)]


def test_a_bare_number_is_always_itself() -> None:
    assert set(draws(300, 10)) == {300}


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "uniform", "min": 5, "max": 50},
        {"kind": "lognormal", "median": 20, "sigma": 1.5, "min": 5, "max": 50},
        {"kind": "pareto", "alpha": 0.5, "min": 5, "max": 50},
        {"kind": "exponential", "mean": 30, "min": 5, "max": 50},
    ],
    ids=lambda spec: spec["kind"],
)
def test_draws_are_whole_keep_to_the_bounds_and_reach_them(spec: dict[str, Any]) -> None:
    found = draws(spec)
    assert all(isinstance(size, int) for size in found)
    assert (min(found), max(found)) == (5, 50)


def test_the_shapes_are_what_they_are_called() -> None:
    assert median(draws({"kind": "lognormal", "median": 200, "sigma": 0.5})) == pytest.approx(200, rel=0.05)
    assert mean(draws({"kind": "exponential", "mean": 500})) == pytest.approx(500, rel=0.05)
    # Pareto: half are above min * 2 ** (1 / alpha).
    assert median(draws({"kind": "pareto", "alpha": 2, "min": 100})) == pytest.approx(100 * 2**0.5, rel=0.05)
    chosen = draws({"kind": "choice", "of": {64: 3, 512: 1}})
    assert set(chosen) == {64, 512}
    assert chosen.count(64) / len(chosen) == pytest.approx(0.75, abs=0.03)


def test_a_heavy_tail_ends_somewhere() -> None:
    assert max(draws({"kind": "pareto", "alpha": 0.1})) == SIZE_MAX


def test_the_same_seed_draws_the_same() -> None:
    spec = {"kind": "lognormal", "median": 200}
    assert draws(spec, 50) == draws(spec, 50)
    assert draws(spec, 50) != draws(spec, 50, seed=8)


@pytest.mark.parametrize(
    "spec",
    [
        -1,
        {"kind": "lognormal"},
        {"kind": "gauss", "mean": 3},
        {"kind": "choice", "of": {}},
        {"kind": "pareto", "alpha": 0},
    ],
)
def test_what_cannot_be_drawn_is_refused(spec: Any) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(spec)


def test_bounds_in_the_wrong_order_are_told() -> None:
    with pytest.raises(ValidationError, match="min 9 is over max 3"):
        SIZE.validate_python({"kind": "uniform", "min": 9, "max": 3})
