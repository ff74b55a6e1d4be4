"""The breakers of one replica set: one for each pool and class (ORCH-3040).

A pool that misses a class's objective gets no more of that class while another can take it; when all
of them do, the class is refused at admission.
"""

from contracts.policies import QueuePolicy, SetPolicy
from orchestrator.core.breakers import Breaker, BreakerState
from orchestrator.core.records import NS_PER_MS, TaskRecord


class Breakers:
    """All breakers of a set; falsy while none is configured."""

    def __init__(self, policy: SetPolicy) -> None:
        self._policy = policy.breaker
        self._slo_ns: dict[str, int | None] = {queue.priority: _slo_ns(queue) for queue in policy.queues}
        self._of_class: dict[str, dict[str, Breaker]] = {}
        if policy.breaker is not None:
            for queue in policy.queues:
                self._of_class[queue.priority] = {pool.pool_id: Breaker(policy.breaker) for pool in policy.pools}

    def __bool__(self) -> bool:
        return bool(self._of_class)

    def add(self, pool_id: str) -> None:
        """A pool joins the set."""
        if self._policy is not None:
            for of_pool in self._of_class.values():
                of_pool[pool_id] = Breaker(self._policy)

    def remove(self, pool_id: str) -> None:
        """A pool leaves the set."""
        for of_pool in self._of_class.values():
            del of_pool[pool_id]

    def allows(self, pool_id: str, priority: str, now_ns: int) -> bool:
        """Whether a pool may be given a task of a class."""
        return self._of_class[priority][pool_id].allows(now_ns)

    def wait_ns(self, priority: str, now_ns: int) -> int:
        """Until some pool may be given a task of the class; 0: now."""
        return min(breaker.wait_ns(now_ns) for breaker in self._of_class[priority].values())

    def admitted(self, priority: str, now_ns: int) -> None:
        """A task of the class was let in; it probes the first pool that is tried again."""
        for breaker in self._of_class[priority].values():
            if breaker.state(now_ns) == "half-open" and breaker.allows(now_ns):
                breaker.admitted(now_ns)
                return

    def observe(self, record: TaskRecord, pool_id: str, finished: bool, first_token_ns: int, now_ns: int) -> None:
        """An attempt ended, its first token `first_token_ns` after admission."""
        slo_ns = self._slo_ns[record.task.priority]
        violated = not finished or (slo_ns is not None and first_token_ns > slo_ns)
        self._of_class[record.task.priority][pool_id].observe(now_ns, violated)

    def states(self, now_ns: int) -> list[tuple[str, str, BreakerState]]:
        """(pool id, class, state) of each."""
        return [
            (pool_id, priority, breaker.state(now_ns))
            for priority, of_pool in self._of_class.items()
            for pool_id, breaker in of_pool.items()
        ]


def _slo_ns(queue: QueuePolicy) -> int | None:
    return None if queue.slo_first_token_ms is None else queue.slo_first_token_ms * NS_PER_MS
