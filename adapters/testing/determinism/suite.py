"""The determinism suite: two replicas of one engine, one plan, one verdict (OC-TEST-7001, ORCH-3050)."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from adapters.testing.determinism import goldens
from adapters.testing.determinism.artefacts import write_artefacts
from adapters.testing.determinism.bench import REFERENCE, Bench
from adapters.testing.determinism.goldens import GoldenKey
from adapters.testing.determinism.hardware import hardware_kind
from adapters.testing.determinism.ledger import Ledger
from adapters.testing.determinism.replicas import Replica, all_of
from adapters.testing.determinism.scenarios import chosen
from adapters.testing.determinism.tasks import PLAN_DEFAULT, Plan
from contracts.engine import AdapterFactory, EngineError, EngineSpec

GOLDEN: Final = "golden"
Progress = Callable[[str], None]


class Report(Struct, frozen=True):
    """What a run of one engine came to. `golden` says what became of the goldens."""

    key: GoldenKey
    ledger: Ledger
    slots: int
    launch_s: float
    seconds: dict[str, float]
    golden: str
    artefacts: tuple[Path, ...]

    @property
    def green(self) -> bool:
        return self.ledger.green


def _silent(_: str) -> None:
    """Tell nobody."""


async def examine(
    factory: AdapterFactory,
    specs: Sequence[EngineSpec],
    plan: Plan = PLAN_DEFAULT,
    *,
    out: Path,
    repin: str = "",
    progress: Progress = _silent,
) -> Report:
    """Run the plan on the two replicas that `specs` describes; differences are written to `out`.

    Goldens are pinned where there are none and nothing differed, and with `repin`, a reason, in place of those that
    there are. Raises EngineError where a replica cannot be brought up, GoldenError for goldens that cannot be used,
    OSError where `out` cannot be written, ValueError for an unknown scenario.
    """
    scenarios = chosen(plan)
    ledger = Ledger()
    a, b = (Replica(name, factory, spec, plan.timeout_s) for name, spec in zip("AB", specs, strict=True))
    seconds: dict[str, float] = {}
    try:
        await all_of(a.start(), b.start())
        key = goldens.golden_key(a.spec, a.properties, hardware_kind(a.spec))
        launch_s = a.launch_s
        known = goldens.load(key)
        bench = Bench(a, b, plan, ledger)
        _check_one_set(bench)
        await bench.find_prompts()
        for name, run in scenarios.items():
            progress(name)
            begin = time.monotonic()
            try:
                await run(bench, name)
            except EngineError as error:
                ledger.fail(name, str(error))
            ledger.count(name)
            seconds[name] = time.monotonic() - begin
            if name == REFERENCE and not repin:
                _compare_goldens(bench, known)
    finally:
        await all_of(a.close(), b.close())
    golden = _pin(bench, known, repin)
    replicas = {replica.name: replica.spec.endpoint or replica.spec.replica_id for replica in (a, b)}
    return Report(
        key=key,
        ledger=ledger,
        slots=bench.slots,
        launch_s=launch_s,
        seconds=seconds,
        golden=golden,
        artefacts=tuple(write_artefacts(out, key, replicas, ledger.differences)),
    )


def _check_one_set(bench: Bench) -> None:
    """Replicas of unlike engines or models are no set, and nobody promised that they agree (ORCH-3046)."""
    one, other = bench.a.properties, bench.b.properties
    if (one.engine_version, one.model_digest) != (other.engine_version, other.model_digest):
        bench.ledger.fail(
            REFERENCE,
            f"the replicas are no set: {one.engine_version} with {one.model_digest} and "
            f"{other.engine_version} with {other.model_digest}",
        )
    if not (one.exact and other.exact):
        bench.ledger.passes_over("the engine's own claim", "its adapter says that it is not exact as it is run here")


def _compare_goldens(bench: Bench, known: goldens.Goldens) -> None:
    """What the engine gave alone must be what the same build gave here before."""
    tasks = {task.name: task for task in bench.plan.tasks(bench.prompts)}
    for name, found in bench.reference.items():
        if name in known.answers:
            bench.ledger.compare(GOLDEN, bench.a.name, tasks[name], known.answers[name], found)


def _pin(bench: Bench, known: goldens.Goldens, repin: str) -> str:
    """Pin what is new, or all with a reason. A red run pins nothing: it has no answers to hold others to."""
    new = {name: found for name, found in bench.reference.items() if repin or name not in known.answers}
    held = len(bench.reference) - len(new)
    if not bench.ledger.green:
        return f"{held} compared, none pinned: the run is red"
    if new:
        goldens.pin(known, new, repin)
    if repin:
        return f"{len(new)} pinned in place of {len(known.answers)}: {repin}"
    return f"{held} compared, {len(new)} pinned for the first time"
