"""The metrics of the contract, kept by watching events and commands (ORCH-3028, OC-CTRL-2051).

One registry in the scheduler covers the whole path: what replicas measured arrives with their
reports, what ingresses refuse by themselves is counted here on their behalf.
"""

from collections.abc import Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from contracts import scheduling as ev
from contracts.errors import HTTP_STATUS
from contracts.messages import EngineGauges
from contracts.policies import SchedulerConfig
from contracts.tasks import ReplicaInfo
from orchestrator.core.scheduler import Scheduler

_MS_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 900, 1500, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
_PLACED = ("engine", "engine_version", "pool_id", "replica_id")
_QUEUED = ("engine", "engine_version", "pool_id", "priority")


class _Live(msgspec.Struct, gc=False):
    """What the metrics need of a task between its submission and its end."""

    engine: str
    priority: str
    submitted_ns: int
    started_ns: int = 0
    replica_id: str = ""


class Telemetry:
    """Counts what happens; `render` gives the Prometheus text page."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._sets = {policy.set_id: policy for policy in config.sets}
        self._versions: dict[str, str] = {}
        self._replicas: dict[str, ReplicaInfo] = {}
        self._live: dict[str, _Live] = {}
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they are not in the contract
        self.registry = CollectorRegistry()
        self._enqueued = self._counter("tasks_enqueued_total", "tasks admitted", (*_PLACED, "priority"))
        self._started = self._counter("tasks_started_total", "attempts started", (*_PLACED, "priority"))
        self._canceled = self._counter("tasks_canceled_total", "tasks canceled", (*_PLACED, "reason"))
        self._rejected = self._counter("tasks_rejected_total", "requests refused, by error code", ("engine", "reason"))
        self._backpressure = self._counter(
            "admission_backpressure_events_total", "full-queue policies applied", ("engine", "policy")
        )
        self._tokens_in = self._counter("tokens_in_total", "prompt tokens", _PLACED)
        self._tokens_out = self._counter("tokens_out_total", "generated tokens", _PLACED)
        self._depth = Gauge("queue_depth", "tasks waiting", _QUEUED, registry=self.registry)
        self._kv = Gauge("kv_cache_usage_ratio", "KV cache in use, 0 to 1", _PLACED, registry=self.registry)
        self._first = Histogram(
            "latency_first_token_ms",
            "admission to first token",
            _QUEUED,
            buckets=_MS_BUCKETS,
            registry=self.registry,
        )
        self._decode = Histogram(
            "latency_decode_ms", "first token to last", _QUEUED, buckets=_MS_BUCKETS, registry=self.registry
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def count_rejected(self, engine: str, reason: str) -> None:
        self._rejected.labels(engine, reason).inc()

    def gauges(self, scrape: EngineGauges) -> None:
        replica = self._replicas.get(scrape.replica_id)
        if replica is not None and scrape.kv_cache_usage_ratio is not None:
            self._kv.labels(*_placed(replica)).set(scrape.kv_cache_usage_ratio)

    def observe(self, now_ns: int, event: ev.AnyEvent, commands: Sequence[ev.AnyCommand]) -> None:
        """Account one step of the core."""
        known = False
        if isinstance(event, ev.TaskSubmitted):
            task = event.task
            known = task.task_id in self._live
            self._live.setdefault(task.task_id, _Live(task.engine, task.priority, now_ns))
        elif isinstance(event, ev.ReplicaReady):
            self._replica_ready(event.replica)
        elif isinstance(event, ev.AttemptEnded):
            self._attempt_ended(event)
        for command in commands:
            if isinstance(command, ev.Admit) and not command.replayed:
                self._admitted(command)
            elif isinstance(command, ev.Admit) and not known:
                self._live.pop(command.task_id, None)  # an ended task sent again
            elif isinstance(command, ev.Reject):
                self._refused(command)
            elif isinstance(command, ev.Start):
                self._attempt_started(now_ns, command)
            elif isinstance(command, ev.Finish):
                self._finished(command)

    def _replica_ready(self, replica: ReplicaInfo) -> None:
        self._replicas[replica.replica_id] = replica
        for set_id, policy in self._sets.items():
            if replica.pool_id in policy.pool_ids:
                self._versions[set_id] = replica.engine_version

    def _queued(self, set_id: str, engine: str, priority: str) -> tuple[str, str, str, str]:
        pools = "+".join(self._sets[set_id].pool_ids)
        return engine, self._versions.get(set_id, ""), pools, priority

    def _admitted(self, command: ev.Admit) -> None:
        live = self._live[command.task_id]
        engine, version, pools, priority = self._queued(command.set_id, live.engine, live.priority)
        self._enqueued.labels(engine, version, pools, "", priority).inc()

    def _refused(self, command: ev.Reject) -> None:
        error = command.error
        live = self._live.get(command.task_id)
        engine = error.engine or (live.engine if live is not None else "unknown")
        self.count_rejected(engine, error.code)
        if HTTP_STATUS[error.code] == 429 and error.policy_label is not None:
            self._backpressure.labels(engine, error.policy_label).inc()
        # A refusal of a live task's id (a conflict) must not end the accounting of that task.
        if error.code != "TASK_ID_CONFLICT":
            self._live.pop(command.task_id, None)

    def _attempt_started(self, now_ns: int, command: ev.Start) -> None:
        replica = self._replicas[command.replica_id]
        live = self._live[command.task_id]
        live.started_ns, live.replica_id = now_ns, command.replica_id
        self._started.labels(*_placed(replica), live.priority).inc()

    def _attempt_ended(self, event: ev.AttemptEnded) -> None:
        live = self._live.get(event.task_id)
        replica = self._replicas.get(event.replica_id)
        if live is None or replica is None or live.replica_id != event.replica_id:
            return
        self._tokens_in.labels(*_placed(replica)).inc(event.tokens_in)
        self._tokens_out.labels(*_placed(replica)).inc(event.tokens_out)
        labels = (replica.engine, replica.engine_version, replica.pool_id, live.priority)
        if event.first_token_ns:
            waited_ns = live.started_ns - live.submitted_ns
            self._first.labels(*labels).observe((waited_ns + event.first_token_ns) / 1e6)
        if event.result == "finished":
            self._decode.labels(*labels).observe(event.decode_ns / 1e6)

    def _finished(self, command: ev.Finish) -> None:
        live = self._live.pop(command.task_id, None)
        if live is None:
            return
        outcome = command.outcome
        if outcome.state == "canceled":
            replica = self._replicas.get(live.replica_id)
            placed = (
                _placed(replica) if replica else (live.engine, "", "+".join(self._sets[command.set_id].pool_ids), "")
            )
            self._canceled.labels(*placed, "client").inc()
        elif outcome.state == "dropped" and outcome.error is not None and outcome.error.policy_label is not None:
            self._backpressure.labels(live.engine, outcome.error.policy_label).inc()

    def render(self, core: Scheduler) -> bytes:
        """The page, Prometheus text format 0.0.4; queue depths are read from the core now."""
        self._depth.clear()
        for set_id, policy in self._sets.items():
            for queue in policy.queues:
                labels = self._queued(set_id, policy.engine, queue.priority)
                self._depth.labels(*labels).set(core.queue_depth(set_id, queue.priority))
        return generate_latest(self.registry)


def _placed(replica: ReplicaInfo) -> tuple[str, str, str, str]:
    return replica.engine, replica.engine_version, replica.pool_id, replica.replica_id
