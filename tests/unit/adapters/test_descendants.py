"""Engines of several processes end whole, whichever of them ends first (ORCH-3001)."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.child import ChildProcess, bound_to_this_process

#: Starts a child in a session of its own, which starts another one, and writes down who they are.
FAMILY = """
import os, sys, time
for _ in range(2):
    if os.fork():
        break
    os.setsid()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def members(file: Path) -> list[int]:
    await until(lambda: file.exists() and len(file.read_text().split()) == 3)
    return [int(pid) for pid in file.read_text().split()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.req("ORCH-3001")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_what_a_killed_engine_leaves_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    child = ChildProcess([sys.executable, "-I", "-c", FAMILY, str(tmp_path / "pids")], {}, tree=True)
    pids = await members(tmp_path / "pids")
    engine = next(pid for pid in pids if parent_of(pid) == child.pid)
    os.kill(engine, number)
    assert await asyncio.wait_for(child.wait(), 30) == -number
    assert not any(alive(pid) for pid in pids)


@pytest.mark.req("ORCH-3001")
async def test_a_stop_is_passed_on_and_ends_all(tmp_path: Path) -> None:
    child = ChildProcess([sys.executable, "-I", "-c", FAMILY, str(tmp_path / "pids")], {}, tree=True)
    pids = await members(tmp_path / "pids")
    await child.stop()
    assert child.status == -signal.SIGTERM
    assert not any(alive(pid) for pid in pids)


@pytest.mark.req("ORCH-3001")
async def test_what_does_not_listen_is_killed_with_all_it_started(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + FAMILY
    child = ChildProcess([sys.executable, "-I", "-c", deaf, str(tmp_path / "pids")], {}, tree=True)
    pids = await members(tmp_path / "pids")
    await child.stop(grace_ms=300)
    assert child.status == -signal.SIGKILL
    assert not any(alive(pid) for pid in pids)


@pytest.mark.req("ORCH-3001")
async def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    child = ChildProcess([sys.executable, "-I", "-c", FAMILY, str(tmp_path / "pids")], {}, tree=True)
    pids = await members(tmp_path / "pids")
    os.kill(child.pid, signal.SIGKILL)
    assert await asyncio.wait_for(child.wait(), 30) == -signal.SIGKILL
    await until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.req("ORCH-3001")
async def test_all_end_with_the_owner(tmp_path: Path) -> None:
    argv = ["-I", "-c", FAMILY, str(tmp_path / "pids")]
    owner_code = f"""
import subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[3])!r})
from adapters.child import bound_to_this_process
subprocess.Popen(bound_to_this_process([sys.executable, *{argv!r}], tree=True))
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", owner_code])
    pids = await members(tmp_path / "pids")
    owner.kill()
    owner.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_status_is_the_programs() -> None:
    child = ChildProcess([sys.executable, "-I", "-c", "raise SystemExit(7)"], {}, tree=True)
    assert await asyncio.wait_for(child.wait(), 30) == 7


def test_a_parent_that_is_gone_starts_nothing(tmp_path: Path) -> None:
    argv = bound_to_this_process(["/bin/touch", str(tmp_path / "started")], tree=True)
    argv[4] = "1"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "parent process is gone" in done.stderr) == (1, True)
    assert not (tmp_path / "started").exists()
