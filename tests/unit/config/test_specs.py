"""What an ordered replica runs: its pool's options, its own GPUs, and the file of the model that was ordered."""

import functools
import pickle

import pytest

from contracts.engine import EngineSpec
from contracts.pools import ReplicaOrder
from orchestrator.configfile import development_config
from orchestrator.specs import SpecError, spec_for
from tests.unit.config.config_kit import good

DIGEST = f"sha256:{'0a' * 32}"
TEXT = f"""\
pools:
  - {{id: a, engine: llamacpp, model: m, model_path: /m/q4.gguf, model_digest: '{DIGEST}', quant: q4, ctx: 4096,
     slots: 6, devices: [1, 3], tensor_split: [0.75, 0.25], zone: hall-1, sampler_profile_version: v2,
     engine_options: {{binary: /bin/engine, args: [--flag, x], ready_timeout_ms: 7}}}}
  - {{id: b, engine: llamacpp, model: m, model_path: /m/q8.gguf, quant: q8, devices: [0]}}
  - {{id: c, engine: llamacpp, model: other, model_path: /m/other.gguf, quant: q8, devices: [2]}}
  - {{id: d, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, devices: [0]}}
models:
  - {{ref: next, engine: llamacpp, path: /m/next.gguf, digest: '{DIGEST}'}}
"""


def spec(pool_id: str, model_ref: str, devices: tuple[int, ...] = (0,)) -> EngineSpec:
    return spec_for(good(TEXT).config, ReplicaOrder(f"{pool_id}-4", 2, pool_id, model_ref, "n1", devices))


@pytest.mark.req("ORCH-3001", "ORCH-3011", "ORCH-3012", "OC-POOL-3020")
def test_a_replica_runs_what_its_pool_says_on_the_gpus_of_its_order() -> None:
    assert spec("a", "m", (1, 3)) == EngineSpec(
        engine="llamacpp",
        pool_id="a",
        replica_id="a-4",
        incarnation=2,
        model="m",
        model_ref="m",
        model_path="/m/q4.gguf",
        model_digest=DIGEST,
        ctx=4096,
        slots=6,
        accelerator="gpu",
        sampler_profile_version="v2",
        binary="/bin/engine",
        args=("--flag", "x"),
        devices=("1", "3"),
        tensor_split=(0.75, 0.25),
        ready_timeout_ms=7,
        zone="hall-1",
    )


@pytest.mark.req("ORCH-3011", "ORCH-1101")
def test_an_order_without_a_node_reserves_the_whole_mask_and_the_cpu_none() -> None:
    assert spec("a", "m", ()).devices == ("1", "3")
    assert spec("d", "smollm2-135m-instruct", ()).devices == ()


@pytest.mark.req("ORCH-3031")
@pytest.mark.parametrize(
    ("pool_id", "model_ref", "path", "digest"),
    [
        ("a", "m", "/m/q4.gguf", DIGEST),
        ("b", "m", "/m/q8.gguf", ""),
        ("b", "next", "/m/next.gguf", DIGEST),
        ("a", "other", "/m/other.gguf", ""),
        ("c", "m", "/m/q8.gguf", ""),  # of two quants of it, the pool's own
        ("d", "m", "/m/q4.gguf", DIGEST),  # of none: the first
        ("d", "smollm2-135m-instruct", "", ""),
        ("a", "smollm2-135m-instruct", "", ""),
    ],
)
def test_a_model_is_found_by_its_name(pool_id: str, model_ref: str, path: str, digest: str) -> None:
    found = spec(pool_id, model_ref)
    assert (found.model_path, found.model_digest) == (path, digest)
    assert (found.model, found.model_ref) == (model_ref, model_ref)


def test_the_bundled_model_needs_no_pool_that_names_it() -> None:
    text = TEXT[: TEXT.index("  - {id: d")]
    order = ReplicaOrder("a-0", 0, "a", "smollm2-135m-instruct", "", (1, 3))
    assert spec_for(good(text).config, order).model_path == ""


def test_what_is_not_configured_is_told_with_what_is() -> None:
    with pytest.raises(SpecError, match="no pool `z`; it has: a, b, c, d"):
        spec("z", "m")
    with pytest.raises(SpecError, match="pool `a` has no model `n`; known for llamacpp: next, m, other, smollm2"):
        spec("a", "n")


def test_it_travels_to_the_pool_manager() -> None:
    config = development_config().config
    make_spec = pickle.loads(pickle.dumps(functools.partial(spec_for, config)))
    order = ReplicaOrder("dev-0", 0, "dev", "smollm2-135m-instruct")
    assert make_spec(order, "some node") == spec_for(config, order)
