"""What may be in a file of this project: sizes, names, words, addresses."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tools.trace import ROOT, source_files

LIBRARIES = ("contracts", "orchestrator", "adapters", "policies")
FILE_BYTES_MAX = 1024 * 1024
MODULE_LINES_MAX = 400
MODULE_LINES_GOAL = 250
#: Modules over the goal, each with why it is still one idea.
OVER_GOAL = {
    "contracts/messages.py": "one list of channel messages",
    "contracts/scheduling.py": "one vocabulary: events and commands",
    "orchestrator/core/flows.py": "flows, their classes and the policy they report to know each other",
    "orchestrator/core/sessions.py": "one table: lives, budgets and turns of the same sessions",
    "contracts/openapi_source.py": "one document: the data plane as OpenAPI",
}
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
#: Files made by tools or written by others; their text is not ours to style.
NOT_OURS = ("requirements/", "LICENSE")

# Spelt in parts, or this file would find itself.
REGISTRIES = re.compile(
    r"(files\.pythonhosted|py" + r"pi\.org|registry\.npm" + r"js|crates" + r"\.io|--(extra-)?index" + r"-url)"
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(home|Users|root|work|mnt|srv)" + r"/[a-z]|(?<![\w.])/tmp" + r"/\w")
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b")


@cache
def texts() -> dict[str, str]:
    """Every text file of the project."""
    found = {}
    for name in source_files():
        raw = (ROOT / name).read_bytes()
        if b"\0" not in raw[:8192]:
            found[name] = raw.decode("utf-8")
    return found


def ours() -> list[tuple[str, str]]:
    return [(name, text) for name, text in texts().items() if not name.startswith(NOT_OURS)]


def matches(pattern: re.Pattern[str], name: str, text: str) -> list[str]:
    return [f"{name}:{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_there_is_something_to_check() -> None:
    assert "pyproject.toml" in texts()
    assert sum(name.endswith(".py") for name in texts()) > 20


def test_modules_are_one_idea_each() -> None:
    """About 250 lines; never over 400, and over 250 only with a reason."""
    lines = {name: text.count("\n") for name, text in texts().items() if name.endswith(".py")}
    assert {name: n for name, n in lines.items() if n > MODULE_LINES_MAX} == {}
    shipped = {name: n for name, n in lines.items() if n > MODULE_LINES_GOAL and name.startswith(LIBRARIES)}
    assert {name: n for name, n in shipped.items() if name not in OVER_GOAL} == {}


def test_no_module_is_a_drawer() -> None:
    assert [name for name in texts() if name.rsplit("/", 1)[-1] in BANNED_NAMES] == []


def test_no_package_registry_is_named() -> None:
    """Requirements included: locks hold versions and hashes, no addresses."""
    assert [line for name, text in texts().items() for line in matches(REGISTRIES, name, text)] == []


def test_no_machine_path_is_named() -> None:
    assert [line for name, text in ours() for line in matches(MACHINE_PATHS, name, text)] == []


def test_nothing_is_left_unfinished() -> None:
    assert [line for name, text in ours() for line in matches(UNFINISHED, name, text)] == []


def test_no_file_is_large() -> None:
    assert [name for name in source_files() if (ROOT / name).stat().st_size > FILE_BYTES_MAX] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (REGISTRIES, "see https://py" + "pi.org/simple"),
        (MACHINE_PATHS, "open('/ho" + "me/me/model.gguf')"),
        (UNFINISHED, "# TO" + "DO later"),
    ],
)
def test_the_patterns_find_what_they_forbid(pattern: re.Pattern[str], text: str) -> None:
    assert matches(pattern, "file", text) == [f"file:1: {text}"]


def test_new_files_are_looked_at_before_they_are_added(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "new.py").write_text("")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    (tmp_path / "ignored.py").write_text("")
    assert source_files(tmp_path) == [".gitignore", "new.py"]
