"""What the queue adds over the bare engine: `python benchmarks/overhead.py [--check] [--json FILE]`.

A deterministic fake engine is measured directly and through the whole service (ingress, scheduler,
replica; with HAProxy in front too), repetition by repetition in turn, so that all meet the same
machine. Bursts
(all tokens at once) show what the parts cost, paced streams (30 ms to the first token, 20 ms
between tokens) what a client notices. Bursts begin all at once; paced streams begin spread evenly
over the time that one takes, as clients do that do not know of each other. Every stream is checked
byte by byte.

Admission is measured on a pool whose engine is stuck, so that submissions are queued and nothing
else runs: what is counted is the answer to `POST /v1/tasks`. `drained` has one-token tasks run and
end meanwhile, on the same processors.
"""

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from adapters.testing.fake_llama_server import free_port, write_fake_binary  # noqa: E402
from adapters.testing.fake_model import write_fake_model  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from benchmarks.load import Job, Result, Target  # noqa: E402
from benchmarks.processes import CpuMeter  # noqa: E402
from benchmarks.report import Row, Sample, figures, make_row, table  # noqa: E402
from contracts import config  # noqa: E402

KEY: Final = "overhead-benchmark"
TOKENS: Final = 64
#: How long a paced stream takes.
STREAM_MS: Final = 30 + 20 * (TOKENS - 1)
SLOTS: Final = 256
CTX: Final = 2048
QUEUE_CAPACITY: Final = 200_000
READY_TIMEOUT_S: Final = 60.0
WARM_UPS_MAX: Final = 4
ADMISSION_CONNECTIONS: Final = 16
ENGINES: Final = {
    "burst": ("--fake-burst",),
    "paced": ("--fake-first-token-ms", "30", "--fake-token-ms", "20"),
    # More than the self-test asks for, less than the tasks do: it gets ready, then holds every slot.
    "held": ("--fake-burst", "--fake-stall-after", "16"),
}


class Side(NamedTuple):
    """One way to the tokens: what is asked, and through which door of the service (direct: the engine's own)."""

    name: str
    target: Target
    door: str


#: `own` is the port that the ingress replicas share, `haproxy` the balancer in front of all nodes.
SIDES: Final = (
    Side("direct", "direct", "engine"),
    Side("one_call", "one_call", "own"),
    Side("two_calls", "two_calls", "own"),
    Side("haproxy_one_call", "one_call", "haproxy"),
)


class Case(NamedTuple):
    """One pace and number of streams: requests in a repetition, and repetitions."""

    pace: str
    streams: int
    requests: int
    repetitions: int


FULL: Final = (
    Case("burst", 1, 100, 5),
    Case("burst", 32, 640, 5),
    Case("burst", 64, 640, 3),
    Case("burst", 256, 1024, 3),
    Case("paced", 1, 4, 3),
    Case("paced", 32, 96, 2),
    Case("paced", 64, 192, 3),
    Case("paced", 256, 768, 2),
)
QUICK: Final = (
    Case("burst", 1, 60, 2),
    Case("burst", 32, 320, 2),
    Case("paced", 1, 4, 1),
    Case("paced", 64, 128, 2),
)
ADMISSIONS: Final = 4000


class Driver:
    """The load driver's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def run(self, job: Job) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job).decode() + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Result)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


class Bench:
    """The running sides; measures one job at a time and keeps what went wrong."""

    def __init__(
        self, driver: Driver, direct_ports: dict[str, int], doors: dict[str, int], direct_pids: set[int]
    ) -> None:
        self._driver = driver
        self._direct_ports = direct_ports
        self._doors = doors
        self._meter = CpuMeter(dict.fromkeys(direct_pids, "direct engine"))
        self.violations: list[str] = []

    def measure(self, pool: str, side: Side, streams: int, requests: int, tokens: int = TOKENS) -> Sample:
        direct = side.target == "direct"
        port = self._direct_ports[pool] if direct else self._doors[side.door]
        spread_ms = STREAM_MS if pool == "paced" else 0
        before, begun = self._meter.read(), time.monotonic()
        result = self._driver.run(Job(side.target, port, f"fake-{pool}", streams, requests, tokens, spread_ms, KEY))
        wall_s = time.monotonic() - begun
        cpu_s = self._meter.read().since(before)
        if direct:
            cpu_s["engine"] = cpu_s["direct engine"]  # the service's stands idle
        del cpu_s["direct engine"]
        if result.violations:
            what = f"{pool}/{streams}/{side.name}: {result.violations} of {requests}"
            self.violations += [f"{what}: {told}" for told in result.told]
        return Sample(result, cpu_s, wall_s)

    def warm_up(self) -> None:
        """Have connections and caches made, until all is well: HAProxy replaces itself shortly after the start.

        Nothing of this counts. Raises RuntimeError when streams still break at the last try.
        """
        for _ in range(WARM_UPS_MAX):
            self.violations.clear()
            for pool in self._direct_ports:
                for side in SIDES:
                    self.measure(pool, side, 32, 64)
            if not self.violations:
                return
        raise RuntimeError(f"the service does not warm up: {self.violations}")

    def compare(self, case: Case) -> list[Row]:
        """All sides of one case in turn; the turn's first changes with each repetition."""
        samples: dict[Side, list[Sample]] = {side: [] for side in SIDES}
        for repetition in range(case.repetitions):
            first = repetition % len(SIDES)
            for side in SIDES[first:] + SIDES[:first]:
                samples[side].append(self.measure(case.pace, side, case.streams, case.requests))
        direct = samples[SIDES[0]]
        return [
            make_row(case.pace, case.streams, side.name, samples[side], None if side is SIDES[0] else direct)
            for side in SIDES
        ]

    def admissions(self, name: str, pool: str, door: str, tokens: int, repetitions: int) -> Row:
        side = Side(name, "admit", door)
        samples = [self.measure(pool, side, ADMISSION_CONNECTIONS, ADMISSIONS, tokens) for _ in range(repetitions)]
        return make_row("admission", ADMISSION_CONNECTIONS, name, samples)


def configuration(directory: Path, ingress_replicas: int) -> config.Config:
    """One pool per fake engine."""
    model = write_fake_model(directory / "model.gguf")
    pools = []
    for name, options in ENGINES.items():
        place = directory / name
        place.mkdir()
        pools.append(
            config.PoolConfig(
                id=f"fake-{name}",
                engine="llamacpp",
                model=f"fake-{name}",
                model_path=model,
                ctx=CTX,
                slots=SLOTS,
                accelerator="cpu-dev",
                queue=config.QueueConfig(capacity=QUEUE_CAPACITY),
                timeouts=config.TimeoutConfig(wall_ms=3_600_000, idle_ms=3_600_000),
                engine_options=config.EngineOptions(binary=write_fake_binary(place, *options)),
            )
        )
    key = config.KeyConfig(name="bench", tenant="bench", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    return config.Config(
        pools=pools, auth=config.AuthConfig(keys=[key]), server=config.ServerConfig(ingress_replicas=ingress_replicas)
    )


def start_direct(options: tuple[str, ...], port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "adapters.testing.fake_llama_server", "--port", str(port)]
    return subprocess.Popen(
        [*command, "-np", str(SLOTS), "-c", str(SLOTS * CTX), *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )


def wait_for(url: str) -> None:
    """Until `url` answers 200. Raises TimeoutError."""
    give_up = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{url} is not ready after {READY_TIMEOUT_S:.0f} s")


@contextlib.contextmanager
def running(ingress_replicas: int) -> Iterator[Bench]:
    """Service, direct engines and driver, all ended on the way out."""
    from orchestrator.app import local_service

    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llorch-bench-")))
        driver = Driver()
        stack.callback(driver.close)
        direct_ports: dict[str, int] = {}
        direct_pids: set[int] = set()
        for name in ("burst", "paced"):
            direct_ports[name] = free_port()
            engine = start_direct(ENGINES[name], direct_ports[name])
            stack.callback(engine.wait, 10)
            stack.callback(engine.terminate)
            direct_pids.add(engine.pid)
        service = stack.enter_context(local_service(configuration(directory, ingress_replicas), port=free_port()))
        doors = {"own": service.url, "haproxy": service.balanced_url}
        for url in doors.values():
            wait_for(f"{url}/readyz")
        for port in direct_ports.values():
            wait_for(f"http://127.0.0.1:{port}/health")
        ports = {door: int(url.rpartition(":")[2]) for door, url in doors.items()}
        bench = Bench(driver, direct_ports, ports, direct_pids)
        bench.warm_up()
        yield bench


def run_all(bench: Bench, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for case in QUICK if quick else FULL:
        rows += bench.compare(case)
        print(f"{case.pace}, {case.streams} streams: done", file=sys.stderr, flush=True)
    repetitions = 2 if quick else 3
    rows.append(bench.admissions("drained", "burst", "own", 1, repetitions))
    rows.append(bench.admissions("haproxy_queued", "held", "haproxy", TOKENS, repetitions))
    rows.append(bench.admissions("queued", "held", "own", TOKENS, repetitions))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with limits.yaml; exit 1 where a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions, about a minute")
    parser.add_argument("--ingress-replicas", type=int, default=config.ServerConfig().ingress_replicas, metavar="N")
    asked = parser.parse_args()
    load_before, begun = os.getloadavg()[0], time.monotonic()
    with running(asked.ingress_replicas) as bench:
        rows = run_all(bench, asked.quick)
        violations = bench.violations
    machine = {
        "cpus": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "ingress_replicas": asked.ingress_replicas,
        "seconds": round(time.monotonic() - begun, 1),
    }
    reached = figures(rows)
    missed = shortfalls(reached, load_limits("overhead")) if asked.check else []
    print(table(rows))
    print("times in ms; CPU in microseconds per token (admission: per request); others: processors busy elsewhere")
    print(", ".join(f"{name} {value:g}" for name, value in machine.items() if value is not None))
    if asked.json:
        report = {"benchmark": "overhead", "machine": machine, "figures": reached, "rows": rows, "missed": missed}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(report | {"violations": violations})))
    for line in (*(f"broken: {line}" for line in violations), *(f"missed: {line}" for line in missed)):
        print(line)
    return 1 if violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
