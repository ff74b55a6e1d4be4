"""The metrics of the contract, kept by watching events and commands (ORCH-3028, OC-CTRL-2051).

One registry in the scheduler covers the whole path: what replicas measured arrives with their
reports, what ingresses refuse by themselves is counted here on their behalf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from contracts import scheduling as ev
from contracts.control import ReplicaSetStatus
from contracts.errors import HTTP_STATUS
from contracts.messages import EngineGauges
from contracts.policies import SchedulerConfig, SetPolicy
from contracts.tasks import ReplicaInfo
from orchestrator.cluster.harmless import harmless
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.pool_telemetry import PoolTelemetry
from orchestrator.cluster.ratios import Promises
from orchestrator.cluster.tenant_labels import TenantLabels
from orchestrator.core.scheduler import Scheduler

_MS_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 900, 1500, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
_PLACED = ("engine", "engine_version", "pool_id", "replica_id")
_QUEUED = ("engine", "engine_version", "pool_id", "priority")
BREAKER_STATES: Final = ("closed", "open", "half-open")


class Telemetry:
    """Counts what happens; `render` gives the Prometheus text page. `live` is read, never changed."""

    def __init__(self, config: SchedulerConfig, live: Mapping[str, LiveTask]) -> None:
        self._sets = {policy.set_id: policy for policy in config.sets}
        self._engines = {pool_id: policy.engine for policy in config.sets for pool_id in policy.pool_ids}
        self._live = live
        self._versions: dict[str, str] = {}
        self._replicas: dict[str, ReplicaInfo] = {}
        self._tenants = TenantLabels()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they are not in the contract
        self.registry = CollectorRegistry()
        self._enqueued = self._counter("tasks_enqueued_total", "tasks admitted", (*_PLACED, "priority"))
        self._started = self._counter("tasks_started_total", "attempts started", (*_PLACED, "priority"))
        self._canceled = self._counter("tasks_canceled_total", "tasks canceled", (*_PLACED, "reason"))
        self._rejected = self._counter("tasks_rejected_total", "requests refused, by error code", ("engine", "reason"))
        self._backpressure = self._counter(
            "admission_backpressure_events_total", "full-queue policies applied", ("engine", "policy")
        )
        self._preemptions = self._counter(
            "preemptions_total",
            "waiting tasks dropped (soft) and attempts stopped (hard) for others",
            ("mode", "engine"),
        )
        self._resumptions = self._counter("resumptions_total", "preempted tasks that went on", ("engine",))
        self._mismatches = self._counter(
            "determinism_mismatches_total", "resumed attempts that made other tokens than before", ("engine",)
        )
        self._tokens_in = self._counter("tokens_in_total", "prompt tokens", _PLACED)
        self._tokens_out = self._counter("tokens_out_total", "generated tokens", _PLACED)
        self._depth = self._gauge("queue_depth", "tasks waiting", _QUEUED)
        self._kv = self._gauge("kv_cache_usage_ratio", "KV cache in use, 0 to 1", _PLACED)
        self._share = self._gauge(
            "admission_share", "share of the service that went to a tenant's class, 0 to 1", ("tenant", "priority")
        )
        self._breaker = self._gauge(
            "breaker_state", "1 for the state that a pool's breaker is in", ("engine", "pool_id", "priority", "state")
        )
        self._first = self._histogram("latency_first_token_ms", "admission to first token")
        self._decode = self._histogram("latency_decode_ms", "first token to last")
        self._promises = Promises(self._sets, self.registry)
        self.pools = PoolTelemetry(self._engines, self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, _QUEUED, buckets=_MS_BUCKETS, registry=self.registry)

    # ------------------------------------------------------------- told by the shell

    def learn(self, policies: list[SetPolicy]) -> None:
        """The sets that there are now; a reload makes others. There are no more than models that may be loaded."""
        self._sets.update({policy.set_id: policy for policy in policies})

    def with_attainment(self, status: ReplicaSetStatus) -> ReplicaSetStatus:
        """A set's objectives, with how often they were met of late."""
        slo = {
            priority: replace(each, attainment=self._promises.attainment(status.id, priority))
            for priority, each in status.slo.items()
        }
        return replace(status, slo=slo)

    def count_rejected(self, engine: str, reason: str) -> None:
        self._rejected.labels(engine, reason).inc()

    def count_mismatch(self, replica_id: str) -> None:
        replica = self._replicas.get(replica_id)
        self._mismatches.labels(replica.engine if replica is not None else "unknown").inc()

    @harmless
    def gauges(self, scrape: EngineGauges) -> None:
        replica = self._replicas.get(scrape.replica_id)
        if replica is None:
            return
        self.pools.gauges(replica, scrape)
        if scrape.kv_cache_usage_ratio is not None:
            self._kv.labels(*_placed(replica)).set(scrape.kv_cache_usage_ratio)

    @harmless
    def happened(self, event: ev.AnyEvent) -> None:
        """Account an event, before the core's commands about it."""
        self.pools.happened(event)
        if isinstance(event, ev.AttemptEnded):
            self._attempt_ended(event)
        elif isinstance(event, ev.ReplicaReady):
            self._replica_ready(event.replica)
            for ended in event.ended:
                self._attempt_ended(ended)

    @harmless
    def decided(self, now_ns: int, command: ev.AnyCommand) -> None:
        """Account a command, before it is carried out."""
        self.pools.decided(command)
        count = _COUNT.get(type(command))
        if count is not None:
            count(self, now_ns, command)

    # ---------------------------------------------------------------------- events

    def _replica_ready(self, replica: ReplicaInfo) -> None:
        self._replicas[replica.replica_id] = replica
        for set_id, policy in self._sets.items():
            if replica.pool_id in policy.pool_ids:
                self._versions[set_id] = replica.engine_version

    def _attempt_ended(self, event: ev.AttemptEnded) -> None:
        live = self._live.get(event.task_id)
        replica = self._replicas.get(event.replica_id)
        if live is None or replica is None or live.replica_id != event.replica_id:
            return
        self._tokens_in.labels(*_placed(replica)).inc(event.tokens_in)
        if live.task.decodes:  # else they are results, which nobody generated
            self._tokens_out.labels(*_placed(replica)).inc(event.tokens_out)
        labels = (replica.engine, replica.engine_version, replica.pool_id, live.task.priority)
        if event.first_token_ns and not live.resume_tokens:
            waited_ns = live.started_ns - live.submitted_ns
            self._first.labels(*labels).observe((waited_ns + event.first_token_ns) / 1e6)
        if event.result == "finished" and live.task.decodes:
            self._decode.labels(*labels).observe(event.decode_ns / 1e6)

    # -------------------------------------------------------------------- commands

    def _admitted(self, _now_ns: int, command: ev.Admit) -> None:
        if not command.replayed:
            task = self._live[command.task_id].task
            engine, version, pools, priority = self._queued(command.set_id, task.engine, task.priority)
            self._enqueued.labels(engine, version, pools, "", priority).inc()

    def _refused(self, _now_ns: int, command: ev.Reject) -> None:
        error = command.error
        live = self._live.get(command.task_id)
        engine = error.engine or (live.task.engine if live is not None else "unknown")
        self.count_rejected(engine, error.code)
        if HTTP_STATUS[error.code] == 429 and error.policy_label is not None:
            self._backpressure.labels(engine, error.policy_label).inc()

    def _attempt_started(self, _now_ns: int, command: ev.Start) -> None:
        live = self._live[command.task_id]
        self._started.labels(*_placed(self._replicas[command.replica_id]), live.task.priority).inc()
        if live.paused:
            self._resumptions.labels(live.task.engine).inc()

    def _paused(self, _now_ns: int, command: ev.Pause) -> None:
        if command.cause != "lost":
            self._preemptions.labels("hard", self._live[command.task_id].task.engine).inc()

    def _finished(self, now_ns: int, command: ev.Finish) -> None:
        live = self._live.get(command.task_id)
        if live is None:
            return
        outcome, engine = command.outcome, live.task.engine
        label = outcome.error.policy_label if outcome.error is not None else None
        self._promises.ended(now_ns, live, outcome)
        if outcome.state == "canceled":
            replica = self._replicas.get(live.replica_id)
            placed = _placed(replica) if replica else (engine, "", self._pools_of(command.set_id), "")
            self._canceled.labels(*placed, "client").inc()
        elif outcome.state == "dropped" and label is not None:
            self._backpressure.labels(engine, label).inc()
            if label == "shed-low-priority":  # waiting work of a lower class gave way (ORCH-3085)
                self._preemptions.labels("soft", engine).inc()

    # ------------------------------------------------------------------------ page

    def render(self, core: Scheduler, now_ns: int) -> bytes:
        """The page, Prometheus text format 0.0.4; depths, shares and breakers are read from the core now."""
        self._depth.clear()
        for policy in core.set_policies():
            for queue in policy.queues:
                labels = self._queued(policy.set_id, policy.engine, queue.priority)
                self._depth.labels(*labels).set(core.queue_depth(policy.set_id, queue.priority))
        self._promises.render()
        pools = [core.pool_health(now_ns, pool_id) for pool_id in self._engines]
        self.pools.render([pool for pool in pools if pool is not None])
        self._share.clear()
        for (tenant, priority), share in self._tenants.shares(core.shares()).items():
            self._share.labels(tenant, priority).set(share)
        for pool_id, priority, state in core.breakers(now_ns):
            for name in BREAKER_STATES:
                self._breaker.labels(self._engines.get(pool_id, "unknown"), pool_id, priority, name).set(name == state)
        return generate_latest(self.registry)

    def _queued(self, set_id: str, engine: str, priority: str) -> tuple[str, str, str, str]:
        return engine, self._versions.get(set_id, ""), self._pools_of(set_id), priority

    def _pools_of(self, set_id: str) -> str:
        """A set that is not configured any more may still have tasks that end."""
        policy = self._sets.get(set_id)
        return "+".join(policy.pool_ids) if policy is not None else ""


_COUNT: Final[dict[type, Callable[[Telemetry, int, Any], None]]] = {
    ev.Admit: Telemetry._admitted,
    ev.Reject: Telemetry._refused,
    ev.Start: Telemetry._attempt_started,
    ev.Pause: Telemetry._paused,
    ev.Finish: Telemetry._finished,
}


def _placed(replica: ReplicaInfo) -> tuple[str, str, str, str]:
    return replica.engine, replica.engine_version, replica.pool_id, replica.replica_id
