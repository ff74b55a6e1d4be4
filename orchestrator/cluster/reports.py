"""A replica's reports to the scheduler: in order, and transcripts no faster than they are read."""

import msgspec
import structlog

from contracts.messages import AttemptTranscript
from orchestrator.cluster.connection import Connection

log = structlog.get_logger(__name__)


def send_report(link: Connection, message: msgspec.Struct) -> None:
    """Send a report. A transcript for which there is no room is left out; the end behind it is told all the same."""
    if not isinstance(message, AttemptTranscript):
        link.send(message)
    elif not link.send_in_turn(message, len(message.tokens)):
        # Who asks the scheduler for the tokens later is told that they are gone.
        log.error("transcript.dropped", task_id=message.task_id, tokens_bytes=len(message.tokens))
