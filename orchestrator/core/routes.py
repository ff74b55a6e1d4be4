"""Which replica set serves a task, or why none does (ORCH-3014, OC-CORE-1020)."""

from collections.abc import Iterable

from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo
from orchestrator.core.refusals import invalid
from orchestrator.core.replica_set import ReplicaSet


class Routes:
    """Finds the replica set for a task by engine and model name."""

    def __init__(self, sets: tuple[ReplicaSet, ...]) -> None:
        self._served: dict[str, dict[str, list[ReplicaSet]]] = {}
        for home in sets:
            models = self._served.setdefault(home.policy.engine, {})
            for name in home.policy.model_refs:
                models.setdefault(name, []).append(home)

    def find(self, task: TaskInfo) -> ReplicaSet | ErrorInfo:
        """The set to serve `task`, or INVALID_PARAMS with what is served instead.

        Of several that fit, the first with a Ready replica in configuration order.
        """
        models = self._served.get(task.engine)
        if models is None:
            return invalid(f"engine {task.engine!r} is not served; served: {_listed(self._served)}")
        sets = models.get(task.model_ref)
        if sets is None:
            served = _listed(models)
            return invalid(f"model {task.model_ref!r} is not served by {task.engine}; served: {served}", task.engine)
        fitting: ReplicaSet | None = None
        refusal: ErrorInfo | None = None
        for home in sets:
            misfit = _misfit(home, task)
            if misfit is not None:
                refusal = misfit
            elif home.ready:
                return home
            else:
                fitting = fitting or home
        return fitting or refusal or invalid("no replica set serves this task", task.engine)


def _misfit(home: ReplicaSet, task: TaskInfo) -> ErrorInfo | None:
    policy = home.policy
    if task.workload not in policy.workloads:
        return invalid(
            f"workload {task.workload!r} is not served by {task.model_ref}; served: {_listed(policy.workloads)}",
            policy.engine,
        )
    if task.sampler_profile_version != policy.sampler_profile_version:
        return invalid(
            f"sampler_profile_version {task.sampler_profile_version!r} is not served by {task.model_ref};"
            f" served: {policy.sampler_profile_version}",
            policy.engine,
        )
    if task.priority not in home.tier_of:
        return invalid(
            f"priority {task.priority!r} is not served by {task.model_ref}; served: {_listed(home.tier_of)}",
            policy.engine,
        )
    # ORCH-3014, OC-CORE-1020: refused before it is enqueued.
    if task.ctx > policy.ctx:
        return invalid(f"ctx {task.ctx} is over the model's limit of {policy.ctx}", policy.engine)
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
