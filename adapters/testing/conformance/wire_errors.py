"""Errors of the engine, in every place where one can come: typed, and retriable where trying again can help."""

from typing import Final

from adapters.testing.conformance.cases import NotConformingError, expect
from adapters.testing.conformance.dialect import Trouble
from adapters.testing.conformance.outcome import Outcome
from adapters.testing.conformance.peer import Close
from adapters.testing.conformance.stage import END, PIECES, WireStage, wire
from adapters.testing.peers.http import Answer, answer_bytes, streamed

#: What each trouble is to a client, and whether the same task can be sent again (ORCH-3025).
_MEANING: Final[dict[Trouble, tuple[tuple[str, ...], bool | None]]] = {
    "invalid": (("INVALID_PARAMS",), False),
    "too_long": (("INVALID_PARAMS",), False),
    # The key is this side's affair, and no other parameters would help.
    "unauthorized": (("INTERNAL", "POOL_UNREADY"), None),
    "overloaded": (("REPLICA_EXHAUSTED", "POOL_UNREADY"), True),
    "not_ready": (("POOL_UNREADY",), True),
    "internal": (("INTERNAL", "WORKER_RESET"), True),
}
#: The same by HTTP status alone, for refusals whose body says nothing.
_BY_STATUS: Final[dict[int, tuple[tuple[str, ...], bool | None]]] = {
    400: (("INVALID_PARAMS", "WORKER_RESET"), None),
    401: _MEANING["unauthorized"],
    403: _MEANING["unauthorized"],
    404: (("INVALID_PARAMS", "INTERNAL", "POOL_UNREADY", "WORKER_RESET"), None),
    422: (("INVALID_PARAMS",), False),
    429: (("REPLICA_EXHAUSTED", "POOL_UNREADY", "INTERNAL"), True),
    500: _MEANING["internal"],
    502: (("INTERNAL", "WORKER_RESET", "POOL_UNREADY"), True),
    503: (("POOL_UNREADY", "REPLICA_EXHAUSTED"), True),
}
_HUGE_BYTES: Final = 3 * 1024 * 1024


@wire.case()
async def refusals(stage: WireStage) -> None:
    """The engine's own refusals, each as what it is."""
    for trouble, (codes, retriable) in _MEANING.items():
        answer = stage.dialect.refusal(trouble)
        if answer is not None:
            outcome = await stage.play(answer_bytes(answer))
            _expect_failed(outcome, codes, retriable, f"{trouble}, HTTP {answer.status}")
    expect(stage.dialect.refusal("invalid"), "a dialect must say how the engine refuses bad parameters")


@wire.case()
async def refusals_that_say_nothing(stage: WireStage) -> None:
    """Bodies that are empty, no JSON, JSON of another shape or huge: the status decides."""
    bodies = (b"", b"<html>no</html>", b"{}", b"[]", b"null", b'{"error":7}', b'{"error":{"message":{}}}', b"\xff\xfe")
    for status, (codes, retriable) in _BY_STATUS.items():
        for body in (*bodies, b"x" * _HUGE_BYTES, b'{"error":"' + b"x" * 100_000 + b'"}'):
            outcome = await stage.play(answer_bytes(Answer(status, body, "text/html")))
            _expect_failed(outcome, codes, retriable, f"HTTP {status} with {body[:30]!r} of {len(body)} bytes")


@wire.case()
async def refusals_that_break_off(stage: WireStage) -> None:
    """A refusal whose body never comes whole."""
    answer = stage.dialect.refusal("internal") or Answer(500, b"{}")
    data = answer_bytes(answer)
    (await stage.play(data[:-1], Close())).failed(["WORKER_RESET", "INTERNAL"], retriable=True)


@wire.case()
async def redirects(stage: WireStage) -> None:
    """An engine that points elsewhere is not followed."""
    for status in (204, 302, 307):
        outcome = await stage.play(
            f"HTTP/1.1 {status} Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        expect(outcome.error is not None, f"HTTP {status} gave {outcome.told()}")


@wire.case("in_band_errors")
async def errors_amid_a_stream(stage: WireStage) -> None:
    """An error in a frame of a stream with status 200 ends it as what it is, at once or after some text."""
    told = 0
    for trouble, (codes, retriable) in _MEANING.items():
        payload = stage.dialect.in_band(trouble)
        if payload is None:
            continue
        told += 1
        for pieces in ((), PIECES):
            frames = [*stage.dialect.body(pieces, None), stage.dialect.frame(payload)]
            outcome = await stage.play(streamed(frames, stage.dialect.content_type))
            where = f"{trouble} in band after {len(pieces)} frames"
            expect(outcome.text == "".join(piece.text for piece in pieces), f"{where}: {outcome.told()}")
            _expect_failed(outcome, codes, retriable, where)
    expect(told, "a dialect with `in_band_errors` must say how one looks")


@wire.case("in_band_errors")
async def an_error_before_the_end(stage: WireStage) -> None:
    """An error is not forgotten because an end follows it."""
    payload = stage.dialect.in_band("internal")
    assert payload is not None, "a dialect with `in_band_errors` says how an internal one looks"
    frames = [stage.dialect.frame(payload), *stage.dialect.body(PIECES, END)]
    outcome = await stage.play(streamed(frames, stage.dialect.content_type))
    _expect_failed(outcome, *_MEANING["internal"], "an error, then a whole stream")


def _expect_failed(outcome: Outcome, codes: tuple[str, ...], retriable: bool | None, where: str) -> None:
    try:
        outcome.failed(codes, retriable)
    except NotConformingError as error:
        raise NotConformingError(f"{where}: {error}") from error
