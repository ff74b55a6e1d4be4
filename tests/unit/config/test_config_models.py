"""Rules about models: what pools start with, what they may be reloaded to, and the files of both."""

import os
from pathlib import Path

import pytest

from orchestrator.configfile import ConfigError, load
from tests.unit.config.config_kit import POOL, good, only, pair, place, scheduled, warned

DIGEST = f"sha256:{'0a' * 32}"
OTHER = f"sha256:{'0b' * 32}"


def models(*entries: str) -> str:
    return f"models: [{', '.join(f'{{{entry}}}' for entry in entries)}]\n"


@pytest.mark.req("ORCH-3031", "OC-CONFIG-6001")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("engine: llamacpp, path: p", "`ref` is missing"),
        ("ref: r, path: p", "`engine` is missing"),
        ("ref: r, engine: llamacpp", "`path` is missing"),
        ("ref: '', engine: llamacpp, path: p", "`ref` should have at least 1 character"),
        ("ref: r, engine: llama, path: p", "`engine` must be"),
        ("ref: r, engine: llamacpp, path: p, digest: abc", "`digest` should match pattern"),
        ("ref: r, engine: llamacpp, path: p, ctx: 5", "unknown field `ctx`"),
        (f"ref: '{DIGEST}', engine: llamacpp, path: p", "cannot name a model"),
    ],
)
def test_an_entry_names_a_model_an_engine_and_a_file(entry: str, message: str) -> None:
    problem = only(POOL + models(entry))
    assert message in problem.message
    assert place(problem)[0] == 6


def test_a_digest_is_no_name_for_a_pools_model_either() -> None:
    problem = only(POOL.replace("smollm2-135m-instruct", f"'{DIGEST}'") + "    model_path: m.gguf\n")
    assert problem.message == f"`{DIGEST}` cannot name a model: tasks ask for files by their digests so"


@pytest.mark.req("ORCH-3031")
def test_a_name_is_given_once_for_each_engine() -> None:
    problem = only(POOL + models("ref: r, engine: llamacpp, path: p", "ref: r, engine: llamacpp, path: q"))
    assert problem.message == "model `r` of llamacpp is given twice"
    assert place(problem) == (6, 53)
    good(POOL + models("ref: r, engine: llamacpp, path: p", "ref: r, engine: vllm, path: q"))


@pytest.mark.req("ORCH-3031")
def test_a_name_means_one_file() -> None:
    own = POOL.replace("smollm2-135m-instruct", "m") + f"    model_path: m.gguf\n    model_digest: '{DIGEST}'\n"
    good(own + models("ref: m, engine: llamacpp, path: m.gguf"))
    good(own + models(f"ref: m, engine: llamacpp, path: m.gguf, digest: '{DIGEST}'"))
    assert only(own + models("ref: m, engine: llamacpp, path: n.gguf")).message == (
        "model `m` is n.gguf here and m.gguf in pool `a`"
    )
    assert only(own + models(f"ref: m, engine: llamacpp, path: m.gguf, digest: '{OTHER}'")).message == (
        "model `m` has another digest in pool `a`"
    )
    bundled = only(POOL + models("ref: smollm2-135m-instruct, engine: llamacpp, path: n.gguf"))
    assert bundled.message == "model `smollm2-135m-instruct` is n.gguf here and the bundled file in pool `a`"


@pytest.mark.req("ORCH-3007", "ORCH-3046")
def test_pools_of_one_set_do_not_promise_different_files() -> None:
    problem = only(pair(f"model_digest: '{DIGEST}'", f"model_digest: '{OTHER}'"))
    assert problem.message == "pools `a` and `b` form one replica set but differ in model_digest"
    good(pair(f"model_digest: '{DIGEST}'", "slots: 4"))
    good(pair(f"model_digest: '{DIGEST}'", f"model_digest: '{OTHER}'\n    quant: q8_0"))


def test_models_without_a_pool_are_told_of() -> None:
    told = warned(POOL + models("ref: r, engine: vllm, path: p"))
    assert [message for message in told if "reloaded" in message] == [
        "no pool has engine vllm: nothing can be reloaded to `r`"
    ]
    assert not any("reloaded" in message for message in warned(POOL + models("ref: r, engine: llamacpp, path: p")))


def test_files_of_models_must_exist_and_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.yaml"
    text = POOL + models("ref: r, engine: llamacpp, path: sub/no.gguf", "ref: s, engine: llamacpp, path: secret.gguf")
    file.write_text(text)
    secret = tmp_path / "secret.gguf"
    secret.write_text("")
    readable = os.access

    def access(path: str | Path, mode: int) -> bool:
        """Root may read everything, so that a file's mode alone would not tell."""
        return Path(path) != secret and readable(path, mode)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [problem.message for problem in caught.value.problems] == [
        f"model file {tmp_path}/sub/no.gguf does not exist",
        f"model file {secret} cannot be read",
    ]
    loaded = load(file, files=False).config
    assert [model.path for model in loaded.models] == [tmp_path / "sub/no.gguf", secret]


@pytest.mark.req("ORCH-3031")
def test_the_scheduler_knows_what_pools_may_be_reloaded_to() -> None:
    text = pair("model_path: p.gguf", "model_path: q.gguf").replace("smollm2-135m-instruct", "own", 1)
    built = scheduled(text + models("ref: next, engine: llamacpp, path: n", "ref: own, engine: llamacpp, path: p.gguf"))
    assert built.models == {"llamacpp": ("next", "own", "smollm2-135m-instruct")}
    assert scheduled(POOL).models == {"llamacpp": ("smollm2-135m-instruct",)}
