"""What ingress and replica say to each other: subscriptions, and the tokens that they bring."""

from typing import Literal

from contracts.base import Frame
from contracts.tasks import Outcome


class Subscribe(Frame, frozen=True, gc=False):
    """Send the tokens of an attempt from `first` on, at most `credit` of them until more is granted."""

    sid: int
    task_id: str
    attempt: int
    first: int
    credit: int


class Credit(Frame, frozen=True, gc=False):
    sid: int
    tokens: int


class Unsubscribe(Frame, frozen=True, gc=False):
    sid: int


class TokenBatch(Frame, frozen=True, gc=False):
    """All tokens that one engine step made for this connection: (sid, first index, texts)."""

    items: list[tuple[int, int, list[str]]]


class StreamOver(Frame, frozen=True, gc=False):
    """No token of the subscription will follow. Only `finished` is an outcome by itself.

    `unknown`: the replica holds no such attempt (any more).
    """

    sid: int
    result: Literal["finished", "stopped", "failed", "unknown"]
    outcome: Outcome | None = None
