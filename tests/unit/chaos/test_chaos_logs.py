"""What the chaos suite takes from the logs of the service."""

from pathlib import Path

from tests.chaos.logs import log_checks


def test_alarms_and_errors_are_counted(tmp_path: Path) -> None:
    (tmp_path / "worker-1.err").write_text(
        ":actor_name:SchedulerActor\n"
        '{"job_id":"t1","attempt":2,"event":"task.diverged","level":"error"}\n'
        '{"event":"pool.restart","level":"warning"}\n'
        '{"event":"manager.crashed","level":"error"}\n'
        'broken {"level":"error"\n'
    )
    (tmp_path / "worker-2.err").write_text('{"event":"manager.crashed","level":"error"}\n')
    (check,), told = log_checks(tmp_path)
    assert check.findings == ("task t1, attempt 2",)
    assert told == "errors logged: manager.crashed 2, task.diverged 1"


def test_quiet_logs_hold(tmp_path: Path) -> None:
    (check,), told = log_checks(tmp_path)
    assert check.holds
    assert told == "errors logged: none"
