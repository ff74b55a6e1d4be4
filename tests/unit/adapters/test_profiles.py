import pytest

from adapters.profiles import PROFILES, parameters
from contracts.api import Sampling
from contracts.engine import EngineError


@pytest.mark.req("OC-ADAPT-5010", "ORCH-3045")
def test_v1_pins_every_default() -> None:
    sent = parameters("llamacpp", "v1", None, seed=7)
    assert sent == {
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_keep": 0,
        "n_probs": 0,
        "ignore_eos": False,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_n_sigma": -1.0,
        "typical_p": 1.0,
        "xtc_probability": 0.0,
        "repeat_last_n": 64,
        "dry_multiplier": 0.0,
        "mirostat": 0,
        "adaptive_target": -1.0,
        "grammar": "",
        "n_keep": 0,
        "n_indent": 0,
        "seed": 7,
        "stop": [],
        "logit_bias": [],
    }


@pytest.mark.req("OC-ADAPT-5010")
def test_overrides_replace_only_what_they_name() -> None:
    chosen = Sampling(temperature=0.0, top_k=0, stop=["a"], logit_bias={"5": -100.0})
    sent = parameters("llamacpp", "v1", chosen, seed=0)
    assert (sent["temperature"], sent["top_k"], sent["top_p"]) == (0.0, 0, 0.95)
    assert sent["stop"] == ["a"]
    assert sent["logit_bias"] == [[5, -100.0]]


def test_every_sampling_field_has_a_default_or_a_mapping() -> None:
    assert set(Sampling.__struct_fields__) == {*PROFILES["v1"][0].__struct_fields__, "stop", "logit_bias"}


@pytest.mark.req("ORCH-3045")
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1])
def test_no_seed_becomes_the_engines_random_one(seed: int) -> None:
    sent = parameters("llamacpp", "v1", None, seed)["seed"]
    assert isinstance(sent, int)
    assert 0 <= sent < 2**32 - 1
    if seed < 2**32 - 1:
        assert sent == seed


@pytest.mark.parametrize(
    ("version", "sampling"),
    [("v0", None), ("v1", Sampling(logit_bias={"word": 1.0})), ("v1", Sampling(logit_bias={"²": 1.0}))],
)
def test_what_cannot_be_mapped_is_refused(version: str, sampling: Sampling | None) -> None:
    with pytest.raises(EngineError) as raised:
        parameters("llamacpp", version, sampling, seed=1)
    assert raised.value.info.code == "INVALID_PARAMS"
    assert raised.value.info.retriable is False
