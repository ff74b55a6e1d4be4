"""`python -m adapters.testing.conformance`: run the suite and print what it found.

    --engine NAME   an engine to run, may be repeated (default: all, without those that take minutes to start)
    --kind KIND     wire or behaviour (default: both)
    --case WORD     only cases with WORD in their name

Exits with 1 when a case failed.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from adapters.testing.conformance.engines import DIALECTS, SLOW_SUBJECTS, SUBJECTS
from adapters.testing.conformance.report import Result, table
from adapters.testing.conformance.runner import BEHAVIOUR_CASES, WIRE_CASES, run_behaviour, run_wire
from adapters.testing.conformance.subject import Bench


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    usual = sorted({*DIALECTS, *SUBJECTS})
    known = sorted({*usual, *SLOW_SUBJECTS})
    parser = argparse.ArgumentParser("conformance", description="Run the conformance suite of the engine adapters.")
    parser.add_argument("--engine", action="append", choices=known, help="may be repeated; default: all but slow ones")
    parser.add_argument("--kind", choices=("wire", "behaviour"), help="default: both")
    parser.add_argument("--case", default="", metavar="WORD", help="only cases with WORD in their name")
    arguments = parser.parse_args(argv)
    arguments.slow = arguments.engine is not None
    arguments.engine = arguments.engine or usual
    return arguments


async def run(engines: Sequence[str], kind: str | None = None, word: str = "", *, slow: bool = True) -> list[Result]:
    """The results of all cases asked for, told on stderr as they come."""
    results: list[Result] = []
    # Slow ones are there for those who name them.
    subjects = {**SUBJECTS, **(SLOW_SUBJECTS if slow else {})}

    def add(result: Result) -> None:
        results.append(result)
        why = f": {result.reason}" if result.verdict == "failed" else ""
        sys.stderr.write(f"{result.engine}: {result.case}: {result.verdict} ({result.wall_ms:.0f} ms){why}\n")

    for engine in engines:
        if engine in DIALECTS and kind != "behaviour":
            dialect = DIALECTS[engine]()
            for case in WIRE_CASES:
                if word in case.name:
                    add(await run_wire(dialect, case))
        if engine in subjects and kind != "wire":
            bench = Bench(subjects[engine]())
            try:
                for one in BEHAVIOUR_CASES:
                    if word in one.name:
                        add(await run_behaviour(bench, one))
            finally:
                await bench.close()
    return results


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    results = asyncio.run(run(arguments.engine, arguments.kind, arguments.case, slow=arguments.slow))
    sys.stdout.write(f"{table(results)}\n")
    return 1 if not results or any(result.verdict == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
