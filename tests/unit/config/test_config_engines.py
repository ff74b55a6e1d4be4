"""Engines that run already, models that are folders, and strict pools whose slots stay empty."""

from pathlib import Path

import pytest

from contracts.pools import ReplicaOrder
from orchestrator.configfile import loads
from orchestrator.specs import spec_for
from tests.unit.config.config_kit import POOL, good, only, pool, problems, warned

ENDPOINT = "engine_options: {endpoint: 'http://host:8080'}"


def attached(*lines: str) -> str:
    return "pools:\n" + pool("a", ENDPOINT, *lines).replace("llamacpp", "tgi")


@pytest.mark.req("OC-CONFIG-6002")
@pytest.mark.parametrize("endpoint", ["host:8080", "https://host:1", "http://host", "http://host:1/v1", "unix:"])
def test_an_endpoint_has_a_form(endpoint: str) -> None:
    text = "pools:\n" + pool("a", f"engine_options: {{endpoint: '{endpoint}'}}")
    assert "`endpoint` should match pattern" in only(text).message


def test_an_endpoint_is_one_replica() -> None:
    good(attached())
    assert only(attached("replicas: 2")).message == "pool `a` has up to 2 replicas and one endpoint"
    assert only(attached("scaling: {max: 3}")).message == "pool `a` has up to 3 replicas and one endpoint"


def test_an_endpoint_is_not_launched() -> None:
    for option in ("binary: x", "env: {A: b}"):
        text = attached().replace("8080'}", f"8080', {option}}}")
        assert "and `endpoint` names one that runs" in only(text).message


def test_an_endpoint_has_one_pool() -> None:
    second = pool("b", ENDPOINT).replace("llamacpp", "tgi")
    assert only(attached() + second).message == "pools `a` and `b` use one engine, http://host:8080"


@pytest.mark.parametrize("again", ["http://HOST:8080", "http://host:8080/"])
def test_one_place_has_one_spelling(again: str) -> None:
    second = pool("b", f"engine_options: {{endpoint: '{again}'}}").replace("llamacpp", "tgi")
    assert "use one engine, http://host:8080" in only(attached() + second).message


@pytest.mark.parametrize("endpoint", ["http://host:99999", "http://user:secret@host:80", "http://host:0"])
def test_what_cannot_be_an_endpoint_is_told_and_not_repeated(endpoint: str) -> None:
    problem = only(attached().replace("http://host:8080", endpoint))
    assert problem.message == "`endpoint` is not `http://host:port`"
    assert "secret" not in problem.hint


def test_a_key_is_for_an_endpoint() -> None:
    assert "no `endpoint`" in only("pools:\n" + pool("a", "engine_options: {api_key_env: KEY}")).message


def test_variables_have_names() -> None:
    assert only("pools:\n" + pool("a", "engine_options: {env: {'A-B': x}}")).message


@pytest.mark.req("ORCH-3055")
def test_the_spec_has_it_all() -> None:
    text = "pools:\n" + pool("a", "engine_options: {env: {B: x, A: y}}", "batch_invariant: true", "workload: embedding")
    spec = spec_for(good(text).config, ReplicaOrder("a-0", 1, "a", "smollm2-135m-instruct"))
    assert spec.env == (("A", "y"), ("B", "x"))
    assert (spec.batch_invariant, spec.workload, spec.determinism, spec.endpoint) == (True, "embedding", "strict", "")


@pytest.mark.parametrize("engine", ["vllm", "tgi", "triton"])
def test_models_that_are_folders(engine: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = POOL.replace("llamacpp", engine).replace("smollm2-135m-instruct", "m")
    loads(text + f"    model_path: {tmp_path}\n", "f.yaml", base=Path(), files=True)
    (problem,) = problems(text + f"    model_path: {tmp_path / 'file'}\n", files=True)
    assert problem.message == f"model folder {tmp_path / 'file'} does not exist"


@pytest.mark.req("ORCH-3045", "ORCH-3050")
@pytest.mark.parametrize(
    ("engine", "lines", "serial"),
    [
        ("llamacpp", (), False),
        ("llamacpp", ("engine_options: {args: ['-t', '2']}",), True),
        ("llamacpp", ("engine_options: {args: ['-t', '2']}", "batch_invariant: true"), False),
        ("llamacpp", ("engine_options: {args: ['-t', '2']}", "determinism: best_effort"), False),
        ("llamacpp", ("engine_options: {args: ['-t', '2']}", "slots: 1"), False),
        ("llamacpp", ("engine_options: {env: {LLAMA_ARG_KV_UNIFIED: '1'}}",), True),
        ("llamacpp", ("workload: embedding",), True),
        ("llamacpp", ("workload: embedding", "determinism: best_effort"), False),
        ("llamacpp", ("workload: rerank", "determinism: best_effort"), True),
        ("vllm", (), True),
        ("vllm", ("determinism: best_effort",), False),
        ("tgi", ("model_path: m",), True),
        ("triton", ("model_path: m",), False),
    ],
)
def test_slots_that_stay_empty_are_told(engine: str, lines: tuple[str, ...], serial: bool) -> None:
    told = warned("pools:\n" + pool("a", *lines).replace("llamacpp", engine))
    assert any("one task at a time" in line for line in told) is serial


def test_vllm_on_gpus_can_be_told_to_be_invariant() -> None:
    text = POOL.replace("llamacpp", "vllm").replace("cpu-dev", "gpu") + "    model_path: m\n    devices: [0]\n"
    assert any("one task at a time" in line for line in warned(text))
    assert not any(
        "one task at a time" in line
        for line in warned(text + "    engine_options: {env: {VLLM_BATCH_INVARIANT: '1'}}\n")
    )
