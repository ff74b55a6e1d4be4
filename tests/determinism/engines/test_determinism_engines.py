"""Real engines, two processes each, the shipped plan: every byte is the same. And what makes it red."""

from pathlib import Path

import pytest

from adapters import create_adapter
from adapters.llamacpp.provision import find_engine
from adapters.testing.determinism import PLAN_DEFAULT, Plan, Report, examine, summary
from adapters.testing.determinism.subjects import Changes, specs_of
from adapters.testing.determinism.tasks import PROMPTS_MIN, SEEDS_MIN

#: Where a red run leaves what differed.
OUT = Path(".llorch") / "determinism"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["llamacpp", "triton"])
@pytest.mark.req("ORCH-3045", "ORCH-3047", "ORCH-3050", "OC-TEST-7001", "OC-TEST-7002", "OC-TEST-7003")
@pytest.mark.req("OC-CORE-1030", "OC-CORE-1031", "OC-CORE-1032")
async def test_every_stream_is_byte_exact(engine: str, reports: list[Report]) -> None:
    report = await examine(create_adapter, specs_of(engine, Changes()), PLAN_DEFAULT, out=OUT / engine)
    reports.append(report)
    assert report.green, summary(report)
    assert len(report.ledger.counts["alone"].seeds) >= SEEDS_MIN
    assert len(report.ledger.counts["alone"].prompts) >= PROMPTS_MIN
    assert report.slots > 1
    assert len(report.ledger.counts["concurrent"].seeds) >= SEEDS_MIN


@pytest.mark.timeout(600)
@pytest.mark.req("ORCH-3050", "OC-TEST-7002")
async def test_an_engine_that_is_not_exact_makes_the_suite_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-server's own default batch sizes: a cached prompt gives other bits than a computed one."""
    binary = str(find_engine())
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    changes = Changes(binary=binary, args=("-b", "2048", "-ub", "512"), batch_invariant=True)
    plan = Plan(seeds=PLAN_DEFAULT.seeds[:12], prompts=("medium",), scenarios=("cache off",), tokens_min=12)
    report = await examine(create_adapter, specs_of("llamacpp", changes), plan, out=tmp_path / "out")
    assert not report.green
    assert report.ledger.failures == []
    assert report.ledger.counts["cache off"].differences > 0
    assert report.golden.endswith("none pinned: the run is red")
    assert not (tmp_path / "cache" / "goldens").exists()
    text = report.artefacts[0].with_suffix(".txt").read_text()
    for part in ("llama.cpp b", "-b 2048 -ub 512", "cache off", "medium", "parts at"):
        assert part in text
