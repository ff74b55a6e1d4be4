"""A pool that promises strict runs one task at a time unless batches are known not to matter."""

import pytest
from msgspec.structs import replace

from adapters.exactness import in_flight, is_exact, is_exact_as_launched
from contracts.engine import EngineSpec


@pytest.mark.req("ORCH-3045", "ORCH-3050")
@pytest.mark.parametrize(
    ("determinism", "batch_invariant", "known", "tasks", "exact"),
    [
        ("strict", None, True, 4, True),
        ("strict", None, False, 1, True),
        ("strict", True, False, 4, True),
        ("strict", False, True, 1, True),
        ("best_effort", None, False, 4, False),
        ("best_effort", None, True, 4, True),
        ("best_effort", False, True, 4, False),
    ],
)
def test_tasks_in_flight(
    spec: EngineSpec, determinism: str, batch_invariant: bool | None, known: bool, tasks: int, exact: bool
) -> None:
    pool = replace(spec, slots=4, determinism=determinism, batch_invariant=batch_invariant)
    assert in_flight(pool, known=known) == tasks
    assert is_exact(pool, known=known) is exact


@pytest.mark.req("ORCH-3045")
def test_one_slot_is_no_promise(spec: EngineSpec) -> None:
    pool = replace(spec, slots=1, determinism="best_effort", batch_invariant=None)
    assert not is_exact(pool, known=False)
    assert is_exact(pool, known=True)


@pytest.mark.req("ORCH-3045")
def test_of_an_engine_that_runs_already_nothing_but_what_is_known_or_declared_counts(spec: EngineSpec) -> None:
    pool = replace(spec, slots=4, endpoint="http://127.0.0.1:1", batch_invariant=None)
    assert in_flight(pool, known=False) == 1
    assert not is_exact_as_launched(pool, known=False)
    assert is_exact_as_launched(pool, known=True)
    assert is_exact_as_launched(replace(pool, batch_invariant=True), known=False)
    assert is_exact_as_launched(replace(pool, endpoint=""), known=False)
    assert not is_exact_as_launched(replace(pool, endpoint="", determinism="best_effort"), known=False)
