"""`llorch simulate`: scenarios with their problems in place, reports, logs and pictures."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli_simulate import simulate
from orchestrator.scenariofile import ScenarioError, load, loads
from orchestrator.simulation import experiment
from orchestrator.simulation.report import Report
from orchestrator.simulation.scenario import PoolSection, Scenario, SchedulerSection
from tests.simulation.sim_kit import report, scenario
from tools.trace import ROOT

SMALL = """\
# llorch scenario
name: small
seconds: 30
pools:
  gpu: {replicas: 1, slots: 2}
workloads:
  - name: chat
    arrivals: {kind: poisson, per_second: 1}
    output_tokens: {kind: choice, of: {"20": 3, "40": 1}}
    max_tokens: 40
"""
FENCE = re.compile(r"^```yaml\n(# llorch scenario\n.*?)^```", re.MULTILINE | re.DOTALL)
GUIDE = (ROOT / "docs/simulation.md").read_text()
EXAMPLES = sorted((ROOT / "examples/simulation").glob("*.yaml"))

app = typer.Typer()
app.command()(simulate)


def llorch(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_a_report_as_a_table(small: Path) -> None:
    shown = llorch(small, "--seed", 3)
    assert shown.exit_code == 0
    assert "small, seed 3:" in shown.stdout
    assert "1 replica, 2 slots" in shown.stdout


def test_a_report_as_json_is_the_same_each_time(small: Path) -> None:
    once, again, other = (llorch(small, "--json", "--seed", seed).stdout for seed in (1, 1, 2))
    assert once == again != other
    assert msgspec.json.decode(once, type=Report) == experiment.run(load(small), 1)


def test_values_may_be_changed_on_the_command_line(small: Path) -> None:
    changes = ["pools.gpu.replicas=3", "workloads.chat.arrivals.per_second=2.5", "scheduler.preemption.mode=off"]
    found = load(small, changes)
    assert found.pools["gpu"].replicas == 3
    assert found.pools["gpu"].slots == 2
    assert found.scheduler.preemption.mode == "off"
    arrivals = found.workloads[0].arrivals
    assert arrivals.kind == "poisson"
    assert arrivals.per_second == 2.5
    assert "3 replicas, 6 slots" in llorch(small, "--set", changes[0]).stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("replicas", "must be PLACE=VALUE"),
        ("workloads.nobody.max_tokens=3", "no entry is named `nobody`"),
        ("seconds.more=3", "`seconds` has no fields"),
        ("pools.gpu.replicas=many", "`replicas` should be a valid integer"),
    ],
)
def test_changes_that_cannot_be_made(small: Path, change: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        load(small, [change])


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("workloads: []", "1:12", "`workloads`", ""),
        ("seconds: 5", "1:1", "`workloads` is missing", "add `workloads:` here"),
        (SMALL + "colour: red\n", "11:1", "unknown field `colour`", "known here: check_every_steps"),
        (SMALL.replace("slots: 2", "slot: 2"), "5:22", "unknown field `slot`", "did you mean `slots`?"),
        (SMALL.replace("per_second", "per_sec"), "8:31", "unknown field `per_sec`", "did you mean `per_second`?"),
        (SMALL.replace("poisson", "posson"), "8:15", "`kind` must be one of 'poisson', 'constant'", ""),
        (SMALL.replace("kind: poisson, ", ""), "8:15", "`arrivals` needs a `kind`", "docs/simulation.md"),
        (SMALL.replace("replicas: 1", "replicas: 0"), "5:19", "`replicas` should be greater than or equal to 1", ""),
        (SMALL.replace("max_tokens: 40", "priority: urgent"), "2:1", "uses class urgent; scheduler.classes has", ""),
        (SMALL.replace("seconds: 30", "seconds: 30\nwarmup_s: 30"), "2:1", "warmup_s 30 leaves nothing", ""),
        ("- a", "1:1", "a scenario must be a mapping", "start with `workloads:`"),
        (SMALL.replace("max_tokens: 40", "deadline_ms: soon"), "10:18", "`deadline_ms` should be a valid integer", ""),
        ("a: [", "1:5", "not YAML", ""),
    ],
)
@pytest.mark.req("ORCH-3030")
def test_what_is_wrong_is_told_with_its_place(text: str, place: str, message: str, hint: str) -> None:
    with pytest.raises(ScenarioError) as failed:
        loads(text, "s.yaml")
    shown = "\n".join(str(problem) for problem in failed.value.problems)
    assert message in shown
    assert f"s.yaml:{place}: " in shown
    assert hint in "\n".join(problem.hint for problem in failed.value.problems)


def test_problems_end_the_command(small: Path, tmp_path: Path) -> None:
    small.write_text("workloads: 5\n")
    assert llorch(small).exit_code == 1
    missing = llorch(tmp_path / "none.yaml")
    assert missing.exit_code == 1
    assert "cannot read" in missing.stderr
    assert llorch().exit_code == 2
    assert llorch(small, "--replay", small).exit_code == 2


def test_a_log_is_written_and_repeated(small: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert llorch(small, "--log", log).exit_code == 0
    same = llorch("--replay", log)
    assert same.exit_code == 0
    assert "the same commands as recorded" in same.stdout
    lines = tmp_path / "run.jsonl"
    llorch(small, "--log", lines)
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join([*kept[:2], *kept[3:]]))
    changed = llorch("--replay", lines)
    assert changed.exit_code == 1
    assert "NOT the commands recorded" in changed.stdout
    lines.write_text("".join(kept[:5]))
    cut = llorch("--replay", lines)
    assert cut.exit_code == 0
    assert "its run was cut off" in cut.stdout
    lines.write_text("nonsense\n")
    assert llorch("--replay", lines).exit_code == 1


# ---------------------------------------------------------------------------- pictures


class Figure:
    """Stands in for matplotlib's: takes every call and leaves a file."""

    def __init__(self, **_: Any) -> None:
        self.calls: list[str] = []

    def add_subplot(self) -> "Figure":
        return self

    def plot(self, *_: Any, **__: Any) -> list["Figure"]:
        return [self]

    def get_color(self) -> str:
        return "black"

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.calls.append(name)

    def savefig(self, path: Path) -> None:
        path.write_text(",".join(self.calls))


def test_pictures_are_drawn(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("matplotlib.figure")
    stand_in.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", stand_in)
    done = llorch(small, "--pictures", tmp_path / "out")
    assert done.exit_code == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["calibration.png", "queue.png", "shares.png", "waits.png"]
    assert done.stderr.count("wrote ") == 4
    assert all("set_title" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_without_matplotlib_pictures_say_what_to_install(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    failed = llorch(small, "--pictures", tmp_path / "out")
    assert failed.exit_code == 1
    assert "llama-orch[pictures]" in failed.stderr


# ---------------------------------------------------------------------------- examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(path: Path) -> None:
    """A piece of each: the faults of the example are in their times, so that one runs whole."""
    assert path.read_text().startswith("# llorch scenario\n")
    changes = [] if path.stem == "faults" else ["seconds=60", "warmup_s=0", "tasks_max=400"]
    found = experiment.run(load(path, changes), 1, folder=path.parent)
    assert found.total.finished > 0


def test_what_the_guide_shows_runs() -> None:
    shown = FENCE.findall(GUIDE)
    assert len(shown) == 2
    for text in shown:
        assert experiment.run(loads(text, "docs/simulation.md"), 1).total.finished > 400


def test_the_guide_names_all_there_is_to_set() -> None:
    """Every kind of arrival, size, refusal and fault, and every field of the sections it lists."""
    schema = json.dumps(Scenario.model_json_schema())
    kinds = set(re.findall(r'"const": "([a-z-]+)"', schema))
    assert kinds >= {"poisson", "pareto", "crash", "reports"}
    assert sorted(kind for kind in kinds if kind not in GUIDE) == []
    fields = [*Scenario.model_fields, *PoolSection.model_fields, *SchedulerSection.model_fields]
    missing = {name for name in fields if name not in GUIDE} - {"name", "drain_s", "results_max"}
    assert missing == set()


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"capacity", "policies", "agents", "faults", "trace", "large"}


def test_a_scenario_survives_being_written_down() -> None:
    """Everything that a scenario can say can be said in its file."""
    what = scenario(faults=[{"kind": "crash", "at_s": 5}], scheduler={"tenants": {"a": {"rps": 2}}})
    again = loads(json.dumps(json.loads(what.model_dump_json())), "s.yaml")
    assert again == what
    assert isinstance(again, Scenario)
    assert report(again) == report(what)
