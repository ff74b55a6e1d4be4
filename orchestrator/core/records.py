"""What the core remembers of one task, from its submission until it is forgotten (ORCH-3024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from contracts.api import TaskState
from contracts.scheduling import Admit, Start, StopReason
from contracts.tasks import Outcome, ReplicaInfo, TaskInfo

if TYPE_CHECKING:
    from orchestrator.core.flows import Flow
    from orchestrator.core.outlook import Outlook
    from orchestrator.core.placement import Replica
    from orchestrator.core.quotas import TenantQuota
    from orchestrator.core.replica_set import ReplicaSet
    from orchestrator.core.sessions import Session

NS_PER_MS: Final = 1_000_000


class TaskRecord:
    """One task. Only `lifecycle.advance` writes `state`.

    `order` is the arrival number, `key` its place in the line it waits in. `prompt_tokens` and
    `output_tokens` are estimates until they are counted; `cost_tokens` is their sum, what fairness
    charges. `replica` is set while an attempt runs, `served_by` from the first start on. `slots_held`
    counts engine slots that any attempt of the task still occupies; `expired` marks a record that is
    forgotten once that is zero.
    """

    __slots__ = (
        "admission",
        "admitted_ns",
        "asked_tokens",
        "attempt",
        "avoid",
        "cancels",
        "charged_tokens",
        "cost_tokens",
        "crashes",
        "deadline_ns",
        "ended_ns",
        "expired",
        "flow",
        "fresh",
        "hands_over_to",
        "home",
        "is_failover",
        "key",
        "kv_bytes",
        "kv_tokens",
        "losses",
        "lost_attempt",
        "measure_until_ns",
        "moves",
        "order",
        "outcome",
        "outlook",
        "output_tokens",
        "over_attempt",
        "preemptions",
        "progressed_ns",
        "prompt_tokens",
        "queue_time_ns",
        "quota",
        "remaining_tokens",
        "replica",
        "rescued",
        "resume_digest",
        "resume_tokens",
        "served_by",
        "session",
        "skipped",
        "slots_held",
        "start",
        "started_ns",
        "state",
        "stop_reason",
        "stop_until_ns",
        "submissions",
        "taken_attempt",
        "task",
        "tokens_digest",
        "tokens_out",
        "transcript_bytes",
    )

    def __init__(
        self,
        task: TaskInfo,
        home: ReplicaSet,
        flow: Flow[TaskRecord],
        quota: TenantQuota,
        order: int,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        self.task = task
        self.home = home
        self.flow = flow
        self.quota = quota
        self.order = order
        self.key = order
        self.fresh = True
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cost_tokens = prompt_tokens + output_tokens
        self.asked_tokens = prompt_tokens + task.output_max_tokens
        self.kv_tokens = 0
        self.kv_bytes = 0
        self.state: TaskState = "measuring"
        # until admission
        self.submissions: list[int] = []
        self.measure_until_ns = 0
        # from admission
        self.session: Session | None = None
        self.outlook: Outlook | None = None
        self.admission: Admit | None = None
        self.admitted_ns = 0
        self.deadline_ns = 0
        # from the first start
        self.attempt = 0
        self.start: Start | None = None
        self.replica: Replica | None = None
        self.served_by: ReplicaInfo | None = None
        self.queue_time_ns: int | None = None
        self.started_ns = 0
        self.progressed_ns = 0
        self.tokens_out = 0
        self.tokens_digest = 0
        self.charged_tokens = 0
        #: What is left of `cost_tokens` while an attempt runs.
        self.remaining_tokens = 0
        self.slots_held = 0
        #: Node on which an attempt failed; the next one goes elsewhere if it can.
        self.avoid = ""
        # while stopping
        self.stop_reason: StopReason | None = None
        self.stop_until_ns = 0
        self.cancels: list[int] = []
        self._never_interrupted()
        # from the end
        self.outcome: Outcome | None = None
        self.ended_ns = 0
        self.expired = False

    def _never_interrupted(self) -> None:
        # preemption
        self.preemptions = 0
        #: How often it was stopped because its replica was drained, to go on elsewhere.
        self.moves = 0
        # failover
        #: Attempts that died with their replica, and those of them whose engine crashed.
        self.losses = 0
        self.crashes = 0
        #: The last attempt that is known to be over, or was given up for good; one after it may still run somewhere.
        self.over_attempt = 0
        #: The last attempt whose tokens another one has to make again, because it was lost or its engine ended it.
        self.lost_attempt = 0
        #: The present attempt is such another one.
        self.is_failover = False
        #: The last attempt of an earlier task of this id that a replica told of, and how many numbers were passed over
        #: for such ones.
        self.taken_attempt = 0
        self.skipped = 0
        self.resume_tokens = 0
        self.resume_digest = 0
        #: A slot is being taken for it.
        self.rescued = False
        #: The waiting task that this one's slot was taken for.
        self.hands_over_to: TaskRecord | None = None
        #: Of the attempts that are over; 0 once it was dropped.
        self.transcript_bytes = 0

    @property
    def determinism(self) -> str:
        """What the task asks for, or what its set promises where it leaves that open."""
        return self.task.determinism or self.home.policy.determinism

    @property
    def is_open(self) -> bool:
        """Whether the last attempt may still run, as far as is known: it does, or its replica was lost with it."""
        return self.attempt > self.over_attempt and self.outcome is None

    @property
    def engine_ends(self) -> int:
        """Attempts that the engine ended itself, the present one included: not those stopped, moved or lost."""
        return self.attempt - self.skipped - self.preemptions - self.moves - self.losses

    @property
    def delivered_tokens(self) -> int:
        """Tokens of the transcript that may have been delivered, as far as it was told: 0 means that none was."""
        return max(self.tokens_out, self.resume_tokens)

    @property
    def made_tokens(self) -> int:
        """Tokens made so far, for people: an embedding or a rerank makes none."""
        return self.delivered_tokens if self.task.decodes else 0

    def work_of(self, chunks: int) -> int:
        """Cost tokens behind so many tokens of the transcript, each of which is a whole input where none is decoded."""
        return chunks if self.task.decodes else chunks * self.prompt_tokens // max(1, self.task.items)


def round_ms(duration_ns: int) -> int:
    """Nanoseconds as the nearest whole milliseconds."""
    return (duration_ns + NS_PER_MS // 2) // NS_PER_MS


def ceil_ms(duration_ns: int) -> int:
    """Nanoseconds as milliseconds, rounded up: a wait is never told too short."""
    return -(-duration_ns // NS_PER_MS)
