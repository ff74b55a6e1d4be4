"""The shape of a sampler profile: defaults under the API's names, and a column for each engine."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

#: Values with which a parameter does nothing: an engine without the parameter can honour them.
OFF: Final[dict[str, float]] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class SamplerDefaults(Struct, frozen=True):
    """Engine-neutral defaults, under the names of `contracts.api.Sampling`."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float


class EngineColumn(Struct, frozen=True):
    """How one engine is told.

    `names` maps the API's parameters to the engine's; what has no name there the engine cannot do. `fixed` is what
    else shapes a token and must not be left to the engine. Seeds are folded below `seeds`. Parameters with their
    value in `left_out` are not sent, and at temperature 0 `greedy` is sent as well. `bias_pairs`: biases are pairs
    of token id and bias, instead of an object.
    """

    names: Mapping[str, str]
    fixed: Mapping[str, object]
    seeds: int
    stops_max: int | None = None
    left_out: Mapping[str, float] = {}
    greedy: Mapping[str, object] = {}
    bias_pairs: bool = False
