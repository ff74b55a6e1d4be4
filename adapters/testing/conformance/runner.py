"""Running cases: each in bounded time, on a stage that the case before it has not worn out."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from adapters.testing.conformance import (
    behaviour_cancel,
    behaviour_process,
    behaviour_text,
    behaviour_vectors,
    wire_cancel,
    wire_control,
    wire_ends,
    wire_errors,
    wire_framing,
)
from adapters.testing.conformance.cases import Case, NotConformingError
from adapters.testing.conformance.dialect import Dialect
from adapters.testing.conformance.report import Result
from adapters.testing.conformance.stage import WireStage, wire
from adapters.testing.conformance.subject import Bench, behaviour
from contracts.engine import EngineError

CASE_TIMEOUT_S: Final = 100.0
#: Imported for the cases that they enter into the book.
WIRE_MODULES: Final = (wire_framing, wire_ends, wire_errors, wire_cancel, wire_control)
BEHAVIOUR_MODULES: Final = (behaviour_text, behaviour_cancel, behaviour_process, behaviour_vectors)
WIRE_CASES: Final = tuple(wire.cases)
BEHAVIOUR_CASES: Final = tuple(behaviour.cases)

S = TypeVar("S")


async def run_wire(dialect: Dialect, case: Case[WireStage]) -> Result:
    """One wire case of one dialect, on a peer and an adapter of its own."""
    stage = WireStage(dialect)

    async def on_stage() -> None:
        try:
            await stage.open()
            await case.run(stage)
        finally:
            await stage.close()

    return await judged(f"{dialect.engine} (scripted wire)", case, dialect.lacks, on_stage)


async def run_behaviour(bench: Bench, case: Case[Bench]) -> Result:
    """One behaviour case on a subject that runs already or is launched for it; the caller closes the bench."""

    async def on_bench() -> None:
        await bench.ready()
        await case.run(bench)

    subject = bench.subject
    return await judged(subject.name, case, subject.lacks, on_bench, timeout_s=subject.case_timeout_s)


async def judged(
    engine: str,
    case: Case[S],
    lacks: Mapping[str, str],
    run: Callable[[], Awaitable[None]],
    *,
    timeout_s: float = CASE_TIMEOUT_S,
) -> Result:
    """The result of `run`, or why the case does not apply."""
    missing = [lacks[need] for need in case.needs if need in lacks]
    if missing:
        return Result(engine, case.name, "not applicable", "; ".join(missing))
    started_s = time.monotonic()
    reason = ""
    try:
        async with asyncio.timeout(timeout_s):
            await run()
    except NotConformingError as error:
        reason = str(error) or "not conforming"
    except EngineError as error:
        reason = f"an EngineError where none was expected: {error}"
    except TimeoutError:
        reason = f"no end after {timeout_s:.0f} s"
    except Exception as error:  # whatever an adapter raises is a finding, and no end of the run
        reason = f"{type(error).__name__}: {error}"
    wall_ms = (time.monotonic() - started_s) * 1000
    return Result(engine, case.name, "failed" if reason else "passed", reason[:2000], wall_ms)
