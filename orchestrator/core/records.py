"""What the core remembers of one task, from its submission until it is forgotten (ORCH-3024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from contracts.api import TaskState
from contracts.scheduling import Admit
from contracts.tasks import Outcome, ReplicaInfo, TaskInfo

if TYPE_CHECKING:
    from orchestrator.core.placement import Replica
    from orchestrator.core.policies import Flow
    from orchestrator.core.replica_set import ReplicaSet

NS_PER_MS: Final = 1_000_000

StopReason = Literal["cancel", "wall", "idle"]


class TaskRecord:
    """One task. Only `lifecycle.advance` writes `state`.

    `order` is the arrival number, `ticket` belongs to the queue it waits in. `replica` is set while
    an attempt runs, `served_by` from the first start on. `slots_held` counts engine slots that any
    attempt of the task still occupies; `expired` marks a record that is forgotten once that is zero.
    """

    __slots__ = (
        "admission",
        "admitted_ns",
        "attempt",
        "cancels",
        "deadline_ns",
        "ended_ns",
        "expected_tokens",
        "expired",
        "flow",
        "home",
        "measure_until_ns",
        "order",
        "outcome",
        "progressed_ns",
        "queue_time_ns",
        "remaining_tokens",
        "replica",
        "served_by",
        "slots_held",
        "started_ns",
        "state",
        "stop_reason",
        "stop_until_ns",
        "submissions",
        "task",
        "ticket",
        "tokens_out",
        "transcript_bytes",
    )

    def __init__(self, task: TaskInfo, home: ReplicaSet, flow: Flow, order: int, expected_tokens: int) -> None:
        self.task = task
        self.home = home
        self.flow = flow
        self.order = order
        self.expected_tokens = expected_tokens
        self.state: TaskState = "measuring"
        # until admission
        self.submissions: list[int] = []
        self.measure_until_ns = 0
        # from admission
        self.admission: Admit | None = None
        self.admitted_ns = 0
        self.deadline_ns = 0
        self.ticket = -1
        # from the first start
        self.attempt = 0
        self.replica: Replica | None = None
        self.served_by: ReplicaInfo | None = None
        self.queue_time_ns: int | None = None
        self.started_ns = 0
        self.progressed_ns = 0
        self.tokens_out = 0
        self.remaining_tokens = 0
        self.slots_held = 0
        # while stopping
        self.stop_reason: StopReason | None = None
        self.stop_until_ns = 0
        self.cancels: list[int] = []
        # from the end
        self.outcome: Outcome | None = None
        self.ended_ns = 0
        self.transcript_bytes = 0
        self.expired = False


def round_ms(duration_ns: int) -> int:
    """Nanoseconds as the nearest whole milliseconds."""
    return (duration_ns + NS_PER_MS // 2) // NS_PER_MS


def ceil_ms(duration_ns: int) -> int:
    """Nanoseconds as milliseconds, rounded up: a wait is never told too short."""
    return -(-duration_ns // NS_PER_MS)
