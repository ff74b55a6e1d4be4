"""What durable admission costs clients: `python benchmarks/durability.py [--check] [--json FILE] [--rounds N]`.

Two whole services run side by side, alike but for `storage.journal`. 64 connections submit tasks to one, then to the
other, round by round in turn, so that both meet the same machine; their engines are stuck, so tasks are queued and
nothing else runs. What is counted is the answer to `POST /v1/tasks`: with the journal it is sent when the task is on
disk. The ratio is the median over neighbours. Disks differ: `--folder` names the one to keep the journal on.
"""

import argparse
import contextlib
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from adapters.testing.fake_llama_server import free_port, write_fake_binary  # noqa: E402
from adapters.testing.fake_model import write_fake_model  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from benchmarks.load import Job, Result  # noqa: E402
from benchmarks.overhead import CTX, ENGINES, KEY, QUEUE_CAPACITY, TOKENS, Driver, wait_for  # noqa: E402
from contracts import config  # noqa: E402

CONNECTIONS: Final = 64
ADMISSIONS: Final = 4000
ROUNDS: Final = 5
STOP_TIMEOUT_S: Final = 60.0
MODEL: Final = "fake-held"


def configuration(directory: Path, journal: bool) -> config.Config:
    """One pool whose engine is stuck."""
    pool = config.PoolConfig(
        id=MODEL,
        engine="llamacpp",
        model=MODEL,
        model_path=write_fake_model(directory / "model.gguf"),
        ctx=CTX,
        slots=1,
        accelerator="cpu-dev",
        queue=config.QueueConfig(capacity=QUEUE_CAPACITY),
        timeouts=config.TimeoutConfig(wall_ms=3_600_000, idle_ms=3_600_000),
        engine_options=config.EngineOptions(binary=write_fake_binary(directory, *ENGINES["held"])),
    )
    key = config.KeyConfig(name="bench", tenant="bench", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    return config.Config(
        pools=[pool],
        auth=config.AuthConfig(keys=[key]),
        storage=config.StorageConfig(journal=journal, data_dir=directory / "data"),
    )


@contextlib.contextmanager
def service(directory: Path, journal: bool) -> Iterator[int]:
    """`llorch run` on a port of its own, until the end of the block."""
    directory.mkdir()
    file, port = directory / "llorch.yaml", free_port()
    file.write_text(configuration(directory, journal).model_dump_json(exclude_unset=True))  # JSON is YAML
    with (directory / "run.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(file), "--port", str(port)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/readyz")
        yield port
    finally:
        # Twice: what is queued need not end.
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(1)
        process.wait(STOP_TIMEOUT_S)


def measure(driver: Driver, port: int) -> Result:
    return driver.run(Job("admit", port, MODEL, CONNECTIONS, ADMISSIONS, TOKENS, 0.0, KEY))


def compare(rounds: int, ports: dict[str, int]) -> dict[str, list[Result]]:
    """Both services in turn; the turn's first changes with each round. One more round, which does not count, first."""
    found: dict[str, list[Result]] = {name: [] for name in ports}
    driver = Driver()
    try:
        for turn in range(-1, rounds):
            for name in sorted(ports, reverse=turn % 2 == 1):
                result = measure(driver, ports[name])
                if turn >= 0:
                    found[name].append(result)
    finally:
        driver.close()
    return found


def figures(found: dict[str, list[Result]]) -> dict[str, float]:
    """Admissions a second of each, and the ratio of neighbours."""
    told: dict[str, float] = {}
    for name, results in found.items():
        told[f"{name}/requests_per_s"] = statistics.median(_rate(result) for result in results)
    pairs = zip(found["journal"], found["memory"], strict=True)
    told["ratio"] = statistics.median(_rate(durable) / _rate(plain) for durable, plain in pairs)
    return told


def _rate(result: Result) -> float:
    return result.requests / result.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with limits.yaml; exit 1 where a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, help="where the journal is kept for the time; default: the usual place")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llorch-bench-", dir=asked.folder)))
        ports = {
            name: stack.enter_context(service(folder / name, journal))
            for name, journal in (("journal", True), ("memory", False))
        }
        found = compare(asked.rounds, ports)
    told = figures(found)
    violations = [line for results in found.values() for result in results for line in result.told]
    missed = shortfalls(told, load_limits("durability")) if asked.check else []
    print(f"admissions, {CONNECTIONS} connections, {asked.rounds} rounds of {ADMISSIONS} each")
    for name, value in told.items():
        print(f"{name:<24} {value:>10.2f}")
    if asked.json:
        report = {"benchmark": "durability", "figures": told, "missed": missed, "violations": violations}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    for line in (*(f"broken: {line}" for line in violations), *(f"missed: {line}" for line in missed)):
        print(line)
    return 1 if violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
