"""Overload on the real system: `python benchmarks/overload_real.py [--quick] [--check] [--json FILE]`.

Ray, HTTP, scheduler and replicas are the real ones; the engine is the deterministic fake, paced at 20 ms
a token, and says so. The same seeded arrivals, 1.5 times what the slots can serve, are played against one
replica set per policy, one set after the other, while the other sets stand idle. A deadline is met when the last
byte of the stream is with the client within `deadline_ms` of its submission; what is refused, dropped or
late is not met. Lengths are known to the engine alone: every task asks for `max_tokens` 256.

Then long batch tasks hold all slots while interactive ones arrive, with hard preemption and without. All
streams that finish, the interrupted ones too, are compared with the undisturbed text byte by byte.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from adapters.testing.fake_llama_server import BUILD_INFO, free_port, write_fake_binary  # noqa: E402
from adapters.testing.fake_model import write_fake_model  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from benchmarks.overhead import wait_for  # noqa: E402
from benchmarks.overload_load import Arrival, Ending, Mix, OpenLoop, check_text, plan  # noqa: E402
from benchmarks.overload_report import Tally, figures, preemption_tallies, table, tallies  # noqa: E402
from contracts import config  # noqa: E402

TOKEN_MS: Final = 20
REPLICAS: Final = 2
SLOTS: Final = 8
OVERLOAD: Final = 1.5
SEED: Final = 20_260_214
#: The queue of the two `_short` policies: what 16 slots start in about 1.5 s, so that waiting stays in the deadlines.
SHORT_QUEUE: Final = 32
#: The simulated case of `scheduling_cases.overload`, four times as fast.
MIXES: Final = (
    Mix("interactive", 0.75, 1000, 2500, tokens_mean=40, tokens_sigma=0.8, tokens_max=256),
    Mix("batch", 0.25, 2000, 5000, tokens_mean=40, tokens_sigma=0.8, tokens_max=256),
)
#: After this long every deadline has passed.
TAIL_S: Final = 8.0
KEYS: Final = {"interactive": "overload-interactive", "batch": "overload-batch"}

#: The hard-preemption case: so many slots on one replica, four batch tasks for each, one interactive task a second.
LONG_SLOTS: Final = 4
LONG_TASKS: Final = 16
LONG_TOKENS: Final = 300
LONG_DEADLINE_MS: Final = 600_000
URGENT_TOKENS: Final = 20
URGENT_DEADLINE_MS: Final = 1200
URGENT_EVERY_MS: Final = 1000
LONG_END_S: Final = 120.0


class Length(msgspec.Struct, frozen=True):
    """How long to measure; what arrives during the warm-up is played and not counted."""

    warm_up_s: float
    counted_s: float
    urgent_tasks: int


FULL: Final = Length(warm_up_s=10, counted_s=60, urgent_tasks=30)
QUICK: Final = Length(warm_up_s=5, counted_s=20, urgent_tasks=12)


def _plain(fairness: str, capacity: int | None = None) -> dict[str, Any]:
    """A policy without deadlines: arrival order, nothing refused for its deadline, the oldest given up first."""
    settings: dict[str, Any] = {
        "admission": {"fairness": {"kind": fairness}, "ordering": "fifo", "on_time_percent_min": 0, "eviction": "lru"},
        "preemption": {"mode": "off"},
    }
    return settings | ({} if capacity is None else {"queue": {"capacity": capacity}})


#: What each policy's pool says about scheduling. `default` says nothing.
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "fifo": _plain("fifo"),
    "fifo_short": _plain("fifo", SHORT_QUEUE),
    "strict": _plain("strict"),
    "strict_short": _plain("strict", SHORT_QUEUE),
    "default": {},
}
#: Without preemption nothing is refused for its deadline either, so that all waits are seen.
PREEMPTION: Final[dict[str, dict[str, Any]]] = {
    "preemption_off": {"admission": {"on_time_percent_min": 0}, "preemption": {"mode": "off"}},
    "preemption_hard": {
        "preemption": {"mode": "hard", "per_task_max": 4, "hard_requirements": {"max_preemptions_per_min": 120}}
    },
}


def configuration(directory: Path) -> config.Config:
    """One pool, and so one replica set, for each policy; all on the same fake engine."""
    model = write_fake_model(directory / "model.gguf")
    binary = write_fake_binary(directory, "--fake-first-token-ms", str(TOKEN_MS), "--fake-token-ms", str(TOKEN_MS))

    def pool(name: str, settings: dict[str, Any], slots: int, replicas: int) -> dict[str, Any]:
        return {
            "id": name,
            "engine": "llamacpp",
            "model": name,
            "model_path": model,
            "slots": slots,
            "replicas": replicas,
            "accelerator": "cpu-dev",
            "engine_options": {"binary": binary},
        } | settings

    pools = [pool(name, settings, SLOTS, REPLICAS) for name, settings in POLICIES.items()]
    pools += [pool(name, settings, LONG_SLOTS, 1) for name, settings in PREEMPTION.items()]
    keys = [
        {"name": name, "tenant": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()
    ]
    return config.Config.model_validate({"pools": pools, "auth": {"keys": keys}})


@contextlib.contextmanager
def running() -> Iterator[int]:
    """The service on a Ray of its own, ready; yields the port of its ingress."""
    from orchestrator.app import local_service

    with contextlib.ExitStack() as stack:
        # Short: Ray's socket paths below it must stay under 108 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llo-", ignore_cleanup_errors=True)))
        os.environ["RAY_TMPDIR"] = str(directory)
        stack.callback(os.environ.pop, "RAY_TMPDIR")
        service = stack.enter_context(local_service(configuration(directory), port=free_port()))
        wait_for(f"{service.url}/readyz")
        yield int(service.url.rpartition(":")[2])


def overload_arrivals(length: Length) -> list[Arrival]:
    """So many that they ask for `OVERLOAD` times the slots' time, as far as the drawn lengths go."""
    duration_s = length.warm_up_s + length.counted_s
    sample = plan(MIXES, 1000.0, 20.0, SEED)
    mean_s = sum((arrival.tokens + 1) * TOKEN_MS for arrival in sample) / len(sample) / 1000
    return plan(MIXES, OVERLOAD * SLOTS * REPLICAS / mean_s, duration_s, SEED)


def preemption_arrivals(length: Length) -> list[Arrival]:
    """Long batch tasks at once; then, at even distances, urgent interactive ones."""
    long = [Arrival(number, 0.0, "batch", LONG_DEADLINE_MS, LONG_TOKENS, LONG_TOKENS) for number in range(LONG_TASKS)]
    urgent = [
        Arrival(
            LONG_TASKS + n, (n + 1.5) * URGENT_EVERY_MS, "interactive", URGENT_DEADLINE_MS, URGENT_TOKENS, URGENT_TOKENS
        )
        for n in range(length.urgent_tasks)
    ]
    return long + urgent


def play(port: int, model: str, arrivals: list[Arrival], tail_s: float) -> list[Ending]:
    """One policy's run; texts are compared when it is over."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        endings = runner.run(OpenLoop(port, model, KEYS).play(arrivals, tail_s))
    for ending in endings:
        check_text(ending)
    print(f"{model}: done", file=sys.stderr, flush=True)
    return endings


def measure(length: Length) -> tuple[list[Tally], list[str]]:
    """All policies in turn, then preemption; and what went wrong in any stream."""
    lines: list[Tally] = []
    endings: dict[str, list[Ending]] = {}
    with running() as port:
        arrivals = overload_arrivals(length)
        for name in POLICIES:
            endings[name] = play(port, name, arrivals, TAIL_S)
            lines += tallies(name, endings[name], length.warm_up_s, length.counted_s)
        urgent = preemption_arrivals(length)
        for name in PREEMPTION:
            endings[name] = play(port, name, urgent, LONG_END_S)
            lines += preemption_tallies(name, endings[name])
    wrong = [
        f"{name}: task {ending.arrival.number}: {ending.wrong}"
        for name, each in endings.items()
        for ending in each
        if ending.wrong
    ]
    return lines, wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with limits.yaml; exit 1 where a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write tallies and figures there")
    parser.add_argument("--quick", action="store_true", help="20 s for each policy")
    asked = parser.parse_args(arguments)
    length = QUICK if asked.quick else FULL
    load_before, begun = os.getloadavg()[0], time.monotonic()
    lines, wrong = measure(length)
    reached = figures(lines)
    missed = shortfalls(reached, load_limits("overload_real")) if asked.check else []
    setting = {
        "engine": BUILD_INFO,
        "token_ms": TOKEN_MS,
        "slots": SLOTS * REPLICAS,
        "overload": OVERLOAD,
        "counted_s": length.counted_s,
        "cpus": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(table(lines))
    print(", ".join(f"{name} {value:g}" for name, value in reached.items()))
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    if asked.json:
        report = {"benchmark": "overload_real", "setting": setting, "figures": reached, "rows": lines}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(report | {"missed": missed, "wrong": wrong})))
    for line in (*(f"broken: {line}" for line in wrong[:20]), *(f"missed: {line}" for line in missed)):
        print(line)
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
