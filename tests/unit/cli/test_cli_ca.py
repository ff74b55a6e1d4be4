"""`--ca`: whose certificates the command line believes."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.client_tls import CA_VARIABLE, trust
from tests.unit.cluster.certificates import Authority


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CA_VARIABLE, "")  # so that what a command sets is undone


@pytest.mark.req("OC-CTRL-2040")
def test_the_option_and_the_variable_name_the_authorities(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert trust(None) is True
    result = CliRunner().invoke(app, ["--ca", str(authority.ca_file), "status", "--url", "https://127.0.0.1:9"])
    assert result.exit_code == 3
    assert os.environ[CA_VARIABLE] == str(authority.ca_file)
    context = trust(None)
    assert not isinstance(context, bool)
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("text", [None, "not a certificate"])
def test_a_file_without_an_authority_is_wrong_usage(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(app, ["--ca", str(path), "status", "--url", "https://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "--ca" in result.output
