"""What profile v1 means for each engine, and what an engine cannot do is refused and never dropped."""

from typing import Any

import pytest

from adapters.profiles import PROFILES, parameters
from contracts.api import Sampling
from contracts.engine import EngineError

ENGINES = sorted(PROFILES["v1"][1])


def sent(engine: str, seed: int = 7, available: list[str] | None = None, **sampling: Any) -> dict[str, object]:
    return parameters(engine, "v1", Sampling(**sampling) if sampling else None, seed, available=available)


def refusal(engine: str, available: list[str] | None = None, **sampling: Any) -> str:
    with pytest.raises(EngineError) as raised:
        sent(engine, available=available, **sampling)
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)
    return raised.value.info.message


@pytest.mark.req("OC-ADAPT-5010", "OC-ADAPT-5020")
def test_vllm_defaults_are_pinned() -> None:
    assert sent("vllm") == {
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "logit_bias": {},
        "seed": 7,
        "n": 1,
        "echo": False,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "ignore_eos": False,
        "min_tokens": 0,
        "stop_token_ids": [],
        "bad_words": [],
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "add_special_tokens": True,
    }


@pytest.mark.req("OC-ADAPT-5010", "OC-ADAPT-5040")
def test_tgi_defaults_are_pinned() -> None:
    assert sent("tgi") == {
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "stop": [],
        "seed": 7,
        "do_sample": True,
        "typical_p": None,
        "best_of": None,
        "truncate": None,
        "watermark": False,
        "return_full_text": False,
        "decoder_input_details": False,
        "details": True,
        "top_n_tokens": None,
        "grammar": None,
        "adapter_id": None,
    }


@pytest.mark.req("OC-ADAPT-5010", "OC-ADAPT-5060")
def test_triton_gets_what_the_model_declares() -> None:
    assert sent("triton", available=["temperature", "top_k", "seed", "stop_words"]) == {
        "temperature": 0.8,
        "top_k": 40,
        "seed": 7,
        "stop_words": [],
    }


@pytest.mark.req("ORCH-3058")
@pytest.mark.parametrize(
    ("engine", "available", "asked"),
    [
        ("tgi", None, {"min_p": 0.1}),
        ("tgi", None, {"presence_penalty": 0.5}),
        ("tgi", None, {"logit_bias": {"5": 1.0}}),
        ("triton", None, {"logit_bias": {"5": 1.0}}),
        ("triton", ["seed"], {"temperature": 0.5}),
        ("triton", ["seed"], {"top_k": 5}),
        ("triton", ["seed"], {"stop": ["x"]}),
    ],
)
def test_what_an_engine_lacks_is_refused(engine: str, available: list[str] | None, asked: dict[str, Any]) -> None:
    message = refusal(engine, available, **asked)
    assert next(iter(asked)) in message
    assert "leave it out" in message


@pytest.mark.parametrize("engine", ["tgi", "triton"])
def test_asking_for_nothing_is_no_asking(engine: str) -> None:
    off = {"min_p": 0.0, "presence_penalty": 0.0, "stop": [], "logit_bias": {}}
    assert sent(engine, available=["seed"] if engine == "triton" else None, **off)["seed"] == 7


@pytest.mark.parametrize("count", [4, 5])
def test_tgi_takes_four_stop_strings(count: int) -> None:
    stops = [str(n) for n in range(count)]
    if count <= 4:
        assert sent("tgi", stop=stops)["stop"] == stops
    else:
        assert "send fewer" in refusal("tgi", stop=stops)


def test_greedy_in_each_engines_way() -> None:
    assert [sent(engine, temperature=0.0)["temperature"] for engine in ("llamacpp", "vllm")] == [0.0, 0.0]
    tgi = sent("tgi", temperature=0.0)
    assert ("temperature" in tgi, tgi["do_sample"], tgi["top_k"], tgi["top_p"]) == (False, False, None, None)
    triton = sent("triton", temperature=0.0)
    assert (triton["temperature"], triton["top_k"]) == (1.0, 1)


@pytest.mark.req("ORCH-3058")
def test_greedy_is_refused_where_the_model_cannot_be_told() -> None:
    assert "top_k" in refusal("triton", ["temperature", "seed"], temperature=0.0)
    assert sent("triton", available=["temperature", "top_k", "seed"], temperature=0.0)["top_k"] == 1
    assert sent("triton", available=["temperature", "seed"], temperature=0.5)["temperature"] == 0.5


@pytest.mark.parametrize("key", ["12345678901", "9" * 5000])
def test_a_number_too_long_for_a_token_id_is_refused(key: str) -> None:
    assert "no token id" in refusal("llamacpp", None, logit_bias={key: 1.0})


def test_tgi_is_not_sent_what_it_refuses() -> None:
    off = sent("tgi", top_p=1.0, top_k=0, repeat_penalty=1.0, frequency_penalty=0.0)
    assert not {"top_p", "top_k", "repetition_penalty", "frequency_penalty"} & off.keys()


@pytest.mark.req("ORCH-3045")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1])
def test_seeds_reach_every_engine(engine: str, seed: int) -> None:
    told = sent(engine, seed)["seed"]
    assert isinstance(told, int)
    assert 0 <= told <= seed


@pytest.mark.parametrize("engine", ENGINES)
def test_biases_go_by_token_id(engine: str) -> None:
    assert "no token id" in refusal(engine, logit_bias={"word": 1.0})
