"""The benchmark's own check finds every way in which a stream can be wrong."""

from collections.abc import Callable

import msgspec
import pytest

from adapters.testing.fake_completion import Completion
from benchmarks.streams import Expected
from contracts.api import End, Metrics
from contracts.errors import ErrorInfo
from contracts.gateway import Tokens
from orchestrator.ingress.sse import format_event

PROMPT, SEED, TOKENS = "a prompt", 3, 6
EXPECTED = Expected(PROMPT, SEED, TOKENS)
END = format_event(End(tokens_out=TOKENS, decode_ms=1, finish_reason="length", tokens_in=2))
ERROR = format_event(ErrorInfo("INTERNAL", "broke"))


def direct_stream() -> bytes:
    completion = Completion({"prompt": PROMPT, "seed": SEED, "n_predict": TOKENS}, 2, 2048)
    return completion.frames(TOKENS)


def texts() -> list[str]:
    frames = [msgspec.json.decode(frame[6:]) for frame in direct_stream().split(b"\n\n") if frame]
    return [frame["content"] for frame in frames[:-1]]


def service_stream() -> bytes:
    words = texts()
    return b"".join(
        [
            format_event(Metrics(queue_depth=0)),
            format_event(Tokens(0, words[:2])),
            b": keep-alive\n\n",
            format_event(Tokens(2, words[2:])),
            END,
        ]
    )


def test_what_engine_and_ingress_write_is_right() -> None:
    assert EXPECTED.direct_violation(direct_stream()) == ""
    assert EXPECTED.service_violation(service_stream()) == ""


def _swap(stream: bytes) -> bytes:
    events = stream.split(b"\n\n")
    events[1], events[2] = events[2], events[1]
    return b"\n\n".join(events)


def _twice(stream: bytes) -> bytes:
    events = stream.split(b"\n\n")
    return b"\n\n".join([*events[:2], events[1], *events[2:]])


def _without_one(stream: bytes) -> bytes:
    events = stream.split(b"\n\n")
    return b"\n\n".join([*events[:2], *events[3:]])


DAMAGES: list[Callable[[bytes], bytes]] = [
    _swap,
    _twice,
    _without_one,
    lambda stream: stream[:-1],
    lambda stream: stream[: stream.rindex(b"\n\n", 0, -1) + 2],
    lambda stream: stream.replace(b" w", b" v", 1),
    lambda stream: stream + stream,
    lambda _stream: b"",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: Callable[[bytes], bytes]) -> None:
    assert EXPECTED.direct_violation(damage(direct_stream()))
    assert EXPECTED.service_violation(damage(service_stream()))


@pytest.mark.parametrize("change", [(END, END + END), (END, ERROR), (END, END + b"event: metrics\ndata: {}\n\n")])
def test_the_end_is_one_and_last_and_good(change: tuple[bytes, bytes]) -> None:
    assert EXPECTED.service_violation(service_stream().replace(*change))


def test_another_seed_is_another_stream() -> None:
    assert Expected(PROMPT, SEED + 1, TOKENS).direct_violation(direct_stream())
