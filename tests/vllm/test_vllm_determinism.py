"""The determinism suite is red for a vLLM that batches, which is why the adapter has it serve one task at a time."""

from pathlib import Path

import pytest

from adapters import create_adapter
from adapters.testing.determinism import PLAN_DEFAULT, Plan, examine
from adapters.testing.determinism.subjects import Changes, specs_of


@pytest.mark.timeout(1800)
@pytest.mark.req("ORCH-3050", "OC-TEST-7002")
async def test_vllm_with_batches_makes_the_suite_red(tmp_path: Path) -> None:
    """Declared batch invariant, which it is not, it serves all slots at once.

    With 16 bits a difference in rounding changes a text soon; with the adapter's 32 bits seldom.
    """
    plan = Plan(
        seeds=PLAN_DEFAULT.seeds[:8],
        prompts=("short", "medium", "multibyte", "chat"),
        scenarios=("concurrent",),
        tokens_min=24,
        tokens_max=24,
        crossed=True,
    )
    specs = specs_of("vllm", Changes(slots=8, args=("--dtype", "bfloat16"), batch_invariant=True))
    report = await examine(create_adapter, specs, plan, out=tmp_path / "out")
    assert not report.green
    assert report.slots == 8
    assert report.ledger.failures == []
    assert report.ledger.counts["concurrent"].differences > 0
    assert report.ledger.counts["alone"].differences == 0
    assert report.artefacts
