"""Ends of attempts that the scheduler has not confirmed: they are told again on each new link (ORCH-3026).

They outlive the link and the engine that made them. There are at most as many as were started; should the
scheduler not confirm for a very long time all the same, the oldest lose their transcripts, and then are dropped.
"""

from typing import Final

import msgspec
import structlog

from contracts.messages import AttemptTranscript
from contracts.scheduling import AttemptEnded, SlotReleased

log = structlog.get_logger(__name__)

OUTSTANDING_MAX: Final = 4096
#: What their transcripts take together, but for the last one.
OUTSTANDING_BYTES_MAX: Final = 256 * 1024 * 1024

Key = tuple[str, int]


class Outstanding:
    """Unconfirmed ends by task and attempt, oldest first, with the transcripts that belong to them."""

    def __init__(self) -> None:
        self._ends: dict[Key, AttemptEnded] = {}
        self._transcripts: dict[Key, AttemptTranscript] = {}
        self._bytes = 0
        self._made: AttemptTranscript | None = None

    def heard(self, message: msgspec.Struct) -> None:
        """Take note of a report, whether or not it can be sent now: a transcript comes right before its end."""
        if isinstance(message, AttemptTranscript):
            self._made = message
        elif isinstance(message, AttemptEnded):
            self._add(message)
        elif isinstance(message, SlotReleased):
            self._free((message.task_id, message.attempt))

    def noted(self, task_id: str, attempt: int) -> None:
        """The scheduler knows of an end for good."""
        self._ends.pop((task_id, attempt), None)
        self._drop_transcript((task_id, attempt))

    def engine_ended(self) -> None:
        """With the engine all slots are gone: none is still to be let go."""
        for key in list(self._ends):
            self._free(key)

    def transcripts(self) -> list[AttemptTranscript]:
        """To be told before the ends, oldest first."""
        return list(self._transcripts.values())

    def ends(self) -> tuple[AttemptEnded, ...]:
        """The ends as they stand now: slots may have been let go since they were told first."""
        return tuple(self._ends.values())

    def _add(self, ended: AttemptEnded) -> None:
        key = (ended.task_id, ended.attempt)
        self._ends[key] = ended
        made, self._made = self._made, None
        if made is not None and (made.task_id, made.attempt) == key:
            self._transcripts[key] = made
            self._bytes += len(made.tokens)
        while self._bytes > OUTSTANDING_BYTES_MAX and len(self._transcripts) > 1:
            oldest = next(iter(self._transcripts))
            log.error("transcript.dropped", task_id=oldest[0], reason="too many ends were not confirmed")
            self._drop_transcript(oldest)
        while len(self._ends) > OUTSTANDING_MAX:
            oldest = next(iter(self._ends))
            log.error("end.dropped", task_id=oldest[0], reason="too many ends were not confirmed")
            self.noted(*oldest)

    def _drop_transcript(self, key: Key) -> None:
        dropped = self._transcripts.pop(key, None)
        if dropped is not None:
            self._bytes -= len(dropped.tokens)

    def _free(self, key: Key) -> None:
        ended = self._ends.get(key)
        if ended is not None and not ended.slot_free:
            self._ends[key] = msgspec.structs.replace(ended, slot_free=True)
