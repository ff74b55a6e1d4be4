"""The scheduler's process: it ends in order when it is told to, and tries again to open what it could not."""

import asyncio
import os
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
    print("epoch", (await actor.endpoint()).epoch, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_scheduler_that_is_told_to_end_does_so_and_lets_the_folder_go(tmp_path: Path) -> None:
    for epoch in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        assert process.stdout is not None
        with process.stdout:
            assert any(line == f"epoch {epoch}\n" for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 1  # unexpected, as Ray sees it: it starts another
    assert read(tmp_path).epoch == 3


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
    with pytest.raises(JournalBusyError):
        await actor.endpoint()
    other._writer.close(0)
    other._folder.close()
    first, second = await asyncio.gather(actor.endpoint(), actor.endpoint())
    assert first == second
    assert first.epoch == 2
    assert await actor.shutdown(1000) == (0, 0)
    assert ends == [actor._close]
    await actor._close()


@pytest.mark.parametrize("failure", [ray.exceptions.GetTimeoutError("slow"), KeyboardInterrupt()])
def test_a_start_that_takes_too_long_or_is_broken_off_leaves_no_actor_behind(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    killed: list[object] = []
    actor = MagicMock()

    def get(*_: object, **__: object) -> None:
        raise failure

    scripted = MagicMock(get=get, kill=killed.append, exceptions=ray.exceptions)
    scripted.remote.return_value.options.return_value.remote.return_value = actor
    monkeypatch.setattr(scheduler_actor, "ray", scripted)
    with pytest.raises(type(failure)):
        scheduler_actor.start_scheduler(CONFIG, SECRET, Storage(journal=False))
    assert killed == [actor]
