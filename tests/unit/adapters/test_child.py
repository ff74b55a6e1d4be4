"""An engine's process: what it says is kept in bounds and without secrets."""

import os
import sys

import pytest

from adapters.child import STDERR_LINE_CHARS_MAX, STDERR_LINES_MAX, ChildProcess
from adapters.redaction import MASK

KEY = "Zk3x9PqTr7Vw2aB"


async def said(program: str, env: dict[str, str] | None = None, secrets: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What a Python program leaves on stderr."""
    argv = [sys.executable, "-I", "-c", f"import sys, time\nwrite = sys.stderr.write\n{program}"]
    child = ChildProcess(argv, {"PATH": os.environ["PATH"], **(env or {})}, secrets)
    await child.wait()
    return child.stderr_tail


@pytest.mark.req("OC-CTRL-2041")
async def test_known_secrets_are_never_kept() -> None:
    assert await said(f"write('with {KEY}')", secrets=(KEY,)) == (f"with {MASK}",)
    assert await said(f"write('with {KEY}')", {"SOME_TOKEN": KEY}) == (f"with {MASK}",)
    assert await said(f"write('with {KEY}')", {"SOMETHING": KEY}) == (f"with {KEY}",)


@pytest.mark.req("OC-CTRL-2041")
async def test_a_secret_is_found_however_it_arrives() -> None:
    half = len(KEY) // 2
    slowly = f"write('{KEY[:half]}'); sys.stderr.flush(); time.sleep(0.2); write('{KEY[half:]}\\nend')"
    assert await said(slowly, secrets=(KEY,)) == (MASK, "end")
    # Across the end of what is kept of a long line, and in one without an end.
    across = STDERR_LINE_CHARS_MAX - half
    for end in ("\\n", ""):
        (line,) = await said(f"write('x' * {across} + '{KEY}' + 'y' * 100_000 + '{end}')", secrets=(KEY,))
        assert len(line) == STDERR_LINE_CHARS_MAX
        assert line.rstrip("]detcar[") == "x" * across


async def test_only_the_last_lines_are_kept() -> None:
    lines = await said("write(''.join(f'line {n}\\n\\n' for n in range(500)))")
    assert lines == tuple(f"line {n}" for n in range(500 - STDERR_LINES_MAX, 500))


@pytest.mark.req("ORCH-3039")
async def test_a_kill_for_want_of_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 4, 4, 5])
    monkeypatch.setattr("adapters.child.oom_kills", lambda: next(counts))
    for grown in (False, True):
        child = ChildProcess([sys.executable, "-c", "pass"], {})
        await child.wait()
        assert child.oom_killed is grown
