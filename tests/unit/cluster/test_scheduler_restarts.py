"""A scheduler that is started anew: on what an earlier one left, and after a start that failed."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.journal import Kept
from contracts.pools import ReloadRequested
from orchestrator.cluster import scheduler_service
from orchestrator.cluster.journal import folder
from orchestrator.cluster.journal.recovery import Restored
from orchestrator.cluster.journal.store import Storage
from orchestrator.cluster.scheduler_service import SchedulerService
from tests.unit.cluster.journal_kit import kept
from tests.unit.cluster.scripted import HOST, NODE, SECRET
from tests.unit.cluster.scripted import task as submitted
from tests.unit.cluster.scripted_core import CONFIG, ENDPOINT, Peer, Shell
from tests.unit.core.core_kit import config, replica, replica_set, task
from tests.unit.core.durable_kit import DurableFleet
from tests.unit.core.pool_kit import pool

pytestmark = pytest.mark.req("ORCH-3051")
NOW_NS = 100_000_000_000


async def recovered(policies: Any, found: Kept, payloads: dict[str, bytes]) -> SchedulerService:
    """A service that goes on with what was kept."""
    service = SchedulerService(policies, SECRET, clock=lambda: NOW_NS)
    service._recover(Restored(found, payloads, {}, 2))
    return service


@pytest.mark.req("ORCH-3031", "ORCH-3028")
async def test_a_set_that_a_reload_made_before_the_restart_serves_and_is_measured() -> None:
    core = DurableFleet(pool(replicas=1), models={"llamacpp": ("small", "big")})
    core.up("pool-a-0")
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.up("pool-a-1")
    service = await recovered(core.scheduler.state.config, core.journal.kept(), {})
    order = core.orders["pool-a-1"]
    serving, ingress = Peer("replica", "pool-a-1"), Peer("ingress", "i")
    info = replica("pool-a-1", pool_id="pool-a", node_id=order.node_id)
    service._received(serving, wire.RegisterReplica("pool-a-1", "pool-a", ENDPOINT, order.incarnation))  # type: ignore[arg-type]
    service._received(serving, ev.ReplicaReady(info, order.incarnation))  # type: ignore[arg-type]
    service._received(ingress, wire.Submit(1, task("x", model_ref="big"), b"p"))  # type: ignore[arg-type]
    assert [type(message) for message in ingress.take()] == [wire.Admitted]
    assert wire.StartAttempt("x", 1, b"p") in serving.take()
    service._received(ingress, wire.GetMetrics(2))  # type: ignore[arg-type]
    (page,) = ingress.take()
    assert isinstance(page, wire.MetricsText)
    (enqueued,) = [line for line in page.text.decode().splitlines() if line.startswith("tasks_enqueued_total{")]
    assert 'pool_id="pool-a"' in enqueued
    await service.close()


async def test_a_task_whose_set_has_another_name_now_waits_there_and_is_planned_for() -> None:
    waiting = task("a")
    before = kept("a", task=waiting, told=ev.Admit("old-set", 1, "a", 0, 0, 0), admitted_ns=NOW_NS)
    service = await recovered(config(replica_set()), Kept((replace(before, deadline_ns=2 * NOW_NS),)), {"a": b"p"})
    ingress = Peer("ingress", "i")
    service._received(ingress, wire.GetPlan(1, "a", waiting.tenant))  # type: ignore[arg-type]
    (plan,) = ingress.take()
    assert isinstance(plan, wire.TaskPlan)
    assert plan.metrics.queue_depth == 1
    await service.close()


def test_metrics_that_cannot_be_kept_do_not_get_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(monkeypatch)
    del shell.service._telemetry._live
    with capture_logs() as logs:
        shell.tell(shell.ingress, wire.Submit(1, submitted("a"), b"p"), ev.Admit("set", 1, "a", 0, 0, 0))
        shell.tell(shell.replica, ev.SlotReleased("x", 1, "pool-0"), ev.Start("set", "a", 1, "pool-0"))
    assert isinstance(shell.ingress.take()[-1], wire.Admitted)
    assert wire.StartAttempt("a", 1, b"p") in shell.replica.take()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["telemetry.failed"] * 2


async def test_a_start_that_failed_lets_the_folder_go_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0)
    storage = Storage(str(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(scheduler_service.ChannelServer, "start", _no_port)
        for _ in range(2):
            with pytest.raises(OSError, match="no port"):
                await SchedulerService(CONFIG, SECRET, storage=storage).start(NODE, HOST)
    with monkeypatch.context() as broken:
        broken.setattr(SchedulerService, "_recover", _no_port)
        with pytest.raises(OSError, match="no port"):
            await SchedulerService(CONFIG, SECRET, storage=storage).start(NODE, HOST)
    service = SchedulerService(CONFIG, SECRET, storage=storage)
    assert (await service.start(NODE, HOST)).epoch == 4
    await service.close()


def _no_port(*_: object) -> None:
    raise OSError("no port")
