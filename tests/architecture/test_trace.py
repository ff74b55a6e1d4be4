"""The traceability tool finds what it should, and the project's own IDs are in order."""

import re
import subprocess
from pathlib import Path

import pytest

from tools import trace

UNKNOWN = "ORCH-" + "9999"
MUST = "ORCH-" + "2001"
SHOULD = "ORCH-" + "3006"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one stated, tested and implemented requirement."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    files = {
        trace.IDS: f"{MUST}: {{level: M, title: a}}\n{SHOULD}: {{level: S, title: b}}\n",
        ".specs/10-a.md": f"- **{MUST}** (M): The service MUST.\n- **{SHOULD}** (S): It SHOULD.\n",
        "tests/test_a.py": f'@pytest.mark.req(\n    "{MUST}",\n)\ndef test_a(): ...\n',
        "orchestrator/a.py": f'"""Satisfies {MUST}."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_sound_project_passes_and_writing_twice_changes_nothing(project: Path) -> None:
    assert trace.main([], project) == 0
    first = (project / trace.TRACE).read_bytes()
    assert trace.main([], project) == 0
    assert (project / trace.TRACE).read_bytes() == first
    assert trace.main(["--check"], project) == 0
    row = trace.Trace(project).table()[MUST]
    assert (row["spec"], row["tests"], row["code"]) == ([".specs/10-a.md"], ["tests/test_a.py"], ["orchestrator/a.py"])


def test_a_must_without_a_marked_test_fails(project: Path) -> None:
    (project / "tests/test_a.py").write_text(f"# about {MUST}\ndef test_a(): ...\n")
    assert any(MUST in problem and "no test" in problem for problem in trace.Trace(project).problems())


@pytest.mark.parametrize("name", [".specs/10-a.md", "tests/test_a.py", "orchestrator/a.py"])
def test_an_unknown_id_fails_wherever_it_stands(project: Path, name: str) -> None:
    path = project / name
    path.write_text(f"{path.read_text()}\n# {UNKNOWN}\n")
    assert trace.Trace(project).problems() == [f"{name} names {UNKNOWN}, which {trace.IDS} does not hold"]


def test_a_level_other_than_the_lists_fails(project: Path) -> None:
    (project / ".specs/10-a.md").write_text(f"- **{MUST}** (O): The service MAY.\n")
    assert len(trace.Trace(project).problems()) == 1


def test_check_fails_on_a_difference_and_writes_nothing(project: Path) -> None:
    assert trace.main(["--check"], project) == 1
    assert not (project / trace.TRACE).exists()


def test_every_id_that_this_project_names_is_known() -> None:
    assert sorted(trace.Trace().unknown) == []


def test_the_list_of_ids_is_well_formed() -> None:
    known = trace.known_ids()
    assert len(known) > 150
    for id_, about in known.items():
        assert re.fullmatch(trace.ID, id_)
        assert about.keys() == {"level", "title"}
        assert about["level"] in {"M", "S", "O"}
