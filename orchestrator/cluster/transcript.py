"""The tokens of one attempt, and their way to the ingresses that subscribed to them.

The replica keeps the whole transcript while the attempt runs, so a subscription is just a
position in it: credit bounds what is under way to an ingress, and a slow reader costs nothing
here and holds up nobody else. It may be ahead of what has been made: an attempt that takes up a lost
one makes again what others have delivered.

An attempt that takes up a preempted one makes that one's tokens again. Until they have been compared,
nothing of it is sent to anyone (ORCH-3086).
"""

import asyncio
import zlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from contracts.messages import StreamOver, TokenBatch
from contracts.tasks import Outcome
from orchestrator.cluster.connection import Connection

#: Tokens of one subscription in one frame; more follow in the next turn of the event loop.
BATCH_TOKENS_MAX: Final = 4096


class Subscription:
    """One ingress stream: where it is in the transcript and how much it will take."""

    __slots__ = ("connection", "credit", "next", "sid", "transcript")

    def __init__(self, transcript: "Transcript", connection: Connection, sid: int, first: int, credit: int) -> None:
        self.transcript = transcript
        self.connection = connection
        self.sid = sid
        self.next = first
        self.credit = credit


class ResumeMismatchError(Exception):
    """A resumed attempt did not make again what the preempted one had made."""


class Transcript:
    """Append-only list of token texts with a rolling digest; `result` is set once, at the end.

    `over` is the outcome that this end is; None where the scheduler's word alone counts. `held` while the first
    `resume_tokens` tokens have not been found to have the digest `resume_digest`; `unheard` while the scheduler has
    not been told that there are any. Nothing is sent then: what it does not know of it takes for undelivered.
    """

    def __init__(self, resume_tokens: int = 0, resume_digest: int = 0) -> None:
        self.texts: list[str] = []
        self.held = resume_tokens > 0
        self.unheard = False
        self._resume_tokens = resume_tokens
        self._resume_digest = resume_digest
        self.over: Outcome | None = None
        self.result: Literal["finished", "stopped", "failed"] | None = None
        self.subscriptions: list[Subscription] = []
        self._digest = 0
        self._digested = 0

    def append(self, text: str, tokens: int) -> None:
        """Add what the engine sent: `tokens` tokens whose text came with the last of them.

        Raises ResumeMismatchError as soon as a resumed attempt is known to differ.
        """
        if tokens > 1:
            self.texts.extend([""] * (tokens - 1))
        self.texts.append(text)
        if self.held and len(self.texts) >= self._resume_tokens:
            self._compare()

    def complete(self) -> None:
        """The engine has ended the text. Raises ResumeMismatchError where the earlier attempt had made more."""
        if self.held:
            raise ResumeMismatchError

    def give_up(self) -> None:
        """Nothing will follow. What the scheduler has not heard of is never sent."""
        self.result = "failed"
        self.held = self.held or self.unheard
        self.unheard = False

    def _compare(self) -> None:
        """Let the resumed attempt go on if its tokens up to there are those of the one before it.

        Engines may put more than one token into a chunk, another time in other places. So the border may lie
        inside the last chunk; then its text is split where the digest fits.
        """
        texts, count = self.texts, self._resume_tokens
        digest = self._digest
        for text in texts[self._digested : count]:
            digest = zlib.crc32(text.encode(), digest)
        last = texts[-1] if len(texts) > count else ""
        split = 0
        while digest != self._resume_digest and split < len(last):
            digest = zlib.crc32(last[split].encode(), digest)
            split += 1
        if digest != self._resume_digest:
            raise ResumeMismatchError
        if split:
            texts[count - 1], texts[-1] = last[:split], last[split:]
        self.held = False

    def digest(self) -> int:
        """CRC-32 over the UTF-8 text of all tokens so far."""
        for text in self.texts[self._digested :]:
            self._digest = zlib.crc32(text.encode(), self._digest)
        self._digested = len(self.texts)
        return self._digest

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self.texts)


class TokenFlow:
    """Sends new tokens of all transcripts to their subscribers, one frame per connection and turn."""

    def __init__(self) -> None:
        self._by_stream: dict[tuple[Connection, int], Subscription] = {}
        self._touched: dict[Transcript, None] = {}
        self._unheard: list[Transcript] = []

    def subscribe(self, transcript: Transcript, connection: Connection, sid: int, first: int, credit: int) -> None:
        subscription = Subscription(transcript, connection, sid, first, credit)
        self._by_stream[connection, sid] = subscription
        transcript.subscriptions.append(subscription)
        self.flush([transcript])

    def grant(self, connection: Connection, sid: int, tokens: int) -> None:
        subscription = self._by_stream.get((connection, sid))
        if subscription is not None:
            subscription.credit += tokens
            self.flush([subscription.transcript])

    def unsubscribe(self, connection: Connection, sid: int) -> None:
        subscription = self._by_stream.pop((connection, sid), None)
        if subscription is not None:
            subscription.transcript.subscriptions.remove(subscription)

    def disconnect(self, connection: Connection) -> None:
        for peer, sid in [key for key in self._by_stream if key[0] is connection]:
            self.unsubscribe(peer, sid)

    def hold_back(self, transcript: Transcript) -> None:
        """Send nothing of a transcript before the scheduler has heard of it."""
        transcript.unheard = True
        self._unheard.append(transcript)

    def heard(self) -> None:
        """The scheduler has been told of all that there is."""
        unheard, self._unheard = [each for each in self._unheard if each.unheard], []
        for transcript in unheard:
            transcript.unheard = False
        self.flush(unheard)

    def touch(self, transcript: Transcript) -> None:
        """Have new tokens sent at the end of this turn, together with those of other transcripts."""
        if not self._touched:
            asyncio.get_running_loop().call_soon(self._flush_touched)
        self._touched[transcript] = None

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, {}
        self.flush(touched)

    def flush(self, transcripts: Iterable[Transcript]) -> None:
        """Send what the subscribers of these transcripts have credit for."""
        frames: dict[Connection, list[tuple[int, int, list[str]]]] = {}
        ended: list[tuple[Subscription, StreamOver]] = []
        for transcript in transcripts:
            if transcript.unheard:
                continue
            texts = transcript.texts
            length = 0 if transcript.held else len(texts)
            for subscription in transcript.subscriptions:
                first = subscription.next
                last = min(length, first + min(subscription.credit, BATCH_TOKENS_MAX))
                if last > first:
                    subscription.next = last
                    subscription.credit -= last - first
                    frames.setdefault(subscription.connection, []).append((subscription.sid, first, texts[first:last]))
                if transcript.result is not None and subscription.next >= length:
                    ended.append((subscription, StreamOver(subscription.sid, transcript.result, transcript.over)))
        for connection, items in frames.items():
            connection.send(TokenBatch(items))
        for subscription, over in ended:
            subscription.connection.send(over)
            self.unsubscribe(subscription.connection, subscription.sid)
