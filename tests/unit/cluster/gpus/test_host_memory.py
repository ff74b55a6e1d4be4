"""The host's memory under control groups of both versions, and NUMA binding."""

from pathlib import Path

import pytest

from orchestrator.cluster.gpus import topology
from orchestrator.cluster.gpus.host import HostMemory, read_host

KIB = 1024
MIB = 2**20


class Host:
    """A /proc and a /sys/fs/cgroup to read: 1000 MiB, 600 of them available."""

    def __init__(self, folder: Path, group: str) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        total, available = 1000 * MIB // KIB, 600 * MIB // KIB
        (self.proc / "meminfo").write_text(f"MemTotal: {total} kB\nMemFree: 5 kB\nMemAvailable:  {available} kB\n")
        (self.proc / "self" / "cgroup").write_text(group)

    def group(self, path: str, **files: str) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"memory.{name}").write_text(text)

    def read(self) -> HostMemory:
        return read_host(self.proc, self.cgroups)


@pytest.mark.req("ORCH-3003")
def test_without_limits_the_host_counts(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n")
    assert host.read() == HostMemory(1000 * MIB, 600 * MIB)
    assert host.read().used_bytes == 400 * MIB


@pytest.mark.req("ORCH-3003")
def test_the_tightest_group_counts_with_its_unused_page_cache(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/service/replica\n")
    host.group("", max="max\n")
    host.group("service", max=f"{300 * MIB}\n", current=f"{250 * MIB}\n", stat=f"anon 1\ninactive_file {20 * MIB}\n")
    host.group("service/replica", max="max\n", current="5\n")
    assert host.read() == HostMemory(300 * MIB, 70 * MIB)


@pytest.mark.req("ORCH-3003")
def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n")
    host.group("", max=f"{100 * MIB}\n", current=f"{101 * MIB}\n")
    assert host.read().available_bytes == 0


@pytest.mark.req("ORCH-3003")
def test_version_1_groups_and_a_path_that_is_the_hosts(tmp_path: Path) -> None:
    host = Host(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    host.group(
        "memory",
        limit_in_bytes=f"{200 * MIB}\n",
        usage_in_bytes=f"{150 * MIB}\n",
        stat=f"inactive_file 1\ntotal_inactive_file {30 * MIB}\n",
    )
    assert host.read() == HostMemory(200 * MIB, 80 * MIB)


def test_this_machine_can_be_read() -> None:
    memory = read_host()
    assert 0 < memory.available_bytes <= memory.total_bytes


def numactl(folder: Path, script: str) -> None:
    path = folder / "numactl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.req("ORCH-3013")
def test_an_engine_is_bound_where_numactl_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    numactl(tmp_path, f'echo "$@" > {tmp_path}/asked')
    assert topology.numactl_prefix(1) == (str(tmp_path / "numactl"), "--cpunodebind=1", "--preferred=1")
    assert (tmp_path / "asked").read_text() == "--cpunodebind=1 --preferred=1 true\n"
    assert topology.numactl_prefix(None) == ()


@pytest.mark.req("ORCH-3013")
def test_an_engine_runs_unbound_where_numactl_is_absent_or_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert topology.numactl_prefix(0) == ()
    numactl(tmp_path, "exit 1")
    assert topology.numactl_prefix(0) == ()
    (tmp_path / "numactl").write_text("no program at all")
    assert topology.numactl_prefix(0) == ()
