"""The suite's command line, on the fake engine: two real processes, killed and started again."""

from pathlib import Path

import pytest

from adapters.testing.determinism.__main__ import main, parse_arguments, plan_of
from adapters.testing.determinism.subjects import Changes, specs_of
from adapters.testing.determinism.tasks import PLAN_DEFAULT, PLAN_FULL
from adapters.testing.fake_model import write_fake_model
from tests.unit.adapters.quick_start import FAKE_LLAMA, write_engine


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that make the suite run on fakes."""
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    return [
        *("--engine", "llamacpp", "--model", "fake", "--model-path", str(write_fake_model(tmp_path / "model.gguf"))),
        *("--binary", str(write_engine(tmp_path, FAKE_LLAMA)), "--batch-invariant", "yes"),
        *("--slots", "2", "--seeds", "2"),
        *("--args", "--fake-token-ms 3", "--out", str(tmp_path / "out")),
    ]


@pytest.mark.req("ORCH-3050", "OC-TEST-7001")
def test_a_run_of_two_processes_is_green_and_printed(fake: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fake) == 0
    text = capsys.readouterr().out
    for part in (
        "llama.cpp fake-llama-server 1 on ",
        "failover",
        "1 kills, ",
        "pinned for the first time",
        "byte-exact",
    ):
        assert part in text
    assert "not applicable: cache of a part (reuse): the engine reports no cached tokens" in text
    assert text.splitlines()[-1].endswith(" 0 differences, 0 engines red")


def test_a_model_that_is_not_there_is_no_verdict(fake: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fake[fake.index("--model-path") + 1] = "missing.gguf"
    assert main(fake) == 2
    assert "missing.gguf" in capsys.readouterr().err


def test_an_engine_without_a_default_has_to_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", "tgi"]) == 2
    assert "tgi has no default here" in capsys.readouterr().err


def test_plans_follow_the_command_line() -> None:
    assert plan_of(parse_arguments([])) == PLAN_DEFAULT
    assert plan_of(parse_arguments(["--full"])) == PLAN_FULL
    small = plan_of(parse_arguments(["--seeds", "3", "--prompt", "long", "--scenario", "restart"]))
    assert (len(small.seeds), small.prompts, small.scenarios) == (3, ("long",), ("restart",))


def test_replicas_differ_in_where_they_are_alone() -> None:
    changes = Changes(
        model="m", accelerator="gpu", devices=(("0",), ("1",)), endpoints=("http://a:1", "http://b:1"), slots=3
    )
    a, b = specs_of("tgi", changes)
    assert (a.devices, a.endpoint, a.slots) == (("0",), "http://a:1", 3)
    assert (b.devices, b.endpoint, b.slots) == (("1",), "http://b:1", 3)
    assert (a.replica_id, b.replica_id) == ("determinism-0", "determinism-1")
    alone = specs_of("llamacpp", Changes(endpoints=("unix:/run/x",)))
    assert alone[0].endpoint == alone[1].endpoint == "unix:/run/x"
    assert specs_of("triton", Changes())[0].model == "llorch_text"
