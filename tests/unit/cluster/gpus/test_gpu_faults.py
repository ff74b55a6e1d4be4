"""What XIDs and NVML's return codes mean to a replica."""

import pytest

from orchestrator.cluster.gpus import faults


@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
@pytest.mark.parametrize(
    ("xids", "kind", "fatal"),
    [
        ((79,), "gpu_lost", True),
        ((48, 95, 140), "ecc", True),
        ((63, 64, 92, 94), "ecc", False),
        ((46, 62, 74, 110, 119, 120, 136, 143, 155, 156, 158), "driver", True),
        ((13, 31, 43, 1, 109, 9999), "xid", False),
    ],
)
def test_xids_by_what_is_to_be_done(xids: tuple[int, ...], kind: str, fatal: bool) -> None:
    verdicts = [faults.xid_verdict(xid) for xid in xids]
    assert {(verdict.kind, verdict.fatal) for verdict in verdicts} == {(kind, fatal)}
    assert all(verdict.text for verdict in verdicts)


@pytest.mark.req("ORCH-3038")
@pytest.mark.parametrize(
    ("code", "kind", "fatal"),
    [(15, "gpu_lost", True), (1, "driver", True), (9, "driver", True), (16, "driver", True), (18, "driver", True)],
)
def test_return_codes_that_end_an_engine(code: int, kind: str, fatal: bool) -> None:
    assert faults.nvml_verdict(code, "")[:2] == (kind, fatal)


def test_an_unknown_return_code_is_told_in_nvmls_words() -> None:
    assert faults.nvml_verdict(999, "Unknown Error") == ("driver", False, "NVML error 999: Unknown Error")
