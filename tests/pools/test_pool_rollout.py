"""Reload, canary, rollback, drain and scaling under paced load, on real processes."""

import time

import pytest

from tests.pools.load import PacedLoad, parse
from tests.pools.pool_cluster import PoolCluster
from tests.pools.table import TABLE
from tests.pools.test_pool_recovery import check_gpus, settle


def reload_state(cluster: PoolCluster) -> str:
    return str(cluster.health("main").get("reload", {}).get("state", ""))


def ask_reload(cluster: PoolCluster, ref: str, **more: int) -> None:
    answer = cluster.http.post("/v1/pools/main/reload", json={"new_model_ref": ref, **more})
    assert answer.status_code == 202, answer.text


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003", "ORCH-3031", "ORCH-3047")
def test_a_reload_under_load_fails_and_refuses_nothing(cluster: PoolCluster) -> None:
    settle(cluster)
    load = PacedLoad(cluster, 0.1)
    with load.running():
        time.sleep(1)
        begun = time.monotonic()
        ask_reload(cluster, "main-v2")
        cluster.until(lambda: reload_state(cluster) == "done", "the switch")
        TABLE.add("reload", "paced load: switched", time.monotonic() - begun)
        cluster.until(lambda: cluster.phases("main") == ["ready", "ready"], "the old ones are gone")
        TABLE.add("reload", "paced load: old ones drained", time.monotonic() - begun)
        time.sleep(1)
    assert load.failures == []
    digests = [done.digest for done in sorted(load.done, key=lambda done: done.began_s)]
    assert len(set(digests)) == 2, "both models served"
    # In one step: once a task was served by the new model, none that came later is served by the old one.
    assert digests == sorted(digests, key=[digests[0], digests[-1]].index)
    check_gpus(cluster)
    # One action back.
    answer = cluster.http.post("/v1/pools/main/rollback")
    assert answer.status_code == 202, answer.text
    cluster.until(lambda: cluster.health("main")["model_ref"] == "main", "rolled back")
    settle(cluster)


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003", "ORCH-3037", "OC-POOL-3003", "ORCH-3003")
def test_a_broken_new_model_rolls_back_and_the_old_one_never_stops(cluster: PoolCluster) -> None:
    settle(cluster)
    engines = cluster.engines("main")
    load = PacedLoad(cluster, 0.1)
    with load.running():
        begun = time.monotonic()
        ask_reload(cluster, "broken-v2")
        cluster.until(lambda: reload_state(cluster) == "rolled_back", "rolled back")
        TABLE.add("reload", "broken model: rolled back", time.monotonic() - begun)
    assert load.failures == []
    why = cluster.health("main")["reload"]["why"]
    assert "sha256:0000" in why, why
    assert cluster.engines("main") == engines, "the old engines are the same processes"
    cluster.until(lambda: cluster.phases("main") == ["ready", "ready"], "the new ones are gone")


@pytest.mark.req("ORCH-3033")
def test_a_canary_takes_its_share_and_one_action_ends_it(cluster: PoolCluster) -> None:
    settle(cluster)
    ask_reload(cluster, "main-v2", canary_percent=30)
    cluster.until(lambda: reload_state(cluster) == "canary", "the canary serves")
    load = PacedLoad(cluster, 0.03, max_tokens=2)
    with load.running():
        time.sleep(5)
    assert load.failures == []
    of_canary = sum(done.digest != load.done[0].digest for done in load.done) / len(load.done)
    share = min(of_canary, 1 - of_canary)
    assert 0.15 <= share <= 0.45, f"{share:.2f} of {len(load.done)} sessions"
    assert cluster.http.post("/v1/pools/main/rollback").status_code == 202
    cluster.until(lambda: cluster.phases("main") == ["ready", "ready"], "the canary is gone")
    assert cluster.health("main")["model_ref"] == "main"
    TABLE.add("canary of 30 %", "share of sessions", share, "(a fraction, not seconds)")


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002")
def test_a_drain_lets_work_end_and_honours_its_deadline(cluster: PoolCluster) -> None:
    settle(cluster)
    short, long = cluster.submit(max_tokens=40), cluster.submit(max_tokens=1000)
    cluster.until(lambda: cluster.status(long)["state"] == "running", "both run")
    begun = time.monotonic()
    assert cluster.http.post("/v1/pools/main/drain", json={"deadline_ms": 3000}).status_code == 202
    assert cluster.health("main")["draining"]
    answer = cluster.http.post("/v1/tasks", json=cluster.body())
    assert (answer.status_code, answer.json()["code"]) == (503, "POOL_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) >= 1
    cluster.until(lambda: cluster.status(short)["state"] == "finished", "the short one ends by itself", 3)
    cluster.until(lambda: cluster.status(long)["state"] == "failed", "the long one is ended at the deadline")
    took_s = time.monotonic() - begun
    assert took_s >= 2.5
    TABLE.add("drain, deadline 3 s", "a task of 20 s runs", took_s, "ended with POOL_UNAVAILABLE")
    assert cluster.status(long)["error"]["code"] == "POOL_UNAVAILABLE"
    events = parse(cluster.http.get(f"/v1/tasks/{long}/stream").text)
    assert (events[-1][0], events[-1][1]["retriable"]) == ("error", True)
    cluster.until(lambda: cluster.health("main").get("drained", False), "drained")
    cluster.until(lambda: not cluster.engines("main"), "no engine is left")
    ask_reload(cluster, "main")  # which is how a drained pool comes back
    settle(cluster)


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002", "ORCH-3045", "ORCH-3026")
def test_a_drain_moves_what_still_runs_to_the_other_pool_of_the_set(cluster: PoolCluster) -> None:
    cluster.until_phases("carved", "ready")
    cluster.until_phases("carved-b", "ready")
    task = {"model_ref": "carved", "max_tokens": 150, "seed": 5}
    undisturbed = tokens_of(cluster, cluster.submit(**task))
    task_id = cluster.submit(**task)
    cluster.until(lambda: cluster.status(task_id)["tokens_out"] >= 10, "it runs")
    pool_id = cluster.status(task_id)["pool_id"]
    assert cluster.http.post(f"/v1/pools/{pool_id}/drain", json={"deadline_ms": 500}).status_code == 202
    assert tokens_of(cluster, task_id) == undisturbed, "the same tokens, none twice, none left out"
    status = cluster.status(task_id)
    assert (status["state"], status["attempt"]) == ("finished", 2)
    assert status["pool_id"] != pool_id
    cluster.until(lambda: cluster.health(pool_id).get("drained", False), "drained")
    answer = cluster.http.post(f"/v1/pools/{pool_id}/reload", json={"new_model_ref": "carved"})
    assert answer.status_code == 202, answer.text
    cluster.until_phases(pool_id, "ready")


def tokens_of(cluster: PoolCluster, task_id: str) -> list[str]:
    """All tokens of a task that must end well."""
    events = parse(cluster.http.get(f"/v1/tasks/{task_id}/stream").text)
    assert events[-1][0] == "end", events[-1]
    return [data["t"] for name, data in events if name == "token"]


@pytest.mark.req("ORCH-2103")
def test_a_pool_scaled_to_zero_wakes_up_for_a_task(cluster: PoolCluster) -> None:
    cluster.until(lambda: cluster.phases("elastic") == [], "nothing runs", 90)
    begun = time.monotonic()
    task_id = cluster.submit(model_ref="elastic", max_tokens=5)
    cluster.until(lambda: cluster.status(task_id)["state"] == "finished", "served from zero")
    TABLE.add("scale from zero", "one task waits", time.monotonic() - begun)
    begun = time.monotonic()
    cluster.until(lambda: cluster.phases("elastic") == [] and not cluster.engines("elastic"), "back to zero", 60)
    TABLE.add("scale to zero", "idle", time.monotonic() - begun)
