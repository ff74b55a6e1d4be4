"""The kernel's count of processes killed for want of memory."""

from pathlib import Path

import pytest

from adapters.oom_kills import oom_kills


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.req("ORCH-3039")
def test_the_own_group_comes_before_the_host(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    write(tmp_path, "proc/vmstat", "nr_free_pages 5\noom_kill 7\n")
    assert oom_kills(tmp_path) == 7
    write(tmp_path, "proc/self/cgroup", "0::/pods/a\n")
    assert oom_kills(tmp_path) == 7
    write(tmp_path, "sys/fs/cgroup/pods/a/memory.events", "low 0\noom 3\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    write(tmp_path, "proc/self/cgroup", "4:memory:/x\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.events", "oom_kill 9\n")
    assert oom_kills(tmp_path) == 9


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill many\n", "oom_kill 1 2\n"])
def test_what_cannot_be_read_counts_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, "proc/vmstat", text)
    assert oom_kills(tmp_path) == 0


def test_this_host_tells_something() -> None:
    assert oom_kills() >= 0
