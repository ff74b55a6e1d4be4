"""Sampler profiles: every parameter that shapes a token is pinned here by version (OC-ADAPT-5010).

An engine's own defaults never apply: they change between its releases and would change what a
seed means. A version, once released, is never edited; a new table gets a new version.
"""

from typing import Final

from msgspec import Struct

from adapters.errors import engine_error
from contracts.api import Sampling


class SamplerProfile(Struct, frozen=True):
    """Engine-neutral defaults, under the names of `contracts.api.Sampling`."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float


PROFILES: Final[dict[str, SamplerProfile]] = {
    "v1": SamplerProfile(
        temperature=0.8,
        top_p=0.95,
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    ),
}

_LLAMACPP_FIXED: Final[dict[str, dict[str, object]]] = {
    "v1": {
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
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
    },
}

_OVERRIDABLE: Final = SamplerProfile.__struct_fields__

#: The engine reads the highest 32-bit seed as "make one up", so seeds are folded below it.
_LLAMACPP_SEEDS: Final = 2**32 - 1


def llamacpp_parameters(version: str, sampling: Sampling | None, seed: int) -> dict[str, object]:
    """All sampling parameters of a llama.cpp completion.

    Seeds below 2**32 - 1 are passed as they are, longer ones folded onto that range.
    Raises EngineError (INVALID_PARAMS) for an unknown profile or a `logit_bias` key that is no token id.
    """
    profile = PROFILES.get(version)
    if profile is None:
        known = ", ".join(sorted(PROFILES))
        raise engine_error(
            "INVALID_PARAMS",
            f"unknown sampler_profile_version {version!r}; known: {known}",
            engine="llamacpp",
            retriable=False,
        )
    parameters: dict[str, object] = dict(_LLAMACPP_FIXED[version])
    for name in _OVERRIDABLE:
        chosen = getattr(sampling, name, None)
        parameters[name] = getattr(profile, name) if chosen is None else chosen
    parameters["seed"] = seed % _LLAMACPP_SEEDS
    parameters["stop"] = (sampling.stop if sampling else None) or []
    parameters["logit_bias"] = _token_biases((sampling.logit_bias if sampling else None) or {})
    return parameters


def _token_biases(biases: dict[str, float]) -> list[list[float | int]]:
    # The engine would read a key that is no number as text and bias each of its tokens.
    wrong = [key for key in biases if not (key.isascii() and key.isdigit())]
    if wrong:
        raise engine_error(
            "INVALID_PARAMS",
            f"logit_bias maps token ids to biases; {wrong[0]!r} is no token id",
            engine="llamacpp",
            retriable=False,
        )
    return [[int(key), bias] for key, bias in biases.items()]
