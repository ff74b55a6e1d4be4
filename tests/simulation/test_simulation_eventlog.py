"""A log of a run repeats the scheduler's decisions without the world."""

from pathlib import Path

import pytest

from contracts.scheduling import TaskSubmitted
from orchestrator.simulation import experiment
from orchestrator.simulation.errors import TraceError
from orchestrator.simulation.eventlog import EventLog, Footer, Header, Step, read_log, replay
from orchestrator.simulation.policies import scheduler_config
from tests.simulation.sim_kit import scenario

WHAT = scenario(
    {"cancel_percent": 5, "resend_percent": 5, "arrivals": {"kind": "poisson", "per_second": 4}},
    {"name": "batch", "priority": "batch"},
    faults=[{"kind": "crash", "at_s": 10}, {"kind": "clock", "at_s": 20, "jump_ms": -3000}],
    progress_ms=500,
)


@pytest.fixture(scope="module", params=["run.log", "run.jsonl"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EventLog]:
    path = tmp_path_factory.mktemp("log") / str(request.param)
    with EventLog(path) as log:
        experiment.run(WHAT, 4, log=log)
    return path, log


@pytest.mark.req("ORCH-3024")
def test_the_same_events_give_the_same_commands(written: tuple[Path, EventLog]) -> None:
    path, log = written
    found = replay(path, check_every_steps=20)
    assert found.steps == log.commands.steps > 500
    assert found.commands == log.commands.hex()
    assert found.same


def test_a_log_is_configuration_steps_and_digest(written: tuple[Path, EventLog]) -> None:
    records = list(read_log(written[0]))
    first, *steps, last = records
    assert first == Header(scheduler_config(WHAT))
    assert last == Footer(len(steps), written[1].commands.hex())
    assert all(isinstance(record, Step) for record in steps)
    assert any(isinstance(record.event, TaskSubmitted) for record in steps if isinstance(record, Step))


def test_a_log_that_was_cut_off_is_repeated_as_far_as_it_goes(written: tuple[Path, EventLog], tmp_path: Path) -> None:
    path = tmp_path / f"cut{written[0].suffix}"
    raw = written[0].read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    found = replay(path)
    assert 100 < found.steps < written[1].commands.steps
    assert found.recorded is None
    assert not found.same


def test_other_commands_than_recorded_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with EventLog(path) as log:
        experiment.run(scenario(seconds=20), 1, log=log)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[4:]]))
    assert not replay(path).same


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.log", b"\xff\xff\xff\xff nonsense", "a record of 4294967295 bytes"),
        ("b.log", b"\0\0\0\3abc", "not a record of an event log"),
        ("c.jsonl", b'{"type": "apple"}\n', r"c.jsonl:1: not a record of an event log"),
        ("d.jsonl", b"", "does not begin with a configuration"),
    ],
)
def test_what_is_no_log_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        replay(path)


def test_a_missing_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        replay(tmp_path / "none.log")
