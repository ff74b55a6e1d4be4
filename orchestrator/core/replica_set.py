"""One replica set: its queues, its replicas, and what both say about waiting times (ORCH-3029)."""

from typing import Final

from contracts.api import PRIORITIES
from contracts.errors import ErrorInfo
from contracts.policies import SetPolicy
from contracts.tasks import ReplicaInfo
from orchestrator.core.placement import ReplicaIndex
from orchestrator.core.policies import Fairness, Flow
from orchestrator.core.predictor import Predictor
from orchestrator.core.queues import FifoFlow
from orchestrator.core.records import NS_PER_MS, TaskRecord, ceil_ms

#: The least time after which trying again is worth while when no replica is Ready.
OUTAGE_RETRY_MS_MIN: Final = 1000


class ReplicaSet:
    """Pools of one engine and model that serve from shared queues.

    `loading` maps replica id to when loading began, oldest first. `pin` is the replica whose versions
    all Ready replicas share. `running_tokens` sums the expected output tokens that running
    attempts have yet to make. `pool_reasons` says per pool why it last lost a replica.
    """

    def __init__(self, policy: SetPolicy, fairness: Fairness) -> None:
        self.policy = policy
        self.fairness = fairness
        by_priority = {queue.priority: queue for queue in policy.queues}
        self.flows: tuple[Flow, ...] = tuple(
            FifoFlow(name, by_priority[name]) for name in PRIORITIES if name in by_priority
        )
        self.flow_of: dict[str, Flow] = {flow.priority: flow for flow in self.flows}
        self.ready = ReplicaIndex()
        self.loading: dict[str, int] = {}
        self.pool_reasons: dict[str, str] = {}
        self.pin: ReplicaInfo | None = None
        self.predictor = Predictor()
        self.running_tokens = 0
        self.dispatch_due = False

    # ------------------------------------------------------------------ bounds

    @property
    def waiting(self) -> int:
        """Places taken, reserved ones included."""
        return sum(len(flow) + flow.reserved for flow in self.flows)

    def is_full(self, flow: Flow) -> bool:
        """Whether another task of this class has no place (ORCH-3004)."""
        return self.is_class_full(flow) or self.waiting >= self.policy.capacity

    def is_class_full(self, flow: Flow) -> bool:
        """Whether the class's own bound is reached."""
        return len(flow) + flow.reserved >= flow.policy.capacity

    @property
    def starts_at_once(self) -> bool:
        """Whether a task that comes now starts now and so needs no place.

        A slot is only ever free while nobody waits, because every step ends with a dispatch.
        """
        return self.ready.free_slots > 0

    # ------------------------------------------------------------------ forecasts

    def forecast_arrival(self, flow: Flow, now_ns: int) -> tuple[int, int]:
        """(queue_position, predicted_start_ms) of a task that joins `flow` now; (0, 0) if it starts now."""
        if self.starts_at_once:
            return 0, 0
        tasks, tokens = self.fairness.ahead(self.flows, flow)
        return tasks + len(flow), self._start_ms(tokens + flow.tokens, now_ns)

    def forecast(self, record: TaskRecord, now_ns: int) -> tuple[int, int]:
        """(queue_position, predicted_start_ms from now) of a waiting task.

        The work ahead of it in its own flow is taken as proportional to its position, which keeps
        this independent of the queue's length.
        """
        flow = record.flow
        tasks, tokens = self.fairness.ahead(self.flows, flow)
        position = flow.position(record)
        return tasks + position, self._start_ms(tokens + flow.tokens * position // max(1, len(flow)), now_ns)

    def retry_after_ms(self) -> int:
        """When the next place is expected to be free: the mean time between two departures."""
        return max(1, ceil_ms(self._departure_ns()))

    def backoff_ms(self, flow: Flow) -> int:
        """How long a well-behaved client waits before it submits more.

        0 while the queue is under half full; above that, the expected time until it is half empty
        again: the number of tasks above half times the mean time between two departures.
        """
        overfill = max(
            len(flow) + flow.reserved - flow.policy.capacity // 2,
            self.waiting - self.policy.capacity // 2,
        )
        return ceil_ms(overfill * self._departure_ns()) if overfill > 0 else 0

    def _start_ms(self, tokens_ahead: int, now_ns: int) -> int:
        wait_ns = self.predictor.work_ns(self.running_tokens + tokens_ahead, self.ready.slots)
        if not len(self.ready):
            wait_ns += self._load_remaining_ns(now_ns)
        return max(1, ceil_ms(wait_ns))

    def _departure_ns(self) -> int:
        waiting = sum(len(flow) for flow in self.flows)
        tokens = sum(flow.tokens for flow in self.flows)
        running = self.ready.slots - self.ready.free_slots
        mean_tokens = (tokens + self.running_tokens) // max(1, waiting + running)
        return self.predictor.work_ns(max(1, mean_tokens), self.ready.slots)

    # ------------------------------------------------------------------ outage

    def outage(self, now_ns: int) -> ErrorInfo | None:
        """Why nothing can be served now, with a retry hint; None while a replica is Ready (ORCH-3018)."""
        if len(self.ready):
            return None
        retry_ms = max(OUTAGE_RETRY_MS_MIN, ceil_ms(self._load_remaining_ns(now_ns)))
        pools = ", ".join(self.policy.pool_ids)
        return ErrorInfo(
            code="POOL_UNREADY" if self.loading else "POOL_UNAVAILABLE",
            message=f"no replica of {pools} is ready, {len(self.loading)} loading; try again in {retry_ms} ms",
            engine=self.policy.engine,
            pool_id=self.policy.pool_ids[0],
            retriable=True,
            retry_after_ms=retry_ms,
        )

    def _load_remaining_ns(self, now_ns: int) -> int:
        load_ns = self.predictor.load_ns
        if not self.loading:
            return load_ns
        return max(OUTAGE_RETRY_MS_MIN * NS_PER_MS, next(iter(self.loading.values())) + load_ns - now_ns)
