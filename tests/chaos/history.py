"""What a client saw of one task, and what was done to the service: the records that the audit reads.

Seconds (`_s`) are those since the load began, on one monotonic clock that no fault moves.
"""

from typing import Final

from msgspec import Struct, field

#: States in which a task has ended.
TERMINAL: Final = ("finished", "failed", "canceled", "dropped")
#: How the note of a fault begins that could be done to nothing.
NOT_DONE: Final = "not done: "

#: A token as it came: connection, index, text, seconds.
Arrival = tuple[int, int, str, float]


class Post(Struct):
    """One POST of a task. `status` 0: no answer came."""

    sent_s: float
    answered_s: float
    status: int
    code: str = ""


class Attach(Struct):
    """One connection that streamed: what it was to begin after, and how it ended.

    `ended`: `end` or `error` (the event), `left` (the client went), `broken`, or the HTTP status that refused it.
    """

    opened_s: float
    after: int
    door: str
    answered_s: float = -1.0
    ended: str = ""
    closed_s: float = -1.0
    code: str = ""


class TaskHistory(Struct):
    """One task, as its client saw it, and as the service told of it when all was over.

    `admitted_s` -1: never accepted. `finish` is the `end` event's reason, `code` the `error` event's or the
    status's. `final_*` and `stored` are asked for at the very end.
    """

    task_id: str
    index: int
    admitted_s: float = -1.0
    posts: list[Post] = field(default_factory=list)
    attaches: list[Attach] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    replicas: list[str] = field(default_factory=list)
    failovers: int = 0
    cancel_sent_s: float = -1.0
    cancel_taken: bool = False
    first_asked_s: float = -1.0
    end_s: float = -1.0
    finish: str = ""
    code: str = ""
    message: str = ""
    early_errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    slow: bool = False
    final_status: int = 0
    final_state: str = ""
    final_finish: str = ""
    final_code: str = ""
    final_message: str = ""
    stored: list[tuple[int, str]] = field(default_factory=list)
    stored_end: str = ""

    @property
    def was_admitted(self) -> bool:
        return self.admitted_s >= 0

    @property
    def next_index(self) -> int:
        """Index of the first token that the client does not have."""
        return max((i for _, i, _, _ in self.arrivals), default=-1) + 1


class FaultRecord(Struct):
    """One fault as it was done. `back_s` -1: its kind of process was not back before the end.

    `planned` is the kind that the plan named; another one was taken while one of that kind was still missing.
    """

    kind: str
    planned: str
    at_s: float
    until_s: float = -1.0
    back_s: float = -1.0
    victim: str = ""
    note: str = ""

    @property
    def was_done(self) -> bool:
        """Whether there was something that it could be done to."""
        return not self.note.startswith(NOT_DONE)


class Reference(Struct, frozen=True):
    """The undisturbed text of a recipe: each token, how it ended, and its pace."""

    tokens: tuple[str, ...]
    finish: str
    first_token_s: float
    gap_s: float
    gap_max_s: float
