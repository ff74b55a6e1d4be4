"""One stream's subscription to the attempt that it follows.

A cut connection heals by itself: the same attempt is subscribed to again, from where its tokens ended, until the
scheduler tells of another attempt or of the end. A later attempt is subscribed to from its first token on; what it
makes again of what was delivered is compared and held back (ORCH-3045). The same is done with the first attempt of a
stream that a client took up in the middle (`Last-Event-ID`): what comes before counts as delivered, so that later
attempts are aligned by the whole text, wherever they have put it into tokens.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from contracts import messages as wire
from contracts.errors import ErrorInfo
from orchestrator.cluster.delivered import Delivered, Diverged
from orchestrator.cluster.relink import Backoff

#: Tokens that may be under way to one stream; half of it used up, more is granted.
CREDIT_TOKENS: Final = 1024
#: The same of embeddings, each of which may take hundreds of kilobytes.
CREDIT_RESULTS: Final = 16
#: How soon an attempt is subscribed to again, and how long at most between two tries.
AGAIN_MIN_S: Final = 0.1
AGAIN_MAX_S: Final = 1.0


class TokenSource(Protocol):
    """Subscriptions to attempts, wherever they run."""

    def subscribe(self, reader: "Following", started: wire.TaskStarted, first: int, credit: int) -> int:
        """Subscribe to an attempt's tokens and return the subscription's id; never waits for the connection."""

    def grant(self, sid: int, tokens: int) -> None:
        """Let the replica send more."""

    def unsubscribe(self, sid: int) -> None:
        """Stop a subscription."""

    def diverged(self, task_id: str, attempt: int) -> None:
        """Tell the scheduler that an attempt makes other tokens than were delivered."""


class Following:
    """The tokens of one attempt after the other, from index `first` on. `wake` is called when there is something new.

    `result` is how the followed attempt ended, as its replica told; `failure` that its text differs.
    """

    def __init__(self, source: TokenSource, first: int, wake: Callable[[], None]) -> None:
        self.attempt = 0
        self.result: wire.StreamOver | None = None
        self.failure: ErrorInfo | None = None
        self.delivered = Delivered()
        self.credit = CREDIT_TOKENS
        self._source = source
        self._first = first
        self._received = 0
        self._wake = wake
        self._started: wire.TaskStarted | None = None
        self._sid = 0
        self._texts: list[str] = []
        self._consumed = 0
        self._limit: int | None = None
        self._backoff = Backoff(AGAIN_MIN_S, AGAIN_MAX_S)
        self._again: asyncio.TimerHandle | None = None

    @property
    def is_subscribed(self) -> bool:
        """Whether tokens may still come from a replica."""
        return self._sid != 0 and self.result is None

    # ----------------------------------------------------------------------- attempts

    def enter(self, started: wire.TaskStarted, *, subscribe: bool) -> None:
        """Go over to a later attempt."""
        self.leave()
        self._started = started
        self.attempt = started.attempt
        self.result = None
        self._received = 0
        self._backoff.reset()
        self.delivered.begin()
        if subscribe:
            self._subscribe()

    def told_again(self, started: wire.TaskStarted) -> None:
        """The followed attempt runs, says the scheduler: no need to wait for the next try, perhaps elsewhere."""
        self._started = started
        if self._again is not None:
            self._subscribe()

    def leave(self) -> None:
        """Follow no attempt any more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._sid:
            self._source.unsubscribe(self._sid)
            self._sid = 0

    def end_at(self, tokens_out: int, *, at_once: bool) -> None:
        """The task has ended with so many tokens: no more are taken, `at_once` none of those that wait either."""
        self._limit = tokens_out
        if self._again is not None:
            self.leave()
        if at_once:
            given = self.delivered.count - len(self._texts)
            del self._texts[max(0, tokens_out - given) :]

    def _subscribe(self) -> None:
        assert self._started is not None
        self.leave()
        self._consumed = 0
        credit = max(0, self.credit - len(self._texts))
        self._sid = self._source.subscribe(self, self._started, self._received, credit)

    # ------------------------------------------------------------------ told by the source

    def tokens(self, sid: int, first: int, texts: list[str]) -> None:
        """Tokens of a subscription; those of an earlier one are fenced off."""
        if sid != self._sid or first != self._received:
            return
        if self._limit is not None:
            texts = texts[: max(0, self._limit - first)]
        self._received += len(texts)
        self._backoff.reset()
        before = len(self._texts)
        self.take_in(texts)
        self._use(len(texts) - (len(self._texts) - before))

    def over(self, message: wire.StreamOver) -> None:
        """No token of a subscription will follow; where its connection is cut or it is not known, it is made again."""
        if message.sid != self._sid:
            return
        if message.result == "unknown":
            self.leave()
            if self._limit is None:
                self._again = asyncio.get_running_loop().call_later(self._backoff.next_s(), self._subscribe)
        else:
            self.result = message
            if message.result == "finished":
                self.complete()
        self._wake()

    def take_in(self, texts: list[str]) -> None:
        """Compare the followed attempt's next tokens, and keep those that the client lacks."""
        try:
            self._keep(self.delivered.feed(texts))
        except Diverged:
            self._fail()
        self._wake()

    def complete(self) -> None:
        """The followed attempt has made all its tokens."""
        try:
            self._keep(self.delivered.complete())
        except Diverged:
            self._fail()

    def _keep(self, texts: list[str]) -> None:
        """The last of what counts as delivered; the client has those before its own first one."""
        self._texts += texts[max(0, self._first - (self.delivered.count - len(texts))) :]

    def _fail(self) -> None:
        started = self._started
        assert started is not None  # nothing is delivered before, so nothing differs
        message = (
            f"determinism: attempt {started.attempt}, which took up this task, makes other tokens than were delivered;"
            " none of them was sent. Submit the task again under a new task_id"
        )
        self.failure = ErrorInfo(
            "WORKER_RESET", message, engine=started.replica.engine, pool_id=started.replica.pool_id, retriable=False
        )
        self.leave()
        if started.determinism == "strict":
            self._source.diverged(started.task_id, started.attempt)

    # ----------------------------------------------------------------- read by the stream

    def take(self) -> list[str]:
        """The tokens that the client lacks and that are here."""
        texts, self._texts = self._texts, []
        if texts:
            self._use(len(texts))
        return texts

    def _use(self, tokens: int) -> None:
        self._consumed += tokens
        if self._consumed * 2 >= self.credit and self.is_subscribed:
            self._source.grant(self._sid, self._consumed)
            self._consumed = 0
