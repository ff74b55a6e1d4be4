"""Crash loops, GPU errors, memory, absent GPUs and bad requests: bounded, typed, with the cause told."""

import os
import re
import signal
import time

import pytest

from adapters.testing.fake_launch import PLANTED_SECRET
from tests.pools.pool_cluster import PoolCluster
from tests.pools.table import TABLE
from tests.pools.test_pool_recovery import node_of, settle


def metric(cluster: PoolCluster, pattern: str) -> float:
    """Sum of the samples whose line begins with this pattern."""
    text = cluster.http.get("/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


@pytest.mark.req("ORCH-3053", "OC-POOL-3011", "OC-POOL-3003", "OC-CTRL-2001", "OC-CTRL-2041", "OC-POOL-3030")
def test_a_crash_loop_is_bounded_and_its_cause_is_told(cluster: PoolCluster) -> None:
    cluster.until_phases("loop", "ready")
    cluster.broken.touch()
    (pid,) = cluster.engines("loop")
    os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: cluster.phases("loop") != ["ready"], "the death is noticed")
    before, begun = cluster.health("loop")["restarts"], time.monotonic()
    time.sleep(8)
    health = cluster.health("loop")
    tries, took_s = health["restarts"] - before, time.monotonic() - begun
    # 0.3, 0.6, 1.2, 2.4, 4 s ... plus jitter: at most five waits are over after 8.5 s.
    assert 2 <= tries <= 6, health
    TABLE.add("crash loop", f"{tries} launches", took_s)
    assert not health["ready"]
    error = health["last_error"]
    assert error["stderr"], error
    assert any("fake engine: broken" in line for line in error["stderr"]), error
    assert PLANTED_SECRET not in str(health)
    answer = cluster.http.post("/v1/tasks", json=cluster.body(model_ref="loop"))
    assert answer.status_code == 503
    assert answer.json()["code"] in ("POOL_UNAVAILABLE", "POOL_UNREADY")
    assert metric(cluster, r'pool_restarts_total\{.*pool_id="loop"') >= tries
    cluster.broken.unlink()
    cluster.until_phases("loop", "ready")


@pytest.mark.req("ORCH-3038", "ORCH-3053", "OC-POOL-3010", "OC-POOL-3030")
def test_a_lost_gpu_takes_its_replica_down_until_it_is_back(cluster: PoolCluster) -> None:
    settle(cluster)
    node = node_of(cluster.health("main")["replicas"][0])
    cluster.set_gpus(node, gpu0_error=15)
    begun = time.monotonic()
    cluster.until(lambda: cluster.phases("main") != ["ready", "ready"], "the loss is noticed", 15)
    TABLE.add("GPU lost", "noticed", time.monotonic() - begun)
    error = cluster.health("main")["last_error"]
    assert error["kind"] == "gpu_lost", error
    assert metric(cluster, r'driver_resets_total\{.*pool_id="main"') >= 1
    cluster.set_gpus(node)
    settle(cluster)


@pytest.mark.req("ORCH-3003", "OC-POOL-3002", "OC-POOL-3003")
def test_a_full_gpu_refuses_the_preload_with_numbers(cluster: PoolCluster) -> None:
    settle(cluster)
    for node in ("n1", "n2", "n3", "n4"):
        cluster.set_gpus(node, gpu1_used_mib=81900)
    (pid,) = cluster.engines("loop")
    os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: cluster.health("loop").get("last_error", {}).get("kind") == "headroom", "no headroom")
    assert re.search(r"\d+ MiB", cluster.health("loop")["last_error"]["message"])
    for node in ("n1", "n2", "n3", "n4"):
        cluster.set_gpus(node)
    cluster.until_phases("loop", "ready")


@pytest.mark.req("ORCH-1101", "ORCH-3018", "OC-POOL-3012")
def test_a_pool_without_gpus_is_refused_at_once_and_says_why(cluster: PoolCluster) -> None:
    took = []
    for _ in range(5):
        begun = time.monotonic()
        answer = cluster.http.post("/v1/tasks", json=cluster.body(model_ref="absent"))
        took.append(time.monotonic() - begun)
        error = answer.json()
        assert (answer.status_code, error["code"], error["retriable"]) == (503, "POOL_UNAVAILABLE", True)
        assert error["retry_after_ms"] >= 1
    TABLE.add("no GPU for a pool", "refused", min(took))
    assert min(took) < 0.1
    health = cluster.health("absent")
    assert not health["ready"]
    assert health["accelerator"] == "gpu"
    assert [replica["phase"] for replica in health["replicas"]] == ["pending"]
    assert "GPU 7" in health["replicas"][0]["last_error"]["message"]


@pytest.mark.req("ORCH-1101")
def test_the_carve_out_is_told_wherever_it_serves(cluster: PoolCluster) -> None:
    cluster.until_phases("carved", "ready")
    assert cluster.health("carved")["accelerator"] == "cpu-dev"
    (engine,) = cluster.http.get("/v1/capabilities").json()["engines"]
    assert sorted(engine["accelerators"]) == ["cpu-dev", "gpu"]
    assert metric(cluster, r'pool_accelerator\{accelerator="cpu-dev".*pool_id="carved"') == 1
    admitted = cluster.http.post("/v1/tasks", json=cluster.body(model_ref="carved")).json()
    assert admitted["accelerator"] == "cpu-dev"
    stream = cluster.http.get(f"/v1/tasks/{admitted['task_id']}/stream").text
    assert '"accelerator":"cpu-dev"' in stream
    assert cluster.status(admitted["task_id"])["accelerator"] == "cpu-dev"


@pytest.mark.req("OC-CTRL-2002", "OC-CTRL-2003", "ORCH-2101", "ORCH-2102")
@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/pools/nobody/drain", {"deadline_ms": 1}, 404, "NOT_FOUND"),
        ("/v1/pools/nobody/reload", {"new_model_ref": "main"}, 404, "NOT_FOUND"),
        ("/v1/pools/main/drain", {"deadline_ms": -1}, 400, "INVALID_PARAMS"),
        ("/v1/pools/main/drain", {}, 400, "INVALID_PARAMS"),
        ("/v1/pools/main/reload", {"new_model_ref": "no-such-model"}, 400, "INVALID_PARAMS"),
        ("/v1/pools/main/promote", None, 409, "CONFLICT"),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(
    cluster: PoolCluster, path: str, body: dict[str, object] | None, status: int, code: str
) -> None:
    settle(cluster)
    answer = cluster.http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["message"]
    settle(cluster)
