"""The toy model's text: what the tests of Triton rest on."""

import importlib.util
from types import ModuleType

import pytest

from adapters.triton.repository import TOY_REPOSITORY


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_text", TOY_REPOSITORY / "llorch_text" / "1" / "toy_text.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(toy: ModuleType, max_tokens: int = 60, seed: int = 1, stops: tuple[str, ...] = (), **sampling: float) -> str:
    text = toy.Text("prompt", max_tokens, seed, toy.Sampling(**sampling), stops)
    made = ""
    while not text.finish_reason:
        made += text.step()
    return made


@pytest.mark.req("ORCH-3045")
def test_a_seed_is_a_text(toy: ModuleType) -> None:
    assert write(toy) == write(toy) != write(toy, seed=2)
    assert write(toy)[:10] == write(toy, max_tokens=200)[:10]


def test_it_has_characters_of_every_length_in_bytes(toy: ModuleType) -> None:
    whole = "".join(write(toy, seed=seed) for seed in range(30))
    assert {len(character.encode()) for character in whole} == {1, 2, 3, 4}


def test_the_sampler_listens(toy: ModuleType) -> None:
    assert write(toy, seed=1, temperature=0.0) == write(toy, seed=2, temperature=0.0)
    assert write(toy, seed=1, top_k=1) == write(toy, seed=2, top_k=1)
    assert write(toy, seed=1, top_p=0.0001) == write(toy, seed=2, top_p=0.0001)
    for name, value in (("repetition_penalty", 1.5), ("presence_penalty", 1.0), ("frequency_penalty", 0.5)):
        assert write(toy, **{name: value}) != write(toy)


def test_a_stop_string_stays_in_the_text(toy: ModuleType) -> None:
    whole = write(toy)
    cut = write(toy, stops=(whole[15:18],))
    assert whole.startswith(cut)
    assert whole[15:18] in cut


def test_tokens_of_a_prompt_are_the_whole_prompt(toy: ModuleType) -> None:
    prompt = "Hällo, 日本!\n two  spaces 🌊 and a veryverylongword"
    assert "".join(toy.tokenize(prompt)) == prompt
