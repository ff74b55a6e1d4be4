"""Which replica set serves a task, or why none does (ORCH-3014, ORCH-3033, OC-CORE-1020)."""

from collections.abc import Iterable
from typing import Final

from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo
from orchestrator.core.canaries import percentile
from orchestrator.core.refusals import invalid
from orchestrator.core.replica_set import ReplicaSet

#: Model names that begin so name the content of the model's file: they never lead to another.
DIGEST_PREFIX: Final = "sha256:"


class Routes:
    """Finds the replica set for a task by engine and model name.

    `carried` maps engine and name to the pool that took the name along when it, the last one, left the set that
    bears the name by itself.
    """

    def __init__(self) -> None:
        self.carried: dict[tuple[str, str], str] = {}
        self._served: dict[str, dict[str, list[ReplicaSet]]] = {}
        #: The sets of each engine, for those who name a digest.
        self._of_engine: dict[str, list[ReplicaSet]] = {}
        #: Of whose sessions which percentage goes where.
        self._canaries: list[tuple[ReplicaSet, int, ReplicaSet]] = []

    # ------------------------------------------------------------------ changing

    def clear(self) -> None:
        """Forget where names lead; they are told anew."""
        self._served.clear()
        self._of_engine.clear()
        self._canaries.clear()

    def leads(self, engine: str, name: str) -> bool:
        """Whether a name leads anywhere."""
        return name in self._served.get(engine, {})

    def add(self, engine: str, name: str, home: ReplicaSet) -> None:
        """A name leads to a set, after those it leads to already."""
        sets = self._served.setdefault(engine, {}).setdefault(name, [])
        if home not in sets:
            sets.append(home)
        of_engine = self._of_engine.setdefault(engine, [])
        if home not in of_engine:
            of_engine.append(home)

    def add_canary(self, home: ReplicaSet, percent: int, canary: ReplicaSet) -> None:
        """A share of the sessions of a set goes to another one."""
        self._canaries.append((home, percent, canary))

    # ------------------------------------------------------------------ reading

    def names(self, engine: str) -> list[str]:
        """The models of an engine that tasks may ask for, by name, in order."""
        return sorted([name for name in self._served.get(engine, {}) if not name.startswith(DIGEST_PREFIX)])

    def names_of(self, home: ReplicaSet) -> list[str]:
        """The names that lead to a set, in order."""
        models = self._served.get(home.policy.engine, {})
        return [name for name in self.names(home.policy.engine) if home in models[name]]

    def find(self, task: TaskInfo) -> ReplicaSet | ErrorInfo:
        """The set to serve `task`, or INVALID_PARAMS with what is served instead.

        Of several that fit, strict ones before others where the task leaves determinism open, the first with a Ready
        replica in configuration order.
        """
        models = self._served.get(task.engine)
        if models is None:
            return invalid(f"engine {task.engine!r} is not served; served: {_listed(self._served)}")
        sets = models.get(task.model_ref)
        if sets is None:
            sets = self._with_digest(task)
        if not sets:
            served = ", ".join(self.names(task.engine)) or "nothing"
            return invalid(f"model {task.model_ref!r} is not served by {task.engine}; served: {served}", task.engine)
        fitting = _fitting(sets, task)
        if isinstance(fitting, ErrorInfo):
            return fitting
        if not task.determinism:
            # What is left open is strict wherever a strict set fits, Ready or not (ORCH-3045).
            fitting = [home for home in fitting if home.policy.determinism == "strict"] or fitting
        for home in fitting:
            if home.ready:
                return self._side(home, task)
        return fitting[0]

    def _with_digest(self, task: TaskInfo) -> list[ReplicaSet]:
        """The sets whose replicas have the model of exactly this digest."""
        if not task.model_ref.startswith(DIGEST_PREFIX):
            return []
        return [home for home in self._of_engine[task.engine] if home.model_digest == task.model_ref]

    def _side(self, home: ReplicaSet, task: TaskInfo) -> ReplicaSet:
        """The set itself, or its canary for a session of the canary's share.

        By the session alone, so that it stays on its side. While the canary has no Ready replica all go to the
        set itself. A task that names a digest is not for canaries.
        """
        if not self._canaries or task.model_ref.startswith(DIGEST_PREFIX):
            return home
        for main, percent, canary in self._canaries:
            if main is home and percentile(task.session_id) < percent and canary.ready:
                return home if isinstance(_fitting([canary], task), ErrorInfo) else canary
        return home


def _fitting(sets: list[ReplicaSet], task: TaskInfo) -> list[ReplicaSet] | ErrorInfo:
    """The sets that can serve `task`, one condition after the other; what the last of them lack, if none can.

    In this order, so that a set of another workload never stands for what the sets of the task's own would say.
    """
    name, engine = task.model_ref, task.engine
    of_workload = [home for home in sets if task.workload in home.policy.workloads]
    if not of_workload:
        served = _listed({workload: None for home in sets for workload in home.policy.workloads})
        return invalid(f"workload {task.workload!r} is not served by {name}; served: {served}", engine)
    kept = [home for home in of_workload if task.determinism != "strict" or home.policy.determinism == "strict"]
    if not kept:
        return invalid(f"determinism 'strict' is not kept by the pools that serve {name}; send 'best_effort'", engine)
    profile = task.sampler_profile_version
    of_profile = [home for home in kept if home.policy.sampler_profile_version == profile]
    if not of_profile:
        served = _listed({home.policy.sampler_profile_version: None for home in kept})
        return invalid(f"sampler_profile_version {profile!r} is not served by {name}; served: {served}", engine)
    of_class = [home for home in of_profile if task.priority in home.tier_of]
    if not of_class:
        served = _listed({priority: None for home in of_profile for priority in home.tier_of})
        return invalid(f"priority {task.priority!r} is not served by {name}; served: {served}", engine)
    # ORCH-3014, OC-CORE-1020: refused before it is enqueued.
    roomy = [home for home in of_class if task.ctx <= home.policy.ctx]
    if not roomy:
        ctx_max = max([home.policy.ctx for home in of_class])
        return invalid(f"ctx {task.ctx} is over the model's limit of {ctx_max}", engine)
    return roomy


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
