"""Private folders: only dead owners' are removed, however far their engines had come (OC-ADAPT-5002)."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from adapters.folder import SOCKET_NAME, private_folder, remove_folder

OWNER = f"""
import sys, tempfile, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[3])!r})
tempfile.tempdir = sys.argv[1]
from adapters.folder import private_folder
print(private_folder(), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.req("OC-ADAPT-5002")
def test_nobody_else_may_enter() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()


def test_the_folder_of_a_dead_owner_goes_and_of_a_living_one_stays(temporary: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(temporary)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    theirs = Path(owner.stdout.readline().strip())
    # An engine binds its socket before it listens: whoever asks then is refused, as by one that is dead.
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(theirs / SOCKET_NAME))
        own, second = private_folder(), private_folder()
        assert theirs.exists()
        assert own.exists()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    third = private_folder()
    assert not theirs.exists()
    assert own.exists()
    for folder in (own, second, third):
        remove_folder(folder)


def test_what_is_not_ours_to_judge_stays(temporary: Path) -> None:
    other = temporary / "llorch-engine-without-lock"
    other.mkdir()
    remove_folder(private_folder())
    assert other.exists()
