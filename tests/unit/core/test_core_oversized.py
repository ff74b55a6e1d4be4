"""A task that is larger than its tenant's KV quota, although it was admitted: it runs by itself, and blocks nobody."""

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import TenantPolicy
from contracts.scheduling import ReplicaLost, ReplicaReady, Start
from orchestrator.core.quotas import TenantQuota
from tests.unit.core.core_kit import TENANT, ended, of, one, replica, started
from tests.unit.core.durable_kit import Durable, DurableFleet
from tests.unit.core.pool_kit import pool

pytestmark = pytest.mark.req("ORCH-3036")
#: 61 tokens of a task take more than 30 MiB, 11 do not.
LARGE = replica(kv_token_bytes=1_000_000, slots=2)
SMALL_QUOTA = (TenantPolicy(TENANT, kv_mb=30),)


def test_alone_a_task_always_may_start() -> None:
    quota = TenantQuota(TENANT, TenantPolicy(TENANT, kv_mb=1))
    assert quota.may_start(5 << 20)
    quota.started(5 << 20)
    assert not quota.may_start(1)
    quota.ended(5 << 20)
    assert quota.may_start(5 << 20)


def test_one_whose_size_was_not_known_when_it_came_runs_and_what_is_behind_it_follows() -> None:
    """Before the first replica nobody knows what a token takes."""
    core = DurableFleet(pool(replicas=0, smallest=0, largest=1), tenants=SMALL_QUOTA)
    core.submit("large", max_tokens=60)
    core.come("pool-a-0")
    assert started(core.ready("pool-a-0", kv_token_bytes=1_000_000, slots=2)) == [("large", 1, "pool-a-0")]
    core.submit("small")
    assert core.state_of("small") == "queued"
    assert started(core.tell(ended("large", replica_id="pool-a-0"))) == [("small", 1, "pool-a-0")]


def test_a_quota_that_is_smaller_after_a_restart_blocks_nobody() -> None:
    core = Durable(tenants=(TenantPolicy(TENANT, kv_mb=1_000),), ready=(LARGE,))
    core.tell(ReplicaLost("r0", "eof"))
    core.tell(ReplicaReady(LARGE))
    core.submit("a", max_tokens=60)
    core.submit("b", max_tokens=60)
    core.submit("c")
    core.restart(tenants=SMALL_QUOTA)
    order = []
    commands = core.back(LARGE)
    for _ in range(3):
        start = one(commands, Start)
        order.append(start.task_id)
        commands = core.tell(ended(start.task_id, start.attempt))
    assert order == ["a", "b", "c"]


def test_one_that_is_admitted_now_is_still_refused_for_its_size() -> None:
    core = Durable(tenants=SMALL_QUOTA, ready=(LARGE,))
    commands = core.submit("large", max_tokens=60)
    assert not of(commands, Start)
    (error,) = [each.error for each in commands if isinstance(getattr(each, "error", None), ErrorInfo)]
    assert error.code == "INVALID_PARAMS"
