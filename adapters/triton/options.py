"""Arguments of a pool that are for the adapter and never reach the server.

- `--llorch-transport=grpc|http`: how completions are asked for. gRPC is the default: its streams say that they are
  complete. Over HTTP the regular end of the response is all there is.
- `--llorch-grpc=HOST:PORT` or `unix:/path`: where the gRPC service of an attached server is; by default the port
  after that of `endpoint`.
- `--llorch-metrics=HOST:PORT` or `unix:/path`: where its metrics are; by default the second port after it.
- `--llorch-models=NAME,NAME`: models of the repository that are loaded beside the pool's, where its configuration does
  not name all those that it calls.
- `--llorch-mode=triton|trtllm-serve`: which server. The second is in beta, see `trtllm_serve`; none of the others is
  for it.
"""

import re
from typing import Final, Literal

from msgspec import Struct

from adapters.errors import engine_error
from adapters.exchange import Address
from adapters.triton.protocol import ENGINE
from contracts.engine import EngineError, EngineSpec

_PREFIX: Final = "--llorch-"
_MODEL_NAME: Final = re.compile(r"\w[\w.-]*")


class Options(Struct, frozen=True):
    """What the adapter was told, and the arguments that are left for the server."""

    mode: Literal["triton", "trtllm-serve"]
    transport: Literal["grpc", "http"]
    grpc: Address | None
    metrics: Address | None
    models: tuple[str, ...]
    args: tuple[str, ...]


def read_options(spec: EngineSpec) -> Options:
    """The options in `spec.args`. Raises EngineError (INVALID_PARAMS) for one that is not known."""
    told: dict[str, str] = {}
    for argument in spec.args:
        if argument.startswith(_PREFIX):
            name, _, value = argument.removeprefix(_PREFIX).partition("=")
            told[name] = value
    unknown = sorted(told.keys() - {"transport", "grpc", "metrics", "models", "mode"})
    if unknown:
        raise _refused(spec, f"--llorch-{unknown[0]} is not known; there is transport, grpc, metrics, models, mode")
    mode = told.get("mode", "triton")
    if mode not in ("triton", "trtllm-serve"):
        raise _refused(spec, f"--llorch-mode={mode} is not known; use triton or trtllm-serve")
    transport = told.get("transport", "grpc")
    if transport not in ("grpc", "http"):
        raise _refused(spec, f"--llorch-transport={transport} is not known; use grpc or http")
    return Options(
        mode="triton" if mode == "triton" else "trtllm-serve",
        transport="grpc" if transport == "grpc" else "http",
        grpc=_address(spec, told["grpc"]) if "grpc" in told else None,
        metrics=_address(spec, told["metrics"]) if "metrics" in told else None,
        models=_models(spec, told["models"]) if "models" in told else (),
        args=tuple(argument for argument in spec.args if not argument.startswith(_PREFIX)),
    )


def _models(spec: EngineSpec, text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not all(_MODEL_NAME.fullmatch(name) for name in names):
        raise _refused(spec, f"{text!r} names no models; give names of the repository's folders, with commas between")
    return tuple(dict.fromkeys(name for name in names if name != spec.model))


def _address(spec: EngineSpec, text: str) -> Address:
    if text.startswith("unix:"):
        return Address(socket_path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _refused(spec, f"{text!r} is no address; give HOST:PORT or unix:/path")
    return Address(host=host.strip("[]"), port=int(port))


def _refused(spec: EngineSpec, why: str) -> EngineError:
    return engine_error("INVALID_PARAMS", f"pool {spec.pool_id}: {why}", engine=ENGINE, retriable=False)
