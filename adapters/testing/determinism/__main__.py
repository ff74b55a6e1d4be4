"""`python -m adapters.testing.determinism`: prove that engines are byte-exact here, on this machine's hardware."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from adapters import create_adapter
from adapters.testing.determinism.goldens import GoldenError
from adapters.testing.determinism.scenarios import SCENARIOS
from adapters.testing.determinism.subjects import SUBJECTS, Changes, specs_of
from adapters.testing.determinism.suite import Report, examine
from adapters.testing.determinism.summary import summary, totals
from adapters.testing.determinism.tasks import PLAN_DEFAULT, PLAN_FULL, PROMPTS, Plan
from contracts.engine import EngineError

_OUT: Final = Path(".llorch") / "determinism"
_RED, _UNUSABLE = 1, 2


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what it lacks is the engine's default."""
    parser = argparse.ArgumentParser("python -m adapters.testing.determinism", description=__doc__, allow_abbrev=False)
    parser.add_argument("--engine", action="append", help=f"may be repeated; with a default: {', '.join(SUBJECTS)}")
    parser.add_argument("--full", action="store_true", help="every seed with every prompt everywhere, longer texts")
    parser.add_argument("--scenario", action="append", default=[], choices=list(SCENARIOS), help="only these")
    parser.add_argument("--prompt", action="append", default=[], choices=list(PROMPTS), help="only these")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="only the first N seeds")
    parser.add_argument("--out", type=Path, default=_OUT, help="where differences are written")
    parser.add_argument("--repin", default="", metavar="REASON", help="replace the goldens, and say why")
    parser.add_argument("--model", default="")
    parser.add_argument("--model-path", default="")
    parser.add_argument("--binary", default="")
    parser.add_argument("--ctx", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--args", default="", help="the pool's engine arguments, as one quoted word")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--batch-invariant", choices=("yes", "no"), help="as a pool's configuration declares it")
    parser.add_argument("--accelerator", default="", choices=("gpu", "cpu-dev"))
    parser.add_argument("--devices", action="append", default=[], help="GPU indices, by comma; given twice: A's, B's")
    parser.add_argument("--endpoint", action="append", default=[], help="attach instead of launching; twice: A's, B's")
    parser.add_argument("--api-key-env", default="", metavar="NAME")
    return parser.parse_args(argv)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    whole = PLAN_FULL if arguments.full else PLAN_DEFAULT
    return Plan(
        seeds=whole.seeds[: arguments.seeds or None],
        prompts=tuple(arguments.prompt) or whole.prompts,
        scenarios=tuple(arguments.scenario),
        tokens_min=whole.tokens_min,
        tokens_max=whole.tokens_max,
        crossed=whole.crossed,
        continued=whole.continued,
        kills=whole.kills,
        timeout_s=whole.timeout_s,
    )


def changes_of(arguments: argparse.Namespace) -> Changes:
    """What the command line changes of an engine's default."""
    invariant = {None: None, "yes": True, "no": False}[arguments.batch_invariant]
    return Changes(
        model=arguments.model,
        model_path=arguments.model_path,
        binary=arguments.binary,
        ctx=arguments.ctx,
        slots=arguments.slots,
        args=tuple(shlex.split(arguments.args)),
        env=tuple((name, value) for name, _, value in (given.partition("=") for given in arguments.env)),
        batch_invariant=invariant,
        accelerator=arguments.accelerator,
        devices=tuple(tuple(given.split(",")) for given in arguments.devices),
        endpoints=tuple(arguments.endpoint),
        api_key_env=arguments.api_key_env,
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _run(engines: Sequence[str], arguments: argparse.Namespace) -> list[Report]:
    reports = []
    for engine in engines:
        report = await examine(
            create_adapter,
            specs_of(engine, changes_of(arguments)),
            plan_of(arguments),
            out=arguments.out / engine,
            repin=arguments.repin,
            progress=lambda name, engine=engine: _say(f"{engine}: {name} ..."),  # type: ignore[misc]
        )
        _say(summary(report))
        reports.append(report)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """0: byte-exact; 1: not; 2: it could not be found out."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            reports = runner.run(_run(arguments.engine or ["llamacpp"], arguments))
    except (EngineError, GoldenError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return _UNUSABLE
    _say(totals(reports))
    return 0 if all(report.green for report in reports) else _RED


if __name__ == "__main__":
    sys.exit(main())
