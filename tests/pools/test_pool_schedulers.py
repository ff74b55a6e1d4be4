"""Two scheduler actors: one leads, the other takes its place, and there are never two that do."""

import contextlib
import os
import signal
import time

import httpx2
import pytest

from tests.pools.pool_cluster import PoolCluster
from tests.pools.table import TABLE
from tests.pools.test_pool_recovery import BACK_TIMEOUT_S, manager, settle

pytestmark = pytest.mark.req("ORCH-3051")


def scheduler(cluster: PoolCluster) -> int:
    """The one that leads."""
    (pid,) = {cluster.leader()} & both(cluster)
    return pid


def standby(cluster: PoolCluster) -> int:
    """The one that stands by, once there is one."""
    cluster.until(lambda: len(both(cluster)) == 2, "one stands by", BACK_TIMEOUT_S)
    (pid,) = both(cluster) - {cluster.leader()}
    return pid


def both(cluster: PoolCluster) -> set[int]:
    return set(cluster.actors("SchedulerActor"))


def ends(cluster: PoolCluster, task_id: str) -> bool:
    """Whether a task is known and has ended as it should."""
    with contextlib.suppress(httpx2.HTTPError):
        return bool(cluster.status(task_id).get("state") == "finished")
    return False


def test_who_stands_by_takes_the_leaders_place(cluster: PoolCluster) -> None:
    settle(cluster)
    leader, successor = scheduler(cluster), standby(cluster)
    task_id = cluster.submit(max_tokens=100)
    os.kill(leader, signal.SIGKILL)
    begun = time.monotonic()
    later = cluster.submit(max_tokens=1)
    TABLE.add("kill -9 of a scheduler", "a new task is accepted", time.monotonic() - begun)
    assert scheduler(cluster) == successor
    cluster.until(lambda: ends(cluster, task_id) and ends(cluster, later), "both end")
    assert standby(cluster) not in (leader, successor)


def test_without_anybody_who_stands_by_it_takes_longer(cluster: PoolCluster) -> None:
    settle(cluster)
    killed = {scheduler(cluster), standby(cluster)}
    task_id = cluster.submit(max_tokens=100)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    later = cluster.submit(max_tokens=1)
    TABLE.add("kill -9 of both schedulers", "a new task is accepted", time.monotonic() - begun)
    cluster.until(lambda: ends(cluster, task_id) and ends(cluster, later), "both end")
    assert not killed & {scheduler(cluster), standby(cluster)}


def test_a_leader_that_stands_still_goes_on_leading(cluster: PoolCluster) -> None:
    settle(cluster)
    leader, asks = scheduler(cluster), manager(cluster)
    standby(cluster)
    os.kill(leader, signal.SIGSTOP)
    try:
        # A new pool manager looks for the scheduler, and so asks the one that stands by.
        os.kill(asks, signal.SIGKILL)
        cluster.until(lambda: bool(set(cluster.actors("PoolManagerActor")) - {asks}), "another manager", BACK_TIMEOUT_S)
        time.sleep(2)
        assert scheduler(cluster) == leader
    finally:
        os.kill(leader, signal.SIGCONT)
    task_id = cluster.submit(max_tokens=1)
    assert scheduler(cluster) == leader
    cluster.until(lambda: ends(cluster, task_id), "it ends")
