"""The suite can tell: green with the adapter's settings of llama.cpp, red with the engine's own, on real processes.

All engines with the whole plan are run by `python -m adapters.testing.determinism`.
"""

from pathlib import Path

import pytest

from adapters import create_adapter
from adapters.llamacpp.provision import find_engine
from adapters.testing.determinism import PLAN_DEFAULT, Plan, Report, examine, summary
from adapters.testing.determinism.subjects import Changes, specs_of

SCENARIOS = ("concurrent", "cache off")
PLAN = Plan(seeds=PLAN_DEFAULT.seeds[:12], prompts=("medium",), scenarios=SCENARIOS, tokens_min=12, tokens_max=12)


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine from the usual cache; goldens are kept apart."""
    found = str(find_engine())
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    return found


async def examined(tmp_path: Path, changes: Changes) -> Report:
    return await examine(create_adapter, specs_of("llamacpp", changes), PLAN, out=tmp_path / "out")


@pytest.mark.timeout(300)
@pytest.mark.req("ORCH-3045", "ORCH-3050", "OC-TEST-7001", "OC-TEST-7002", "OC-CORE-1030")
async def test_the_settings_of_the_adapter_are_exact(tmp_path: Path, binary: str) -> None:
    report = await examined(tmp_path, Changes(binary=binary))
    assert report.green, summary(report)
    assert report.slots == 8
    assert report.ledger.counts["concurrent"].comparisons == 2 * len(PLAN.seeds)
    assert report.golden == f"0 compared, {len(PLAN.seeds)} pinned for the first time"
    assert report.artefacts == ()


@pytest.mark.timeout(300)
@pytest.mark.req("ORCH-3050", "OC-TEST-7002")
async def test_the_settings_of_the_engine_are_not_and_make_the_suite_red(tmp_path: Path, binary: str) -> None:
    """With its own batch sizes a cached prompt gives other bits than a computed one."""
    report = await examined(tmp_path, Changes(binary=binary, args=("-b", "2048", "-ub", "512"), batch_invariant=True))
    assert not report.green
    assert report.ledger.failures == []
    assert report.ledger.counts["cache off"].differences > 0
    assert report.golden.endswith("none pinned: the run is red")
    assert not (tmp_path / "cache" / "goldens").exists()
    artefact = next(path for path in report.artefacts if "cache-off" in path.name)
    text = artefact.with_suffix(".txt").read_text()
    for part in ("llama.cpp b", "-b 2048 -ub 512", "cache off", "medium", "parts at"):
        assert part in text
