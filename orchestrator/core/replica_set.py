"""One replica set: its classes and tenants that wait, its replicas, and what has been learnt of both."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from contracts.policies import PoolPolicy, SetPolicy
from contracts.tasks import ReplicaInfo, TaskInfo
from orchestrator.core.appointments import Appointments
from orchestrator.core.averages import Middle, Ratio
from orchestrator.core.calibration import Bias, Calibration
from orchestrator.core.canaries import Canaries
from orchestrator.core.fairness import make
from orchestrator.core.flows import Fairness, Tier
from orchestrator.core.ordering import ordering
from orchestrator.core.placement import Replica, has_room_for
from orchestrator.core.predictor import Predictor
from orchestrator.core.quotas import Gcra, TenantQuota
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.residency import Residency
from orchestrator.core.shedding import Breakers

#: The least time after which trying again is worth while when no replica is Ready.
OUTAGE_RETRY_MS_MIN: Final = 1000


class ReplicaSet:
    """Pools of one engine and model that serve from shared queues.

    `tiers` are its priority classes, highest first; `running` has the tasks that run, per class in the order
    in which they started. `ready` holds the replicas that take tasks by id, `aside` those that only finish
    theirs, `loading` maps replica id to when loading began, oldest first. `pin` is the replica whose versions all
    of them share, `model_digest` what it or the last one has. `pool_reasons` says per pool why it last lost a
    replica, `closing` why nothing more is admitted: no pool serves the set any longer.
    """

    def __init__(self, policy: SetPolicy, residency: Residency) -> None:
        self.policy = policy
        self.fairness: Fairness[TaskRecord] = make(policy.fairness)
        self.tiers = [Tier(queue, self.fairness) for queue in policy.queues]
        self.tier_of: dict[str, Tier[TaskRecord]] = {tier.policy.priority: tier for tier in self.tiers}
        self.key_of = ordering(policy.ordering)
        self.running: dict[str, dict[str, TaskRecord]] = {queue.priority: {} for queue in policy.queues}
        self.appointments = {queue.priority: Appointments(queue.capacity) for queue in policy.queues}
        self.class_rates = {
            queue.priority: Gcra.from_rate(queue.rate) for queue in policy.queues if queue.rate is not None
        }
        self.preemption_rate = Gcra.per_minute(policy.preemption.max_per_min)
        self.breakers = Breakers(policy)
        self.canaries = Canaries(policy.pools)
        self.masks = {pool.pool_id: pool.devices for pool in policy.pools}
        self.ready: dict[str, Replica] = {}
        self.aside: dict[str, Replica] = {}
        self.loading: dict[str, int] = {}
        self.pool_reasons: dict[str, str] = {}
        self.pin: ReplicaInfo | None = None
        self.model_digest = ""
        self.closing = ""
        self.slots = 0
        #: Cost tokens that running attempts are expected to have left, all together.
        self.running_tokens = 0
        self.predictor = Predictor(decodes="completion" in policy.workloads)
        self.bias = Bias(len(self.tiers))
        self.on_time = Calibration()
        self.dispatch_due = False
        self._number_of = {tier.policy.priority: n for n, tier in enumerate(self.tiers)}
        self._residency = residency

    # ------------------------------------------------------------------ tasks

    def new_record(self, task: TaskInfo, quota: TenantQuota, order: int) -> TaskRecord:
        """A task as it comes in, with what it is expected to cost."""
        flow = self.tier_of[task.priority].flow(task.tenant, quota.weight)
        predictor = self.predictor
        prompt_tokens = predictor.prompt_tokens(task.prompt_bytes)
        output_tokens = 0
        if task.decodes:
            output_tokens = predictor.expected_output(task.tenant, task.workload, task.max_tokens, task.expected_tokens)
        record = TaskRecord(task, self, flow, quota, order, prompt_tokens, output_tokens)
        self._reckon_kv(record)
        return record

    def counted(self, record: TaskRecord, prompt_tokens: int) -> None:
        """The prompt of a task was counted."""
        record.prompt_tokens = prompt_tokens
        record.cost_tokens = prompt_tokens + record.output_tokens
        record.asked_tokens = prompt_tokens + record.task.output_max_tokens
        self._reckon_kv(record)

    def _reckon_kv(self, record: TaskRecord) -> None:
        record.kv_tokens = min(record.task.ctx, record.asked_tokens)
        record.kv_bytes = record.kv_tokens * self.pin.kv_token_bytes if self.pin is not None else 0

    def join(self, record: TaskRecord) -> None:
        """A task waits in its line."""
        record.key = self.key_of(record.deadline_ns, record.order)
        record.flow.push(record)

    def leave(self, record: TaskRecord) -> None:
        """A waiting task is taken out of its line."""
        record.flow.discard(record)

    def take(self, record: TaskRecord) -> None:
        """A waiting task is taken out of its line to be started, and its flow is charged for it."""
        record.flow.discard(record)
        record.charged_tokens = record.cost_tokens
        self.fairness.charge(record.flow, record.cost_tokens)
        record.remaining_tokens = record.cost_tokens
        self.running_tokens += record.cost_tokens

    def progressed(self, record: TaskRecord, tokens: int) -> None:
        """A running attempt has `tokens` less to make."""
        done = min(tokens, record.remaining_tokens)
        record.remaining_tokens -= done
        self.running_tokens -= done

    def correct(self, record: TaskRecord, used_tokens: int) -> None:
        """An attempt is over: its flow pays for what was used, not for what was expected."""
        self.fairness.correct(record.flow, used_tokens - record.charged_tokens)
        record.charged_tokens = 0
        self.progressed(record, record.remaining_tokens)

    # ------------------------------------------------------------------ bounds

    @property
    def waiting(self) -> int:
        """Tasks that wait."""
        return self.fairness.waiting

    @property
    def waiting_tokens(self) -> int:
        """What they cost together."""
        return self.fairness.cost_tokens

    @property
    def places_taken(self) -> int:
        """Tasks that wait, and places promised to those that are being measured."""
        return self.fairness.waiting + self.fairness.reserved

    def is_full(self, tier: Tier[TaskRecord], now_ns: int) -> bool:
        """Whether another task of this class has no place (ORCH-3004); appointments hold theirs."""
        return (
            self.is_class_full(tier, now_ns)
            or self.places_taken + sum([len(each) and each.held(now_ns) for each in self.appointments.values()])
            >= self.policy.capacity
        )

    def is_taken(self, tier: Tier[TaskRecord]) -> bool:
        """Whether every place of the class or of the set is taken, those that are only held not counted."""
        return tier.waiting + tier.reserved >= tier.policy.capacity or self.places_taken >= self.policy.capacity

    def is_class_full(self, tier: Tier[TaskRecord], now_ns: int) -> bool:
        """Whether the class's own bound is reached."""
        held = self.appointments[tier.policy.priority].held(now_ns)
        return tier.waiting + tier.reserved + held >= tier.policy.capacity

    def starts_at_once(self, record: TaskRecord) -> bool:
        """Whether a task that comes now starts now, and so needs no place."""
        return (
            self.canaries.index_for(record.task.session_id).free_slots > 0
            and self.fairness.select() is None
            and record.quota.may_start(record.kv_bytes)
            and not record.flow.blocked
            and has_room_for(self, record)
        )

    # ------------------------------------------------------------------ pools

    def add_pool(self, pool: PoolPolicy) -> None:
        """A pool serves here from now on, too."""
        if pool.pool_id in self.policy.pool_ids:
            return
        self.policy = replace(self.policy, pools=(*self.policy.pools, pool))
        self.canaries.add(pool)
        self.breakers.add(pool.pool_id)
        self.masks[pool.pool_id] = pool.devices

    def remove_pool(self, pool_id: str) -> None:
        """A pool, not the last one, has no replica here any more."""
        self.policy = replace(self.policy, pools=tuple([p for p in self.policy.pools if p.pool_id != pool_id]))
        self.canaries.remove(pool_id)
        self.breakers.remove(pool_id)
        del self.masks[pool_id]
        self.pool_reasons.pop(pool_id, None)

    # ------------------------------------------------------------------ replicas

    @property
    def free_slots(self) -> int:
        """Slots that are free, over all Ready replicas."""
        indexes = self.canaries.indexes
        if len(indexes) == 1:
            return indexes[0].free_slots
        free = 0
        for index in indexes:
            free += index.free_slots
        return free

    def came_up(self, replica: Replica) -> None:
        """A replica takes tasks from now on."""
        if self.pin is not None:
            self.model_digest = self.pin.model_digest
        self.aside.pop(replica.replica_id, None)
        self.ready[replica.replica_id] = replica
        self.slots += replica.slots
        replica.index.add(replica)

    def set_aside(self, replica: Replica) -> None:
        """A replica takes no new task, and goes on with those it has."""
        self._withdraw(replica)
        self.aside[replica.replica_id] = replica

    def went_down(self, replica: Replica) -> None:
        """A replica does not serve any more; what it was running must be dealt with by the caller."""
        if self.aside.pop(replica.replica_id, None) is None:
            self._withdraw(replica)
        if not self.ready and not self.aside:
            self.pin = None

    def _withdraw(self, replica: Replica) -> None:
        del self.ready[replica.replica_id]
        self.slots -= replica.slots
        replica.index.remove(replica)

    def warm_replica(self, record: TaskRecord) -> Replica | None:
        """The replica that still holds the KV of the task's session, if the task wants it (ORCH-3009)."""
        session = record.session
        if session is None or not session.replica_id or record.task.kv_hint == "cold":
            return None
        return self.ready.get(self._residency.where(session.key))

    def load_remaining_ns(self, now_ns: int) -> int:
        """When the next replica is expected to be Ready."""
        load_ns = self.predictor.load_ns
        if not self.loading:
            return load_ns
        return max(OUTAGE_RETRY_MS_MIN * NS_PER_MS, next(iter(self.loading.values())) + load_ns - now_ns)

    # ------------------------------------------------------------------ estimates

    def bias_of(self, priority: str, deadline_ms: int) -> Ratio:
        """How predicted waits of such tasks have turned out."""
        return self.bias.of(self._number_of[priority], deadline_ms)

    def middle_of(self, priority: str, wait_ns: int) -> Middle:
        """How such predicted waits have turned out in the middle."""
        return self.bias.middle(self._number_of[priority], wait_ns)
