"""The determinism suite finds what is planted, says what it left out, and pins what it may."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from adapters.errors import engine_error
from adapters.testing.determinism import Plan, Report, examine, summary, totals
from adapters.testing.determinism.artefacts import Artefact
from adapters.testing.determinism.goldens import GoldenError, Goldens, load
from contracts.engine import EngineError, EngineSpec
from tests.unit.adapters.scripted_engine import Script, ScriptedEngine, Situation

Run = Callable[..., Awaitable[Report]]

#: Small enough for a test that is to be quick; the shipped plans have all seeds.
PLAN = Plan(seeds=tuple(range(8)), tokens_min=5, tokens_max=8, continued=4, kills=2, timeout_s=10)
SPEC = EngineSpec(
    engine="scripted", pool_id="p", replica_id="A", model="m", model_path="", ctx=64, slots=4, accelerator="cpu-dev"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    async def examined(script: Script, plan: Plan = PLAN, repin: str = "", **changes: object) -> Report:
        a = replace(SPEC, **changes)
        return await examine(
            lambda spec: ScriptedEngine(spec, script),
            (a, replace(a, replica_id="B")),
            plan,
            out=tmp_path / "out",
            repin=repin,
        )

    return examined


def found(report: Report) -> set[tuple[str, int]]:
    return {(difference.scenario, difference.where.token_index) for difference in report.ledger.differences}


@pytest.mark.req("ORCH-3050", "OC-TEST-7001")
async def test_an_exact_engine_is_green_and_everything_is_counted(run: Run, tmp_path: Path) -> None:
    report = await run(Script(token_s=0.0005))
    text = summary(report)
    assert report.green, text
    counts = report.ledger.counts
    assert list(counts) == ["alone", "concurrent", "cache off", "cache of a part", "restart", "failover"]
    assert (counts["alone"].comparisons, len(counts["alone"].seeds), len(counts["alone"].prompts)) == (48, 8, 6)
    assert counts["concurrent"].comparisons == 2 * 8
    assert counts["cache off"].comparisons == counts["restart"].comparisons == 8
    assert counts["cache off"].reused == 0
    assert counts["cache of a part"].reused == counts["cache of a part"].comparisons == 4
    assert counts["failover"].note.startswith("2 kills, ")
    assert counts["failover"].comparisons > 8
    assert report.ledger.not_applicable == {}
    assert "byte-exact: " in text
    assert "NOT" not in text
    assert totals([report]).startswith("1 engines x 6 scenarios x 8 seeds x 7 prompts: ")
    assert list((tmp_path / "out").iterdir()) == []


FLAWS = {
    "alone": lambda at: 2 if at.replica == "B" and at.request.seed == 3 else None,
    "concurrent": lambda at: 3 if at.in_flight > 1 and at.replica == "A" else None,
    "cache off": lambda at: 1 if at.request.kv_hint == "cold" and "Page" not in at.prompt else None,
    "cache of a part": lambda at: 4 if "Page" in at.prompt and at.request.kv_hint != "cold" else None,
    "restart": lambda at: 0 if at.replica == "B" and at.launches > 1 else None,
}


@pytest.mark.req("ORCH-3050")
@pytest.mark.parametrize("scenario", FLAWS)
async def test_a_planted_difference_is_found_where_it_is(run: Run, scenario: str) -> None:
    flaw: Callable[[Situation], int | None] = FLAWS[scenario]
    index = {"alone": 2, "concurrent": 3, "cache off": 1, "cache of a part": 4, "restart": 0}[scenario]
    report = await run(Script(flaw), replace(PLAN, scenarios=(scenario,)))
    assert not report.green
    assert (scenario, index) in found(report)
    assert report.golden.endswith("none pinned: the run is red")
    assert "NOT byte-exact" in summary(report)
    assert "1 engines red" in totals([report])


@pytest.mark.req("ORCH-3050")
async def test_another_text_after_a_failover_is_found_in_what_was_delivered(run: Run) -> None:
    def flaw(at: Situation) -> int | None:
        return 0 if at.replica == "A" and at.in_flight > 1 else None

    report = await run(Script(flaw, token_s=0.001), replace(PLAN, scenarios=("failover",)))
    assert not report.green
    delivered = [difference for difference in report.ledger.differences if difference.scenario == "failover"]
    assert delivered
    assert all(difference.expected.finish_reason == "" for difference in delivered)


async def test_a_kill_that_comes_too_late_proves_nothing_and_is_red(run: Run) -> None:
    late = Script(version="late", flaw=lambda _: None)
    plan = replace(PLAN, scenarios=("failover",), seeds=(0,), prompts=("short",), tokens_min=1, tokens_max=1)
    report = await run(late, plan)
    assert not report.green
    assert "nothing was proven" in report.ledger.failures[0]


@pytest.mark.req("OC-TEST-7002")
async def test_an_engine_of_one_slot_is_proven_to_be_serialised(run: Run) -> None:
    report = await run(Script(slots=1, limit=1, token_s=0.001), replace(PLAN, scenarios=("concurrent",)))
    assert report.green
    assert "REPLICA_EXHAUSTED proven" in report.ledger.not_applicable["concurrent"]
    assert report.ledger.counts["concurrent"].comparisons == 1


@pytest.mark.req("OC-TEST-7002")
async def test_an_engine_that_claims_one_slot_and_takes_more_is_red(run: Run) -> None:
    report = await run(Script(slots=1, limit=4, token_s=0.001), replace(PLAN, scenarios=("concurrent",)))
    assert not report.green
    assert "a second task had to be refused" in report.ledger.failures[0]


async def test_a_stream_without_an_end_is_a_failure(run: Run) -> None:
    with pytest.raises(EngineError, match="ended without an end"):
        await run(Script(endless=True), replace(PLAN, scenarios=("concurrent",)))


async def test_cold_prompts_that_were_cached_are_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.testing.determinism.tasks.Task.cold", lambda self: self)
    report = await run(Script(), replace(PLAN, scenarios=("cache off",)))
    assert not report.green
    assert "cached tokens were used" in report.ledger.failures[0]


async def test_what_does_not_apply_is_named_with_its_reason(run: Run) -> None:
    script = Script(refuses=lambda request: not request.prompt, caches=False, exact=False)
    report = await run(script, replace(PLAN, scenarios=("cache of a part",)))
    assert report.green
    assert report.ledger.not_applicable.keys() == {
        "prompt empty", "prompt chat", "cache of a part (reuse)", "the engine's own claim"
    }  # fmt: skip
    assert "not applicable: prompt chat: not this prompt" in summary(report)


async def test_too_few_prompts_are_a_failure(run: Run) -> None:
    report = await run(
        Script(refuses=lambda request: len(request.prompt or "") < 100), replace(PLAN, scenarios=("restart",))
    )
    assert not report.green
    assert "serves 2 of the prompts" in report.ledger.failures[0]


async def test_unlike_replicas_are_no_set(tmp_path: Path) -> None:
    def factory(spec: EngineSpec) -> ScriptedEngine:
        return ScriptedEngine(spec, Script(version=f"scripted {spec.replica_id}"))

    plan = replace(PLAN, scenarios=("concurrent",))
    report = await examine(factory, (SPEC, replace(SPEC, replica_id="B")), plan, out=tmp_path / "out")
    assert "the replicas are no set" in report.ledger.failures[0]


async def test_an_unknown_scenario_is_refused_by_name(run: Run) -> None:
    with pytest.raises(ValueError, match="there is no scenario 'weather'"):
        await run(Script(), replace(PLAN, scenarios=("weather",)))


@pytest.mark.req("ORCH-3050")
async def test_the_artefact_says_what_parted_where(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "difference-99-old.json").write_text("{}")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    script = Script(lambda at: 2 if at.replica == "B" and at.request.seed == 3 and "The sea" in at.prompt else None)
    report = await run(script, replace(PLAN, scenarios=("concurrent",)), args=("--fast",))
    first = report.artefacts[0]
    written = [*report.artefacts, *(path.with_suffix(".txt") for path in report.artefacts)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine.txt", *(path.name for path in written)}
    artefact = msgspec.json.decode(first.read_bytes(), type=Artefact)
    difference = artefact.difference
    assert (difference.scenario, difference.prompt_id, difference.seed, difference.replica) == (
        "alone",
        "short",
        3,
        "B",
    )
    assert artefact.key.engine_version == "scripted 1"
    assert artefact.key.arguments == ("--fast",)
    assert difference.where.token_index == 2
    text = difference.expected.text
    assert text.startswith(difference.where.common)
    assert text == difference.where.common + difference.where.expected
    assert difference.found.text == difference.where.common + difference.where.found
    readable = first.with_suffix(".txt").read_text()
    for part in ("scripted 1", "--fast", "alone", "B (B)", "short", "token 2", repr(difference.where.expected)):
        assert part in readable


@pytest.mark.req("ORCH-3047", "OC-CORE-1032")
async def test_goldens_are_pinned_once_and_compared_from_then_on(run: Run) -> None:
    plan = replace(PLAN, scenarios=("concurrent",))
    first = await run(Script(), plan)
    assert first.golden == "0 compared, 48 pinned for the first time"
    again = await run(Script(), plan)
    assert again.green
    assert again.golden == "48 compared, 0 pinned for the first time"
    assert again.ledger.counts["golden"].comparisons == 48
    more = await run(Script(), replace(plan, seeds=tuple(range(9))))
    assert more.golden == "48 compared, 6 pinned for the first time"


@pytest.mark.req("ORCH-3047", "OC-CORE-1032")
async def test_a_build_that_changes_its_mind_is_red_and_a_new_build_is_another_key(run: Run) -> None:
    plan = replace(PLAN, scenarios=("concurrent",))
    await run(Script(), plan)
    changed = await run(Script(lambda _: 1), plan)
    assert not changed.green
    assert found(changed) == {("golden", 1)}
    assert changed.golden == "48 compared, none pinned: the run is red"
    new_build = await run(Script(lambda _: 1, version="scripted 2"), plan)
    assert new_build.green
    assert new_build.golden == "0 compared, 48 pinned for the first time"
    for changes in ({"args": ("-x",)}, {"env": (("A", "1"),)}, {"sampler_profile_version": "v2"}):
        assert (await run(Script(lambda _: 1), plan, **changes)).green
    assert not (await run(Script(lambda _: 1), plan, slots=2, ctx=32)).green


@pytest.mark.req("ORCH-3047")
async def test_pinning_anew_needs_a_green_run_and_keeps_the_reason(run: Run) -> None:
    plan = replace(PLAN, scenarios=("concurrent",))
    await run(Script(), plan)
    red = await run(Script(lambda at: 1 if at.replica == "B" else None), plan, repin="no")
    assert not red.green
    assert load(red.key).replaced == []
    report = await run(Script(lambda _: 1), plan, repin="the flaw is how it should be")
    assert report.golden == "48 pinned in place of 48: the flaw is how it should be"
    assert [entry.reason for entry in load(report.key).replaced] == ["the flaw is how it should be"]
    assert (await run(Script(lambda _: 1), plan)).green


async def test_damaged_goldens_are_named_and_never_taken_for_none(run: Run) -> None:
    plan = replace(PLAN, scenarios=("concurrent",))
    report = await run(Script(), plan)
    path = report.key.path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(GoldenError, match="remove it to pin anew"):
        await run(Script(), plan)
    path.write_bytes(msgspec.json.encode(Goldens(replace(report.key, engine_version="other"))))
    with pytest.raises(GoldenError, match="another key"):
        await run(Script(), plan)


async def test_a_replica_that_does_not_come_up_leaves_nothing_running(tmp_path: Path) -> None:
    engines = []

    class Failing(ScriptedEngine):
        async def launch(self) -> None:
            engines.append(self)
            if self._spec.replica_id == "A":
                raise engine_error("POOL_UNREADY", "no", engine="scripted", retriable=True)
            await asyncio.sleep(0.01)
            await super().launch()

    specs = (SPEC, replace(SPEC, replica_id="B"))
    with pytest.raises(EngineError, match="POOL_UNREADY"):
        await examine(lambda spec: Failing(spec, Script()), specs, PLAN, out=tmp_path / "out")
    assert [engine.pid for engine in engines] == [None, None]
