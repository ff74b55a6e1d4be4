"""The scheduler's process: it ends in order when it is told to, and tries again to open what it could not."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import ray

from orchestrator.cluster import scheduler_actor
from orchestrator.cluster.journal import folder
from orchestrator.cluster.journal.errors import JournalBusyError
from orchestrator.cluster.journal.store import Journal, Storage
from orchestrator.cluster.scheduler_actor import SchedulerActor
from tests.unit.cluster.journal_kit import read
from tests.unit.cluster.scripted import SECRET
from tests.unit.cluster.scripted_core import CONFIG

pytestmark = pytest.mark.req("ORCH-3051")
ROOT = Path(__file__).parents[3]

PROCESS = """
import asyncio, sys
from orchestrator.cluster import scheduler_actor
from orchestrator.cluster.journal.store import Storage
from tests.unit.cluster.scripted_core import CONFIG
scheduler_actor.node_id, scheduler_actor.get_node_ip_address = lambda: "node", lambda: "127.0.0.1"
async def main():
    actor = scheduler_actor.SchedulerActor(CONFIG, b"s" * 32, Storage(sys.argv[1]))
    print("wants to lead", flush=True)
    print("epoch", (await actor.endpoint()).epoch, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )


def leads(process: subprocess.Popen[str], epoch: int) -> bool:
    """Wait until it leads; false if it ends instead, or begins another epoch."""
    assert process.stdout is not None
    return any(line == f"epoch {epoch}\n" for line in process.stdout)


def test_a_scheduler_that_is_told_to_end_does_so_and_lets_the_folder_go(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with start(tmp_path) as process:
            assert leads(process, epoch)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 1  # unexpected, as Ray sees it: it starts another
    assert read(tmp_path).epoch == 3


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_who_stands_by_leads_as_soon_as_the_leader_is_gone(tmp_path: Path, ended_by: signal.Signals) -> None:
    with start(tmp_path) as leader:
        assert leads(leader, 1)
        with start(tmp_path) as standby:
            assert standby.stdout is not None
            assert standby.stdout.readline() == "wants to lead\n"
            assert not select.select([standby.stdout], [], [], 0.5)[0]
            assert leader.poll() is None
            leader.send_signal(ended_by)
            assert leads(standby, 2)
            standby.kill()


def test_who_stands_by_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Also while it waits: Ray would not start it again after the end that Python's own handler makes."""
    with start(tmp_path) as leader:
        assert leads(leader, 1)
        with start(tmp_path) as standby:
            assert standby.stdout is not None
            assert standby.stdout.readline() == "wants to lead\n"
            standby.send_signal(signal.SIGTERM)
            assert standby.wait(30) == 1
        assert leader.poll() is None
        leader.kill()


async def test_a_folder_that_was_taken_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0)
    monkeypatch.setattr(scheduler_actor, "node_id", lambda: "node")
    monkeypatch.setattr(scheduler_actor, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(scheduler_actor.logs, "configure", lambda: None)
    monkeypatch.setattr(scheduler_actor.gc, "freeze", lambda: None)
    monkeypatch.setattr(scheduler_actor.gc, "set_threshold", lambda *_: None)
    ends: list[object] = []
    monkeypatch.setattr(scheduler_actor, "when_terminated", ends.append)
    actor = SchedulerActor(CONFIG, SECRET, Storage(str(tmp_path)))
    other, _ = Journal.open(tmp_path)
    assert await actor.shutdown(1000) is None
    with pytest.raises(JournalBusyError):
        await actor.endpoint()
    assert await actor.shutdown(1000) is None
    other._writer.close(0)
    other._folder.close()
    first, second = await asyncio.gather(actor.endpoint(), actor.endpoint())
    assert first == second
    assert first.epoch == 2
    assert await actor.shutdown(1000) == (0, 0)
    assert ends == [actor._close]
    await actor._close()


class Answers:
    """A scripted Ray: actors answer what they are given, an exception is raised."""

    exceptions = ray.exceptions

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.actors: list[dict[str, object]] = []
        self.killed: list[object] = []
        self.kill = self.killed.append

    def remote(self, _class: type) -> MagicMock:
        made = MagicMock()

        def options(**options: object) -> MagicMock:
            self.actors.append(options)
            return made

        made.options = options
        return made

    def get(self, _answer: object, timeout: float | None = None) -> object:  # noqa: ARG002  (Ray's own signature)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def wait(self, answers: list[object], timeout: float) -> tuple[list[object], list[object]]:
        assert timeout > 0
        return answers[:1], answers[1:]


@pytest.mark.parametrize("failure", [ray.exceptions.GetTimeoutError("slow"), KeyboardInterrupt()])
def test_a_start_that_takes_too_long_or_is_broken_off_leaves_no_actor_behind(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    scripted = Answers(failure)
    monkeypatch.setattr(scheduler_actor, "ray", scripted)
    with pytest.raises(type(failure)):
        scheduler_actor.start_scheduler(CONFIG, SECRET, Storage())
    assert len(scripted.killed) == len(scripted.actors) == 1


@pytest.mark.parametrize(("journal", "names"), [(True, ["scheduler", "scheduler-standby"]), (False, ["scheduler"])])
def test_one_stands_by_where_there_is_a_journal_to_go_on_from(
    monkeypatch: pytest.MonkeyPatch, journal: bool, names: list[str]
) -> None:
    scripted = Answers("an endpoint")
    monkeypatch.setattr(scheduler_actor, "ray", scripted)
    scheduler_actor.start_scheduler(CONFIG, SECRET, Storage(journal=journal))
    assert [options["name"] for options in scripted.actors] == names
    assert not scripted.killed


DIED = ray.exceptions.ActorDiedError()


@pytest.mark.parametrize(
    ("answers", "left"), [((None, (2, 1)), (2, 1)), (((2, 1),), (2, 1)), ((DIED, None), None), ((DIED, (0, 0)), (0, 0))]
)
def test_whoever_leads_is_drained(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[object, ...], left: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(scheduler_actor, "ray", Answers(*answers))
    monkeypatch.setattr(scheduler_actor, "schedulers", lambda: [MagicMock(), MagicMock()])
    assert scheduler_actor.drain_scheduler(1000, lambda: False) == left


def test_where_ray_is_gone_nothing_is_left_to_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def schedulers() -> None:
        raise ray.exceptions.RaySystemError("no cluster")

    monkeypatch.setattr(scheduler_actor, "schedulers", schedulers)
    assert scheduler_actor.drain_scheduler(1000, lambda: False) is None
