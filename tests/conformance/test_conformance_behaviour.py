"""Every engine that can be run here, as its adapter runs it (ORCH-3049, ORCH-3054, ORCH-3056, ORCH-3057)."""

import pytest

from adapters.testing.conformance.engines import SUBJECTS
from adapters.testing.conformance.report import Result
from adapters.testing.conformance.runner import BEHAVIOUR_CASES, run_behaviour
from adapters.testing.conformance.subject import Bench
from tests.conformance.plan import behaviour_case

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.req(
    "ORCH-3014",
    "ORCH-3017",
    "ORCH-3019",
    "ORCH-3025",
    "ORCH-3026",
    "ORCH-3032",
    "ORCH-3045",
    "ORCH-3054",
    "ORCH-3056",
    "ORCH-3057",
    "ORCH-3058",
    "OC-ADAPT-5002",
    "OC-ADAPT-5010",
    "OC-ADAPT-5011",
)
@pytest.mark.parametrize("case", [case.name for case in BEHAVIOUR_CASES])
@pytest.mark.parametrize("bench", sorted(SUBJECTS), indirect=True, scope="module")
async def test_the_engine_behaves(bench: Bench, case: str, results: list[Result]) -> None:
    result = await run_behaviour(bench, behaviour_case(case))
    results.append(result)
    assert result.verdict != "failed", result.reason
    assert result.verdict == "passed" or result.reason
