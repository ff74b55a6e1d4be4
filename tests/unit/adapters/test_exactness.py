"""A pool that promises strict runs one task at a time unless batches are known not to matter."""

import pytest
from msgspec.structs import replace

from adapters.exactness import in_flight, is_exact
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
