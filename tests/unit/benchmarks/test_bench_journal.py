"""The journal's benchmark measures what it says, and its limits are about figures that it has."""

from pathlib import Path

import pytest

from benchmarks import journal
from benchmarks.limits import load_limits


def test_each_side_is_measured_and_every_limit_has_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SECONDS", 0.05)
    rows = journal.run_all(tmp_path)
    assert [row.name for row in rows] == [f"{side}/{n}" for n in journal.CLIENTS for side in ("journal", "off")]
    assert all(row.records_per_s > 0 and row.p50_ms <= row.p99_ms for row in rows)
    assert set(load_limits("journal")) <= set(journal.figures(rows))
