"""`llorch hash-key`: an entry that can be pasted, and a key that is shown once."""

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.ingress.keys_file import read_keys
from orchestrator.ingress.settings import Key


def hash_key(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["hash-key", *arguments], input=stdin)


@pytest.mark.req("ORCH-3035", "OC-CTRL-2041")
def test_a_key_of_ones_own_is_hashed_and_not_repeated(tmp_path: Path) -> None:
    own = "a-key-of-my-own-choosing"
    result = hash_key("--name", "web", "--tenant", "team-a", "--role", "submit", "--role", "observe", stdin=own + "\n")
    assert own not in result.output
    path = tmp_path / "keys.yaml"
    path.write_text(result.stdout)
    digest = hashlib.sha256(own.encode()).hexdigest()
    assert read_keys(path) == (Key("web", "team-a", digest, ("submit", "observe")),)


@pytest.mark.req("ORCH-3035")
def test_a_key_is_made_where_none_is_given_and_entries_add_up_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    digests = []
    with path.open("w") as file:
        for name in ("one", "two"):
            result = hash_key("--name", name)
            made = result.stderr.split()[-1]
            assert made.startswith("llk_")
            assert len(made) > 40
            assert made not in result.stdout
            digests.append(hashlib.sha256(made.encode()).hexdigest())
            file.write(result.stdout)
    assert [(key.name, key.sha256, key.roles) for key in read_keys(path)] == [
        ("one", digests[0], ("submit",)),
        ("two", digests[1], ("submit",)),
    ]
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ([], "short\n", "16 characters"),
        (["--role", "emperor"], "", "--roles"),
        (["--name", "No Spaces"], "", "--name"),
        (["--tenant", ""], "", "--tenant"),
    ],
)
def test_what_would_not_be_taken_is_refused(arguments: list[str], stdin: str, said: str) -> None:
    result = hash_key(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
