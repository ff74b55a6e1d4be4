"""Loading and checking the configuration file."""

import stat
from pathlib import Path

import pytest

from contracts.config import Config
from orchestrator.configfile import ConfigError, development_config, load
from tests.unit.config.config_kit import POOL, good, only, pair, place, problems, warned


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_unknown_fields_are_refused_with_place_and_hint() -> None:
    problem = only(POOL + "    replcas: 2\n")
    assert place(problem) == (6, 5)
    assert problem.message == "unknown field `replcas`"
    assert problem.hint == "did you mean `replicas`?"
    assert str(problem) == "f.yaml:6:5: unknown field `replcas`"


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_compat_turns_unknown_fields_into_warnings() -> None:
    loaded = good(POOL + "    replcas: 2\n    queue: {depth: 3}\nunknown_fields: compat\nserver: {prt: 1, port: 9}\n")
    assert loaded.config.server.port == 9
    unknown = [warning for warning in loaded.warnings if warning.message.startswith("unknown field")]
    assert [place(warning) for warning in unknown] == [(6, 5), (7, 13), (9, 10)]


@pytest.mark.req("ORCH-3030", "OC-CONFIG-6001")
def test_compat_still_refuses_wrong_values() -> None:
    text = POOL + "    replcas: 2\n    slots: many\nunknown_fields: compat\n"
    assert only(text).message == "`slots` should be a valid integer"


@pytest.mark.req("ORCH-3030")
def test_all_problems_come_at_once_in_the_files_order() -> None:
    text = """\
pools:
  - id: a
    engine: lamacpp
    model: m
    ctx: 0
  - id: b
    engine: vllm
    model: x
    tensor_split: [0.4, 0.4]
    id: c
server: {port: 99999, prot: 1}
auth: {keys: [{name: k, tenant: t}]}
"""
    found = problems(text)
    assert [place(problem) for problem in found] == sorted(place(problem) for problem in found)
    told = "\n".join(str(problem) for problem in found)
    for expected in (
        "3:13: `engine` must be 'llamacpp', 'vllm', 'tgi' or 'triton', not `lamacpp`",
        "5:10: `ctx` should be greater than or equal to 1",
        "6:5: pool `b` runs on GPUs but lists no devices",
        "8:12: pool `b` names no model_path, and `x` is not a bundled model",
        "9:19: tensor_split has 2 ratios for 0 devices",
        "9:19: tensor_split sums to 0.800",
        "10:5: `id` is given twice (first in line 6)",
        "11:16: `port` should be less than or equal to 65534",
        "11:23: unknown field `prot`",
        "12:15: `sha256` is missing",
    ):
        assert f"f.yaml:{expected}" in told
    assert len(found) == 10


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("pools: [\n", 2, "not YAML"),
        ("pools:\n\t- id: a\n", 2, "not YAML"),
        ("", 1, "the file is empty"),
        ("- a\n", 1, "the file must be a mapping"),
        ("pools: []\n", 1, "`pools`"),
        ("pools: &a\n  - *a\n", 1, "too deeply nested"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
        (POOL + "1: x\n", 6, "a key must be text"),
        (POOL + '    ctx: "2048"\n', 6, "`ctx` should be a valid integer"),
        (POOL + "    quant: 4\n", 6, "`quant` must be text, not a number"),
        (POOL + "    id: a\n", 6, "`id` is given twice"),
        (POOL + "server: 8000\n", 6, "`server`"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, line: int, message: str) -> None:
    problem = only(text)
    assert problem.line == line
    assert message in problem.message


def test_off_is_a_word_and_not_a_boolean() -> None:
    loaded = good(POOL + "    preemption: {mode: off}\n")
    assert loaded.config.pools[0].preemption.mode == "off"


def test_a_file_full_of_aliases_is_refused_quickly() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert "too many" in only("\n".join(lines) + "\n").message


@pytest.mark.req("ORCH-1101", "ORCH-3018")
def test_gpu_without_devices_never_falls_back_to_the_cpu() -> None:
    problem = only("pools:\n  - {id: a, engine: llamacpp, model: smollm2-135m-instruct}\n")
    assert "lists no devices" in problem.message
    assert "accelerator: cpu-dev" in problem.hint


@pytest.mark.req("ORCH-1101")
def test_the_cpu_carve_out_is_told_of() -> None:
    assert any("development carve-out" in warning.message for warning in good(POOL).warnings)


@pytest.mark.req("ORCH-3005")
def test_a_class_capacity_over_the_pools_is_refused() -> None:
    text = POOL + "    queue: {capacity: 4}\n    admission: {priorities: [{name: batch, queue_capacity: 5}]}\n"
    assert place(only(text)) == (7, 60)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ("queue: {full_policy: reject}", "queue: {full_policy: drop-lru}", "queue.full_policy"),
        ("queue: {full_policy: reject}", "slots: 4", "queue.full_policy"),
        ("timeouts: {wall_ms: 1}", "timeouts: {wall_ms: 2}", "timeouts.wall_ms"),
        ("timeouts: {idle_ms: 1}", "timeouts: {idle_ms: 2}", "timeouts.idle_ms"),
    ],
)
def test_pools_of_one_set_must_agree(first: str, second: str, named: str) -> None:
    assert named in only(pair(first, second)).message
    good(pair(first, f"{second}\n    ctx: 4096"))


def test_ids_and_keys_are_unique() -> None:
    assert "pool id `a` is given twice" in only(POOL + POOL.removeprefix("pools:\n")).message
    key = f"{{name: k, tenant: t, sha256: {'ab' * 32}}}"
    found = problems(f"{POOL}auth: {{keys: [{key}, {key}]}}\n")
    assert [problem.message for problem in found] == ["two keys have the same name", "two keys have the same sha256"]


@pytest.mark.req("ORCH-3012")
@pytest.mark.parametrize(
    ("split", "is_good"),
    [("[0.67, 0.33]", True), ("[0.66, 0.33]", True), ("[0.5, 0.48]", False), ("[0.5, 0.25, 0.25]", False)],
)
def test_tensor_split_needs_a_ratio_for_each_device_and_sums_to_one(split: str, is_good: bool) -> None:
    text = POOL.replace("cpu-dev", "gpu") + f"    devices: [0, 1]\n    tensor_split: {split}\n"
    if is_good:
        assert not any("tensor_split" in warning.message for warning in good(text).warnings)
    else:
        assert place(only(text)) == (7, 19)


def test_files_must_exist_and_be_usable(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("")
    file = tmp_path / "f.yaml"
    file.write_text(POOL + "    model_path: no.gguf\n    engine_options: {binary: server}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    told = [problem.message.replace(str(tmp_path), "") for problem in caught.value.problems]
    assert told == ["model file /no.gguf does not exist", "engine binary /server is not executable"]
    (tmp_path / "no.gguf").write_text("")
    (tmp_path / "server").chmod((tmp_path / "server").stat().st_mode | stat.S_IXUSR)
    pool = load(file).config.pools[0]
    assert (pool.model_path, pool.engine_options.binary) == (tmp_path / "no.gguf", tmp_path / "server")


def test_a_model_that_is_not_bundled_needs_a_file() -> None:
    assert "is not a bundled model" in only(POOL.replace("smollm2-135m-instruct", "other")).message


def test_a_missing_file_is_a_problem_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read: No such file"):
        load(tmp_path / "no.yaml")


def test_what_is_not_enforced_yet_is_told_of() -> None:
    told = warned(POOL + "    preload: false\ncatalog: {trust_policy: {mode: strict}}\n")
    assert "`preload: false` does nothing yet: pools always preload" in told
    assert "`catalog` is accepted but not enforced in this release" in told


@pytest.mark.req("OC-CONFIG-6001")
def test_what_is_enforced_is_not_called_later() -> None:
    text = (
        POOL
        + """\
    zone: b
    preemption: {mode: hard, per_task_max: 1}
    price: {prompt_per_1k: 1, output_per_1k: 2}
    admission:
      ordering: fifo
      eviction: lru
      on_time_percent_min: 0
      breaker: {probes: 1}
      priorities: [{name: batch, weight: 2, rate_limit_rps: 1, slo_first_token_ms: 5}]
      fairness: {kind: strict, unknown_tenants: default, default: {weight: 2}, tenants: [{id: t, kv_mb: 1}]}
sessions: {ttl_ms: 1, turns_max: 1, sessions_max: 1, budget: {tokens: 1, time_ms: 1, cost: 1}}
auth: {rate: {rps: 1, burst: 1}}
"""
    )
    assert [message for message in warned(text) if "later" in message or "not enforced" in message] == []


@pytest.mark.req("OC-CONFIG-6001")
def test_an_entry_of_a_list_is_named_by_its_list() -> None:
    problem = only(POOL + "    devices: [0, -1]\n")
    assert problem.message == "`devices[1]` should be greater than or equal to 0"


@pytest.mark.req("ORCH-3035")
def test_missing_keys_and_switched_off_authentication_are_told_of() -> None:
    assert any("no API keys" in warning.message for warning in good(POOL).warnings)
    off = good(POOL + "auth: {enabled: false}\n")
    assert any("authentication is off" in warning.message for warning in off.warnings)


def test_the_built_in_configuration_is_the_example(root: Path) -> None:
    built_in = development_config().config
    assert isinstance(built_in, Config)
    assert load(root / "examples/dev.yaml").config == built_in
