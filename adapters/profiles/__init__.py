"""Sampler profiles: every parameter that shapes a token is pinned here by version (OC-ADAPT-5010, ORCH-3058).

An engine's own defaults never apply: they change between its releases and would change what a seed means.
"""

from collections.abc import Container, Mapping
from typing import Final

from adapters.errors import engine_error
from adapters.profiles import v1
from adapters.profiles.table import OFF, EngineColumn, SamplerDefaults
from contracts.api import Sampling
from contracts.engine import EngineError

PROFILES: Final[dict[str, tuple[SamplerDefaults, dict[str, EngineColumn]]]] = {"v1": (v1.DEFAULTS, v1.ENGINES)}

_TOKEN_ID_DIGITS_MAX: Final = 10


def parameters(
    engine: str, version: str, sampling: Sampling | None, seed: int, *, available: Container[str] | None = None
) -> dict[str, object]:
    """All sampling parameters of a request, under the engine's names.

    `available` are the engine's names that the running model takes, where models differ (None: all). A default that
    an engine or model has no parameter for is left out; what a request asks for must be there.
    Raises EngineError (INVALID_PARAMS) for an unknown profile, for what the engine cannot do, for more stop strings
    than it takes, and for a `logit_bias` key that is no token id.
    """
    defaults, column = _profile(engine, version)
    told: dict[str, object] = dict(column.fixed)
    for name in SamplerDefaults.__struct_fields__:
        asked = getattr(sampling, name, None)
        value = getattr(defaults, name) if asked is None else asked
        if not _is_possible(column, name, available):
            if asked is not None and asked != OFF.get(name):
                raise _refused(engine, f"it has no parameter `{name}`; leave it out")
        elif column.left_out.get(name) != value:
            told[column.names[name]] = value
    if (sampling.temperature if sampling else None) == 0:
        told.update(_greedy(engine, column, available))
    told[column.names["seed"]] = seed % column.seeds
    for name, listed in (("stop", _stops(engine, column, sampling)), ("logit_bias", _biases(engine, column, sampling))):
        if _is_possible(column, name, available):
            told[column.names[name]] = listed
        elif listed:
            raise _refused(engine, f"it has no parameter `{name}`; leave it out")
    return told if available is None else {name: value for name, value in told.items() if name in available}


def _profile(engine: str, version: str) -> tuple[SamplerDefaults, EngineColumn]:
    if version not in PROFILES:
        known = ", ".join(sorted(PROFILES))
        message = f"unknown sampler_profile_version {version!r}; known: {known}"
        raise engine_error("INVALID_PARAMS", message, engine=engine, retriable=False)
    defaults, columns = PROFILES[version]
    return defaults, columns[engine]


def _is_possible(column: EngineColumn, name: str, available: Container[str] | None) -> bool:
    return name in column.names and (available is None or column.names[name] in available)


def _greedy(engine: str, column: EngineColumn, available: Container[str] | None) -> Mapping[str, object]:
    lacking = [name for name in column.greedy if available is not None and name not in available]
    if lacking:
        raise _refused(engine, f"temperature 0 needs the parameter `{lacking[0]}`, which it lacks; send another one")
    return column.greedy


def _stops(engine: str, column: EngineColumn, sampling: Sampling | None) -> list[str]:
    stops = (sampling.stop if sampling else None) or []
    if column.stops_max is not None and len(stops) > column.stops_max:
        raise _refused(engine, f"it takes {column.stops_max} stop strings and the request has {len(stops)}; send fewer")
    return stops


def _biases(engine: str, column: EngineColumn, sampling: Sampling | None) -> object:
    biases = (sampling.logit_bias if sampling else None) or {}
    # An engine may read a key that is no number as text and bias each of its tokens.
    wrong = [key for key in biases if not (key.isascii() and key.isdigit() and len(key) <= _TOKEN_ID_DIGITS_MAX)]
    if wrong:
        message = f"logit_bias maps token ids to biases; {wrong[0]!r:.80} is no token id"
        raise engine_error("INVALID_PARAMS", message, engine=engine, retriable=False)
    return [[int(key), bias] for key, bias in biases.items()] if column.bias_pairs else biases


def _refused(engine: str, why: str) -> EngineError:
    message = f"the engine {engine} cannot do what `sampling` asks for: {why}"
    return engine_error("INVALID_PARAMS", message, engine=engine, retriable=False)
