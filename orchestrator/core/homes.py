"""The sets that tasks of an earlier scheduler belong to, those that are not configured any more included."""

from contracts.errors import ErrorInfo
from contracts.journal import KeptTask
from contracts.policies import PoolPolicy, QueuePolicy, SetPolicy, TenantPolicy
from orchestrator.core.quotas import TenantQuota
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State


class Homes:
    """Where tasks belong: sets that there are, and one for each that is gone, so that its tasks can be told of.

    Nothing is admitted to or started in a set that is gone: the tables do not have it.
    """

    def __init__(self, state: State, tasks: list[KeptTask]) -> None:
        self._sets = {home.policy.set_id: home for home in state.sets}
        self._quotas: dict[str, TenantQuota] = {}
        self._state = state
        gone: dict[str, list[KeptTask]] = {}
        for kept in tasks:
            if self.find(kept) is None:
                gone.setdefault(_set_id(kept), []).append(kept)
        self._gone = {set_id: ReplicaSet(_policy(set_id, lost), state.residency) for set_id, lost in gone.items()}

    def find(self, kept: KeptTask) -> ReplicaSet | None:
        """The set that a task goes on in; None if there is none for it.

        One that never started has nothing to be repeated, so that any set that would take it now will do.
        """
        home = self._sets.get(_set_id(kept))
        if home is None and kept.start is None and kept.outcome is None:
            found = self._state.routes.find(kept.task)
            home = found if isinstance(found, ReplicaSet) else None
        return home if home is not None and kept.task.priority in home.tier_of else None

    def of(self, kept: KeptTask) -> ReplicaSet:
        """The set of a task, or what stands for one that is gone."""
        return self.find(kept) or self._gone[_set_id(kept)]

    def quota(self, tenant: str) -> TenantQuota:
        """The tenant's quota. One that is not configured any more has no bounds for what it was promised."""
        quota = self._state.quotas.tenant(tenant)
        if quota is None:
            quota = self._quotas.setdefault(tenant, TenantQuota(tenant, TenantPolicy(tenant)))
        return quota


def _set_id(kept: KeptTask) -> str:
    """The set that a task belongs to: where it started, which need not be where it was admitted."""
    return kept.told.set_id if kept.start is None else kept.start.set_id


def _policy(set_id: str, lost: list[KeptTask]) -> SetPolicy:
    """A set that is gone, as far as tasks of it need one."""
    task = lost[0].task
    pool_ids = [kept.replica.pool_id for kept in lost if kept.replica is not None]
    classes = dict.fromkeys([kept.task.priority for kept in lost])
    return SetPolicy(
        set_id,
        task.engine,
        (task.model_ref,),
        task.ctx,
        task.sampler_profile_version,
        (PoolPolicy(pool_ids[-1] if pool_ids else set_id),),
        len(lost),
        tuple([QueuePolicy(priority, len(lost), "reject") for priority in classes]),
        wall_timeout_ms=1,
        idle_timeout_ms=1,
    )


def gone(record: TaskRecord) -> ErrorInfo:
    """POOL_UNAVAILABLE for a task of a set that is gone."""
    task = record.task
    return ErrorInfo(
        code="POOL_UNAVAILABLE",
        message=(
            f"{task.model_ref} in class {task.priority} ({record.home.policy.set_id}) is not served any more since the"
            " service was started with another configuration; send the task to what is served now"
        ),
        engine=task.engine,
        pool_id=record.home.policy.pools[0].pool_id,
        retriable=False,
    )
