"""The conformance suite's own parts: verdicts, the table, the command line, the peer's steps, who listens where."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from adapters.testing.conformance import __main__ as cli
from adapters.testing.conformance.cases import Case, CaseBook, NotConformingError, expect
from adapters.testing.conformance.dialects.mock import MockDialect
from adapters.testing.conformance.engines import DIALECTS, SLOW_SUBJECTS, SUBJECTS
from adapters.testing.conformance.listeners import listeners
from adapters.testing.conformance.outcome import Outcome
from adapters.testing.conformance.peer import Close, Reset, WirePeer
from adapters.testing.conformance.report import Result, table
from adapters.testing.conformance.runner import BEHAVIOUR_CASES, WIRE_CASES, judged
from contracts.api import Engine
from contracts.engine import Chunk, EngineError, Finish
from contracts.errors import ErrorInfo


async def nothing(_: None) -> None:
    return


async def test_a_case_that_needs_what_is_lacking_does_not_apply_and_says_why() -> None:
    case: Case[None] = Case("wire.x", "about", ("keys", "metrics"), nothing)
    result = await judged("e", case, {"keys": "it has none"}, lambda: nothing(None))
    assert (result.verdict, result.reason) == ("not applicable", "it has none")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotConformingError("the reason"), "the reason"),
        (EngineError(ErrorInfo("INTERNAL", "broke")), "where none was expected"),
        (KeyError("x"), "KeyError"),
        (asyncio.IncompleteReadError(b"", 1), "IncompleteReadError"),
    ],
)
async def test_whatever_is_raised_is_a_failure_with_a_reason(error: Exception, reason: str) -> None:
    async def run() -> None:
        raise error

    result = await judged("e", Case("wire.x", "about", (), nothing), {}, run)
    assert result.verdict == "failed"
    assert reason in result.reason


def test_the_table_counts_and_names() -> None:
    results = [
        Result("one", "wire.a", "passed", wall_ms=1500),
        Result("one", "wire.b", "failed", "it did not"),
        Result("another", "wire.a", "not applicable", "it has none"),
    ]
    text = table(results)
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["one", "1", "1", "0", "2", "1.5"],
        ["another", "0", "0", "1", "1", "0.0"],
    ]
    assert "another: wire.a: it has none" in text
    assert "one: wire.b: it did not" in text
    assert text.endswith("3 cases with 2 engines: 1 passed, 1 failed, 1 not applicable")


def test_every_engine_of_the_api_has_a_dialect_and_every_case_says_what_it_shows() -> None:
    assert set(Engine.__args__) <= set(DIALECTS)
    for case in (*WIRE_CASES, *BEHAVIOUR_CASES):
        assert case.about.endswith((".", ")"))
    names = [case.name for case in (*WIRE_CASES, *BEHAVIOUR_CASES)]
    assert len(names) == len(set(names))
    # A capability that no case needs, or nobody describes, is a slip of the pen.
    needs = {need for case in (*WIRE_CASES, *BEHAVIOUR_CASES) for need in case.needs}
    for dialect in DIALECTS.values():
        assert set(dialect().lacks) <= needs


def test_the_command_line_leaves_slow_engines_to_those_who_name_them() -> None:
    usual = cli.parse_arguments([])
    assert not usual.slow
    assert set(usual.engine) == {*DIALECTS, *SUBJECTS}
    named = cli.parse_arguments(["--engine", next(iter(SLOW_SUBJECTS))])
    assert named.slow
    with pytest.raises(SystemExit):
        cli.parse_arguments(["--engine", "unheard-of"])


def test_the_command_line_fails_without_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--engine", "mock", "--kind", "wire", "--case", "no such case"]) == 1
    assert cli.main(["--engine", "mock", "--kind", "wire", "--case", "wire.whole"]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out


def test_a_book_keeps_its_cases_in_order() -> None:
    book: CaseBook[None] = CaseBook("kind")

    @book.case("a")
    async def second(_: None) -> None:
        """Shows nothing."""

    assert [(case.name, case.about, case.needs) for case in book.cases] == [("kind.second", "Shows nothing.", ("a",))]
    with pytest.raises(NotConformingError, match="why"):
        expect(False, "why")


def test_an_outcome_keeps_to_the_protocol() -> None:
    outcome = Outcome()
    outcome.add(Chunk("a", 2))
    with pytest.raises(NotConformingError, match="counts no token"):
        outcome.add(Chunk("b", 0))
    outcome.add(Finish("stop", tokens_in=1))
    with pytest.raises(NotConformingError, match="after the Finish"):
        outcome.add(Chunk("c"))
    with pytest.raises(NotConformingError, match="expected INTERNAL"):
        outcome.failed(["INTERNAL"], retriable=True)
    outcome.error = EngineError(ErrorInfo("INTERNAL", "m", engine="e", retriable=False))
    with pytest.raises(NotConformingError, match="retriable=False"):
        outcome.failed(["INTERNAL"], retriable=True)
    outcome.failed(["INTERNAL"], retriable=False)


async def test_the_peer_plays_its_steps_and_resets() -> None:
    peer = WirePeer(MockDialect())
    await peer.listen()
    try:
        port = int(peer.endpoint.rpartition(":")[2])
        for scene, expected in (((b"one", b"two", Close()), b"onetwo"), ((b"x", Reset()), None)):
            peer.scene = scene
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /generate HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            if expected is None:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == expected
            writer.close()
    finally:
        await peer.close()


def test_listening_sockets_are_found(tmp_path: Path) -> None:
    with socket.socket() as port, socket.socket(socket.AF_UNIX) as path, socket.socket() as silent:
        port.bind(("127.0.0.1", 0))
        port.listen()
        path.bind(str(tmp_path / "x.sock"))
        path.listen()
        silent.bind(("127.0.0.1", 0))
        found = listeners(os.getpid())
        assert any(one.port == port.getsockname()[1] and one.is_loopback for one in found)
        assert any(one.path == str(tmp_path / "x.sock") for one in found)
        assert not any(one.port == silent.getsockname()[1] for one in found)
        with socket.socket() as everywhere:
            everywhere.bind(("0.0.0.0", 0))
            everywhere.listen()
            assert any(
                one.port == everywhere.getsockname()[1] and not one.is_loopback for one in listeners(os.getpid())
            )
