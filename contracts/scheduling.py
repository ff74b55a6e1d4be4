"""The scheduler's vocabulary: events it is told, commands it gives.

Events are past tense, commands imperative. Both are frozen tagged structs: the same type is the
core's input, the channel's message and the journal's record. Instants are integer nanoseconds
(`_ns`) of one monotonic clock that the shell owns.
"""

from typing import Final, Literal

from msgspec import Struct

from contracts.base import Command, Event
from contracts.decisions import Admit as Admit
from contracts.decisions import Placement as Placement
from contracts.decisions import Start as Start
from contracts.decisions import StopReason as StopReason
from contracts.errors import ErrorInfo
from contracts.journal import Kept
from contracts.pools import FaultKind, PoolCommand, PoolEvent
from contracts.tasks import Outcome, ReplicaInfo, TaskInfo

# -------------------------------------------------------------------------- events


class TaskSubmitted(Event, frozen=True, gc=False):
    """A validated request arrived. `submission` is the shell's handle for the answer."""

    submission: int
    task: TaskInfo


class PromptMeasured(Event, frozen=True, gc=False):
    """A replica counted a prompt's tokens, or could not (`error`); `measurement` is that of the command.

    Of a task with several inputs it counted those that may be too long; `prompt_tokens` are the longest one's.
    """

    task_id: str
    measurement: int
    prompt_tokens: int
    error: ErrorInfo | None = None


class CancelRequested(Event, frozen=True, gc=False):
    """Someone of `tenant` asked to cancel; answered by `AnswerCancel` with the same `request`."""

    request: int
    task_id: str
    tenant: str


class ReplicaLoading(Event, frozen=True, gc=False):
    """A replica exists and is bringing its engine up, or waits to be told to; not dispatchable yet.

    `incarnation` is that of the order it was made for. One whose link was made anew tells which attempts `ended`
    without the scheduler's having confirmed that it knows.
    """

    replica_id: str
    pool_id: str
    incarnation: int = 0
    ended: tuple["AttemptEnded", ...] = ()


class RunningAttempt(Struct, frozen=True, gc=False):
    """An attempt that occupies a slot of a replica whose link was made anew, and how far it is.

    `over`: it has ended, and only its slot is still to be let go; a `SlotReleased` follows.
    """

    task_id: str
    attempt: int
    tokens_out: int = 0
    digest: int = 0
    over: bool = False


class ReplicaReady(Event, frozen=True, gc=False):
    """A replica preloaded its model and generated a token; dispatchable from now on.

    One whose link was made anew tells what it `running` has on its slots, and which attempts `ended` without
    the scheduler's having confirmed that it knows. `incarnation` is that of the order it was made for.
    """

    replica: ReplicaInfo
    incarnation: int = 0
    running: tuple[RunningAttempt, ...] = ()
    ended: tuple["AttemptEnded", ...] = ()


class ReplicaUnready(Event, frozen=True, gc=False):
    """A replica's engine is down but the replica lives and can bring it up again.

    `stderr` holds the engine's last lines, secrets removed.
    """

    replica_id: str
    reason: str
    kind: FaultKind = "exit"
    stderr: tuple[str, ...] = ()


class ReplicaLost(Event, frozen=True, gc=False):
    """A replica is gone (its connection ended); all it was doing is gone with it."""

    replica_id: str
    reason: str


class TokensProgressed(Event, frozen=True, gc=False):
    """How far an attempt is: tokens so far and the rolling digest of their text."""

    task_id: str
    attempt: int
    tokens_out: int
    digest: int


class AttemptEnded(Event, frozen=True, gc=False):
    """An attempt is over: no token of it will follow.

    `stopped` answers a `Stop`; an attempt that finished first reports `finished` instead, and
    that stands. `slot_free` is false while the engine still has to let go of the slot; then a
    `SlotReleased` follows. `digest` is the rolling digest of all its tokens.
    """

    task_id: str
    attempt: int
    replica_id: str
    result: Literal["finished", "stopped", "failed"]
    slot_free: bool
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    first_token_ns: int = 0
    decode_ns: int = 0
    transcript_bytes: int = 0
    finish_reason: Literal["stop", "length"] | None = None
    stop_sequence: str | None = None
    error: ErrorInfo | None = None
    digest: int = 0


class SlotReleased(Event, frozen=True, gc=False):
    """The engine confirmed that the slot of an ended attempt is free."""

    task_id: str
    attempt: int
    replica_id: str


class ReplicaReported(Event, frozen=True, gc=False):
    """A replica's own gauges: how full its KV cache is, in thousandths (ORCH-3022)."""

    replica_id: str
    kv_used_permille: int


class SessionCloseRequested(Event, frozen=True, gc=False):
    """Someone of `tenant` asked to end a session; answered by `AnswerClose` with the same `request`."""

    request: int
    session_id: str
    tenant: str


class ServiceRecovered(Event, frozen=True, gc=False):
    """The service goes on with what an earlier scheduler kept (ORCH-3051). The first event, or none at all.

    Its instants are those of the clock that this scheduler is stepped with.
    """

    kept: Kept


class TokensDiverged(Event, frozen=True, gc=False):
    """An ingress compared a later attempt of a task with what it had delivered: they differ (ORCH-3045)."""

    task_id: str
    attempt: int


class JournalFailed(Event, frozen=True, gc=False):
    """Nothing can be made durable at present, for `reason`; the admissions of `undone` were not answered."""

    reason: str
    undone: tuple[str, ...] = ()


class JournalRestored(Event, frozen=True, gc=False):
    """Records are durable again."""


class ShutdownRequested(Event, frozen=True, gc=False):
    """The service is about to end: nothing more is admitted or started. Answered by `AnswerShutdown`.

    That comes when no attempt runs any more, or after `deadline_ms`.
    """

    request: int
    deadline_ms: int


class TimerFired(Event, frozen=True, gc=False):
    """The time last asked for by `SetTimer` has come."""


AnyEvent = (
    TaskSubmitted
    | PromptMeasured
    | CancelRequested
    | ReplicaLoading
    | ReplicaReady
    | ReplicaUnready
    | ReplicaLost
    | TokensProgressed
    | AttemptEnded
    | SlotReleased
    | ReplicaReported
    | SessionCloseRequested
    | ServiceRecovered
    | TokensDiverged
    | JournalFailed
    | JournalRestored
    | ShutdownRequested
    | TimerFired
    | PoolEvent
)

# ------------------------------------------------------------------------ commands


class Reject(Command, frozen=True, gc=False):
    """Answer a submission: refused; nothing of it is kept."""

    submission: int
    task_id: str
    error: ErrorInfo

    @property
    def why(self) -> str:
        return self.error.message


class MeasurePrompt(Command, frozen=True, gc=False):
    """Have a replica count the prompt's tokens; answered by `PromptMeasured`.

    `measurement` fences: a late answer must not be taken for another task submitted under the id.
    """

    task_id: str
    measurement: int
    replica_id: str


class Stop(Command, frozen=True, gc=False):
    """Stop an attempt; answered by `AttemptEnded`. `preempt` does it for task `for_task`.

    `drain`: its replica's time is up, the task goes on elsewhere if it can.
    """

    task_id: str
    attempt: int
    replica_id: str
    reason: StopReason
    for_task: str = ""

    @property
    def why(self) -> str:
        if self.reason == "preempt":
            return f"preempted: {self.for_task or 'a task'} of a higher class would miss its deadline otherwise"
        if self.reason == "drain":
            return f"replica {self.replica_id} is drained and its deadline is over"
        if self.reason == "stale":
            return f"attempt {self.attempt} was given up when {self.replica_id} was lost"
        if self.reason == "diverged":
            return f"attempt {self.attempt} made other tokens than were delivered"
        return f"stopped by {self.reason}" if self.reason == "cancel" else f"stopped by the {self.reason} timeout"


PauseCause = Literal["preempt", "drain", "lost"]


class Pause(Command, frozen=True, gc=False):
    """A task waits again; tell whoever listens that it will be resumed where it was (ORCH-3086).

    `cause` is what ended its attempt: a more urgent task, the end of a drain, or the loss of its replica. A lost
    attempt may turn out to run all the same; nobody is told of a loss before it is made good.
    """

    task_id: str
    attempt: int
    predicted_start_ms: int
    cause: PauseCause = "preempt"

    @property
    def why(self) -> str:
        what = _PAUSED_FOR[self.cause]
        return f"{what}, waits again; resumes in about {self.predicted_start_ms} ms"


_PAUSED_FOR: Final[dict[PauseCause, str]] = {
    "preempt": "preempted",
    "drain": "moved off a drained replica",
    "lost": "lost with its replica",
}


class Finish(Command, frozen=True, gc=False):
    """The task has reached its terminal outcome; tell whoever listens."""

    task_id: str
    outcome: Outcome

    @property
    def why(self) -> str:
        error = self.outcome.error
        return error.message if error is not None else f"{self.outcome.state}: {self.outcome.finish_reason}"


class AnswerCancel(Command, frozen=True, gc=False):
    """Answer a cancel request: no token of the task will follow (or no such task)."""

    request: int
    found: bool


class AnswerClose(Command, frozen=True, gc=False):
    """Answer a request to end a session: it is gone (or there was none)."""

    request: int
    found: bool


class AnswerShutdown(Command, frozen=True, gc=False):
    """Answer a request to end the service: so many attempts still run, so many tasks wait for the next start."""

    request: int
    running: int
    waiting: int


class Forget(Command, frozen=True, gc=False):
    """Drop payload, transcript and every other trace of a task."""

    task_id: str


class DropTranscript(Command, frozen=True, gc=False):
    """Drop the transcript of an ended task, which stays known: transcripts take too much room."""

    task_id: str


class RefuseReplica(Command, frozen=True, gc=False):
    """A replica does not match its set's pinned versions; it must not serve (ORCH-3046)."""

    replica_id: str
    reason: str


class SetTimer(Command, frozen=True, gc=False):
    """Tell the core `TimerFired` at `at_ns`; replaces the timer asked for before."""

    at_ns: int


AnyCommand = (
    Admit
    | Reject
    | MeasurePrompt
    | Start
    | Stop
    | Pause
    | Finish
    | AnswerCancel
    | AnswerClose
    | AnswerShutdown
    | Forget
    | DropTranscript
    | RefuseReplica
    | SetTimer
    | PoolCommand
)
