"""Where a service keeps what outlives it, and how long it may take to stop."""

from pathlib import Path

import pytest

from contracts.config import Config
from orchestrator.app import storage_of
from orchestrator.configfile import loads
from tests.unit.config.config_kit import POOL, good, only

pytestmark = pytest.mark.req("ORCH-3051", "OC-CONFIG-6001")


def storage(text: str, base: Path) -> Config:
    return loads(POOL + text, "f.yaml", base=base).config


def test_without_a_folder_the_scheduler_finds_its_own(tmp_path: Path) -> None:
    found = storage_of(storage("", tmp_path))
    assert (found.folder, found.journal, found.bytes_max) == (None, True, 4 * 1024**3)


def test_a_relative_folder_counts_from_the_file(tmp_path: Path) -> None:
    text = "storage: {data_dir: data, journal: false, bytes_max: 16777216}\n"
    found = storage_of(storage(text, tmp_path))
    assert (found.folder, found.journal, found.bytes_max) == (str(tmp_path / "data"), False, 16 * 1024**2)
    assert storage_of(storage("storage: {data_dir: ~/data}\n", tmp_path)).folder == str(Path.home() / "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("storage: {bytes_max: 1000}\n", "`bytes_max` should be greater than or equal to 16777216"),
        ("storage: {data: x}\n", "unknown field `data`"),
        ("server: {shutdown_ms: -1}\n", "`shutdown_ms` should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    assert only(POOL + text).message == message


def test_a_service_may_be_stopped_at_once() -> None:
    assert good(POOL + "server: {shutdown_ms: 0}\n").config.server.shutdown_ms == 0
    assert good(POOL).config.server.shutdown_ms == 10_000
