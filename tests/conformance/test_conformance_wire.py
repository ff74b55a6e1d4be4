"""Every adapter against a peer that plays its engine's wire byte for byte (OC-ADAPT-5001)."""

import pytest

from adapters.testing.conformance.engines import DIALECTS
from adapters.testing.conformance.report import Result
from adapters.testing.conformance.runner import WIRE_CASES, run_wire
from tests.conformance.plan import dialect, wire_case


@pytest.mark.req(
    "OC-ADAPT-5001",
    "OC-ADAPT-5010",
    "OC-ADAPT-5020",
    "OC-ADAPT-5040",
    "OC-ADAPT-5060",
    "ORCH-3017",
    "ORCH-3019",
    "ORCH-3025",
    "ORCH-3026",
    "ORCH-3058",
)
@pytest.mark.parametrize("case", [case.name for case in WIRE_CASES])
@pytest.mark.parametrize("engine", sorted(DIALECTS))
async def test_the_adapter_conforms_on_the_wire(engine: str, case: str, results: list[Result]) -> None:
    result = await run_wire(dialect(engine), wire_case(case))
    results.append(result)
    assert result.verdict != "failed", result.reason
    # What does not apply is in the table, with its reason.
    assert result.verdict == "passed" or result.reason
