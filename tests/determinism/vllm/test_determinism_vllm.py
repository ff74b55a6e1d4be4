"""vLLM on the CPU: exact one task at a time, and not with batches. A target of its own: it takes long to come up."""

from pathlib import Path

import pytest

from adapters import create_adapter
from adapters.testing.determinism import PLAN_DEFAULT, Plan, Report, examine, summary
from adapters.testing.determinism.subjects import Changes, specs_of
from adapters.testing.determinism.tasks import PROMPTS_MIN, SEEDS_MIN

OUT = Path(".llorch") / "determinism"

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.req("ORCH-3045", "ORCH-3050", "OC-TEST-7001", "OC-TEST-7002", "OC-TEST-7003")
async def test_vllm_is_byte_exact_one_task_at_a_time(reports: list[Report]) -> None:
    report = await examine(create_adapter, specs_of("vllm", Changes()), PLAN_DEFAULT, out=OUT / "vllm")
    reports.append(report)
    assert report.green, summary(report)
    assert len(report.ledger.counts["alone"].seeds) >= SEEDS_MIN
    assert len(report.ledger.counts["alone"].prompts) >= PROMPTS_MIN
    assert "REPLICA_EXHAUSTED proven" in report.ledger.not_applicable["concurrent"]


@pytest.mark.req("ORCH-3050", "OC-TEST-7002")
async def test_vllm_with_batches_makes_the_suite_red(tmp_path: Path) -> None:
    """Declared batch invariant, which it is not, it serves all slots at once."""
    plan = Plan(seeds=PLAN_DEFAULT.seeds[:16], scenarios=("concurrent",), tokens_min=16, tokens_max=24)
    specs = specs_of("vllm", Changes(slots=8, batch_invariant=True))
    report = await examine(create_adapter, specs, plan, out=tmp_path / "out")
    assert not report.green
    assert report.ledger.counts["concurrent"].differences > 0
    assert report.ledger.counts["alone"].differences == 0
    assert report.artefacts
