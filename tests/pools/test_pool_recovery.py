"""Whatever of a pool is killed, in whatever state: it is back as desired, nothing doubled, nothing orphaned."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pools.load import PacedLoad
from tests.pools.pool_cluster import PoolCluster
from tests.pools.table import TABLE

BACK_TIMEOUT_S = 60


def as_desired(cluster: PoolCluster) -> bool:
    """Two Ready replicas of `main`, and exactly their two engines."""
    return cluster.phases("main") == ["ready", "ready"] and len(cluster.engines("main")) == 2


def check_gpus(cluster: PoolCluster) -> None:
    """No GPU has two engines, and no engine a GPU off its mask."""
    engines = cluster.engines()
    doubled = [gpu for gpu, count in Counter(engines.values()).items() if gpu and count > 1]
    assert not doubled, engines
    assert all(gpu.endswith("-0") for gpu in cluster.engines("main").values()), engines


def node_of(replica: dict[str, Any]) -> str:
    """The test's name of the node that a replica's GPU belongs to."""
    name: str = replica["gpu_uuids"][0].removeprefix("GPU-").rpartition("-")[0]
    return name


def settle(cluster: PoolCluster) -> None:
    cluster.until(lambda: as_desired(cluster), "two replicas of main", BACK_TIMEOUT_S)


def one_engine(cluster: PoolCluster) -> int:
    return min(cluster.engines("main"))


def one_actor(cluster: PoolCluster) -> int:
    """The replica actor that the engine `one_engine` belongs to."""
    status = Path(f"/proc/{one_engine(cluster)}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def manager(cluster: PoolCluster) -> int:
    (pid,) = cluster.actors("PoolManagerActor")
    return pid


VICTIMS: dict[str, Callable[[PoolCluster], int]] = {
    "engine": one_engine,
    "replica actor": one_actor,
    "pool manager": manager,
}


def idle(_cluster: PoolCluster) -> None:
    """Ready, nothing runs."""


def running(cluster: PoolCluster) -> None:
    """Every slot decodes."""
    for _ in range(8):
        cluster.submit(max_tokens=100)
    cluster.until(lambda: cluster.health("main")["metrics"]["slots_free"] == 0, "all slots taken")


def restarting(cluster: PoolCluster) -> None:
    """One replica is on its way back already."""
    os.kill(one_engine(cluster), signal.SIGKILL)
    cluster.until(lambda: cluster.phases("main") != ["ready", "ready"], "the death is noticed")
    cluster.until(lambda: len(cluster.engines("main")) > 0, "an engine is there to be killed")


def loading(cluster: PoolCluster) -> None:
    """A new generation is being loaded beside the old one."""
    answer = cluster.http.post("/v1/pools/main/reload", json={"new_model_ref": "main"})
    assert answer.status_code == 202, answer.text


STATES: dict[str, Callable[[PoolCluster], None]] = {
    "ready, idle": idle,
    "ready, decoding": running,
    "restarting": restarting,
    "reloading": loading,
}


@pytest.mark.req("ORCH-3001", "ORCH-3002", "OC-POOL-3001", "ORCH-3010", "ORCH-3011", "OC-POOL-3020", "OC-POOL-3011")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_is_replaced(cluster: PoolCluster, victim: str, state: str) -> None:
    settle(cluster)
    STATES[state](cluster)
    pid = VICTIMS[victim](cluster)
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    cluster.until(lambda: not os.path.exists(f"/proc/{pid}"), "it is dead")
    cluster.until(lambda: pid not in cluster.engines(), "its engine is gone with it", 5)
    # While it comes back: what is admitted is either served or ends with a typed, retriable error.
    load = PacedLoad(cluster, 0.2, max_tokens=5)
    with load.running():
        cluster.until(lambda: as_desired(cluster) and bool(cluster.actors("PoolManagerActor")), "back", BACK_TIMEOUT_S)
        took_s = time.monotonic() - begun
        time.sleep(0.5)
    assert {done.code for done in load.failures} <= {"WORKER_RESET", "POOL_UNAVAILABLE", "POOL_UNREADY"}, load.failures
    check_gpus(cluster)
    TABLE.add(f"kill -9 of a {victim}", state, took_s, f"{len(load.failures)} of {len(load.done)} tasks failed, typed")


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002")
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_process_killed_amid_a_drain_leaves_the_pool_drained(cluster: PoolCluster, victim: str) -> None:
    settle(cluster)
    task_id = cluster.submit(max_tokens=1000)
    cluster.until(lambda: cluster.status(task_id)["state"] == "running", "it runs")
    assert cluster.http.post("/v1/pools/main/drain", json={"deadline_ms": 4000}).status_code == 202
    begun = time.monotonic()
    os.kill(VICTIMS[victim](cluster), signal.SIGKILL)
    cluster.until(lambda: cluster.health("main").get("drained", False), "drained", 15)
    cluster.until(lambda: not cluster.engines("main"), "no engine is left")
    TABLE.add(f"kill -9 of a {victim}", "draining, deadline 4 s", time.monotonic() - begun, "drained, nothing left")
    answer = cluster.http.post("/v1/pools/main/reload", json={"new_model_ref": "main"})
    assert answer.status_code == 202, answer.text
    settle(cluster)


@pytest.mark.req("ORCH-3010", "ORCH-3002")
def test_a_replica_that_hangs_is_sent_nothing_until_it_is_heard_of_again(cluster: PoolCluster) -> None:
    settle(cluster)
    pid = one_actor(cluster)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        cluster.until(lambda: cluster.phases("main") == ["ready", "suspended"], "its lease runs out", 10)
        took_s = time.monotonic() - begun
        TABLE.add("SIGSTOP of a replica actor", "noticed by its lease", took_s)
        load = PacedLoad(cluster, 0.1, max_tokens=5)
        with load.running():
            time.sleep(2)
        assert load.failures == []
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.until(lambda: as_desired(cluster), "it is back", 10)
    assert one_actor(cluster) == pid or pid in cluster.processes(word="ray::ReplicaActor")


@pytest.mark.req("ORCH-3008", "ORCH-3018", "ORCH-3011", "OC-POOL-3020")
def test_a_lost_node_is_noticed_and_its_replicas_go_elsewhere(cluster: PoolCluster) -> None:
    settle(cluster)
    replicas = cluster.health("main")["replicas"]
    assert len({replica["node_id"] for replica in replicas}) == 2
    assert {replica["zone"] for replica in replicas} == {"a", "b"}, "zone anti-affinity"
    # Not the node that the ingress happens to be on: what its loss does is another matter.
    lost, node = next(
        (replica, node)
        for replica in replicas
        if not cluster.processes(node=(node := node_of(replica)), word="ray::ServeReplica")
    )
    before = len(cluster.engines())
    begun = time.monotonic()
    cluster.kill_node(node)

    def noticed() -> bool:
        now = {replica["replica_id"]: replica for replica in cluster.health("main")["replicas"]}
        mine = now.get(lost["replica_id"])
        return mine is None or mine["phase"] != "ready" or mine["incarnation"] != lost["incarnation"]

    noticed_s = cluster.until(noticed, "the loss is noticed", 10)
    TABLE.add("kill -9 of a raylet", "noticed", noticed_s)
    assert noticed_s <= 3.0
    settle(cluster)
    TABLE.add("kill -9 of a raylet", "replicas back elsewhere", time.monotonic() - begun, f"{before} engines before")
    check_gpus(cluster)
    # The node comes back, and is used again when its GPUs are needed.
    cluster.add_node(node, lost["zone"])
    answer = cluster.http.post("/v1/pools/main/reload", json={"new_model_ref": "main"})
    assert answer.status_code == 202, answer.text
    cluster.until(lambda: cluster.health("main")["reload"]["state"] == "done", "reload on the node that came back")
    settle(cluster)
    check_gpus(cluster)
