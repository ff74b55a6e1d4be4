"""Requirement traceability: which spec states an ID, which tests prove it, which code satisfies it.

`python -m tools.trace` writes contracts/requirements/trace.yaml (files, not lines, so that it only
changes when something moves). `--check` writes nothing and fails on: a difference from that file,
an ID that the list does not hold, a statement whose level is not the list's, and an (M) statement
without a test. A test proves what its `req` marker or its feature file's tags name.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
IDS: Final = "contracts/requirements/ids.yaml"
TRACE: Final = "contracts/requirements/trace.yaml"

ID: Final = re.compile(r"\b(?:ORCH-\d{4}|OC-[A-Z]+(?:-[A-Z]+)?-\d{4})\b")
#: The first line of a normative statement: `- **ORCH-2001** (M): The ingress MUST ...`.
STATEMENT: Final = re.compile(r"^\s*[-*] \*\*(?P<id>(?:ORCH|OC)-[A-Z0-9-]+)\*\* \((?P<level>[MSO])\):", re.MULTILINE)
#: The arguments of `@pytest.mark.req(...)`.
MARKER: Final = re.compile(r"mark\.req\(([^()]*)\)")

#: Whose mention of an ID counts as code that satisfies it.
CODE_ROOTS: Final = ("contracts", "orchestrator", "adapters", "policies")
CODE_SUFFIXES: Final = (".py", ".yaml", ".json")


def source_files(root: Path = ROOT) -> list[str]:
    """Every file of the project as a sorted relative path: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sorted(name for name in listed.split("\0") if name and (root / name).is_file())


def known_ids(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """ID to `level` and `title`."""
    loaded: dict[str, dict[str, str]] = yaml.safe_load((root / IDS).read_text())
    return loaded


class Trace:
    """What one reading of the project found, by ID."""

    def __init__(self, root: Path = ROOT) -> None:
        self.known = known_ids(root)
        self.statements: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.tests: dict[str, set[str]] = defaultdict(set)
        self.code: dict[str, set[str]] = defaultdict(set)
        self.unknown: set[tuple[str, str]] = set()
        for name in source_files(root):
            self._read(root, name)

    def _read(self, root: Path, name: str) -> None:
        top = name.split("/", 1)[0]
        if name in (IDS, TRACE) or not name.endswith((*CODE_SUFFIXES, ".md", ".feature")):
            return
        text = (root / name).read_text(encoding="utf-8")
        found = set(ID.findall(text))
        self.unknown |= {(name, id_) for id_ in found - self.known.keys()}
        if top == ".specs":
            for match in STATEMENT.finditer(text):
                self.statements[match["id"]].append((name, match["level"]))
        elif top == "tests":
            marked = text if name.endswith(".feature") else " ".join(MARKER.findall(text))
            for id_ in ID.findall(marked):
                self.tests[id_].add(name)
        elif top in CODE_ROOTS and name.endswith(CODE_SUFFIXES):
            for id_ in found:
                self.code[id_].add(name)

    def problems(self) -> list[str]:
        """Every broken rule, in words."""
        found = [f"{name} names {id_}, which {IDS} does not hold" for name, id_ in sorted(self.unknown)]
        for id_, places in sorted(self.statements.items()):
            for name, level in places:
                if id_ in self.known and level != self.known[id_]["level"]:
                    found.append(f"{name} states {id_} as ({level}), {IDS} as ({self.known[id_]['level']})")
                if level == "M" and id_ not in self.tests:
                    found.append(f"{id_} is a must ({name}) and no test is marked with it")
        return found

    def table(self) -> dict[str, Any]:
        """What trace.yaml holds: every ID that a spec states, a test names or code mentions."""
        rows: dict[str, Any] = {}
        for id_, about in self.known.items():
            spec = sorted({name for name, _ in self.statements.get(id_, [])})
            tests, code = sorted(self.tests.get(id_, ())), sorted(self.code.get(id_, ()))
            if spec or tests or code:
                rows[id_] = {**about, "spec": spec, "tests": tests, "code": code}
        return rows

    def text(self) -> str:
        """trace.yaml, byte for byte."""
        head = "# Made by `make trace`; do not edit. ID, level, title, spec, tests, code.\n"
        return head + yaml.safe_dump(self.table(), sort_keys=True, width=110)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.trace", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference or a broken rule")
    check = parser.parse_args(arguments).check
    trace = Trace(root)
    problems = trace.problems()
    target = root / TRACE
    if check and (not target.exists() or target.read_text() != trace.text()):
        problems.append(f"{TRACE} is out of date: run `make trace`")
    if not check:
        target.write_text(trace.text())
    for problem in problems:
        sys.stderr.write(f"trace: {problem}\n")
    sys.stdout.write(f"trace: {len(trace.table())} IDs, {len(trace.statements)} stated, {len(problems)} problems\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
