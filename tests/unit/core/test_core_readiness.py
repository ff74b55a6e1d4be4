"""When the service as a whole is ready."""

import pytest

from contracts.scheduling import ReplicaLoading, ReplicaLost, ReplicaReady
from tests.unit.core.core_kit import Core, replica, replica_set


@pytest.mark.req("ORCH-3010")
def test_ready_means_one_pool_ready_and_none_loading() -> None:
    core = Core(replica_set(pool_ids=("pool-a", "pool-b")))
    assert not core.scheduler.is_ready()
    info = replica()
    core.tell(ReplicaLoading(info.replica_id, "pool-a"))
    assert not core.scheduler.is_ready()
    core.tell(ReplicaReady(info))
    assert core.scheduler.is_ready()  # pool-b has no replica and holds up nobody
    core.tell(ReplicaLoading("b-0", "pool-b"))
    assert not core.scheduler.is_ready()
    core.tell(ReplicaLost("b-0", "gone"))
    assert core.scheduler.is_ready()
