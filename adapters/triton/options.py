"""Arguments of a pool that are for the adapter and never reach the server.

- `--llorch-transport=grpc|http`: how completions are asked for. gRPC is the default: its streams say that they are
  complete. Over HTTP the regular end of the response is all there is.
- `--llorch-grpc=HOST:PORT` or `unix:/path`: where the gRPC service of an attached server is; by default the port
  after that of `endpoint`.
- `--llorch-metrics=HOST:PORT` or `unix:/path`: where its metrics are; by default the second port after it.
- `--llorch-mode=triton`: the only mode that this release has.
"""

from typing import Final, Literal

from msgspec import Struct

from adapters.errors import engine_error
from adapters.exchange import Address
from adapters.triton.protocol import ENGINE
from contracts.engine import EngineError, EngineSpec

_PREFIX: Final = "--llorch-"


class Options(Struct, frozen=True):
    """What the adapter was told, and the arguments that are left for the server."""

    transport: Literal["grpc", "http"]
    grpc: Address | None
    metrics: Address | None
    args: tuple[str, ...]


def read_options(spec: EngineSpec) -> Options:
    """The options in `spec.args`. Raises EngineError (INVALID_PARAMS) for one that is not known."""
    told: dict[str, str] = {}
    for argument in spec.args:
        if argument.startswith(_PREFIX):
            name, _, value = argument.removeprefix(_PREFIX).partition("=")
            told[name] = value
    unknown = sorted(told.keys() - {"transport", "grpc", "metrics", "mode"})
    if unknown:
        raise _refused(spec, f"--llorch-{unknown[0]} is not known; there is transport, grpc, metrics, mode")
    if told.get("mode", "triton") != "triton":
        raise _refused(spec, f"--llorch-mode={told['mode']} is not in this release; leave it out")
    transport = told.get("transport", "grpc")
    if transport not in ("grpc", "http"):
        raise _refused(spec, f"--llorch-transport={transport} is not known; use grpc or http")
    return Options(
        transport="grpc" if transport == "grpc" else "http",
        grpc=_address(spec, told["grpc"]) if "grpc" in told else None,
        metrics=_address(spec, told["metrics"]) if "metrics" in told else None,
        args=tuple(argument for argument in spec.args if not argument.startswith(_PREFIX)),
    )


def _address(spec: EngineSpec, text: str) -> Address:
    if text.startswith("unix:"):
        return Address(socket_path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _refused(spec, f"{text!r} is no address; give HOST:PORT or unix:/path")
    return Address(host=host.strip("[]"), port=int(port))


def _refused(spec: EngineSpec, why: str) -> EngineError:
    return engine_error("INVALID_PARAMS", f"pool {spec.pool_id}: {why}", engine=ENGINE, retriable=False)
