"""Where an attached server's other services are."""

import os
from urllib.parse import urlsplit

from adapters.errors import engine_error
from adapters.exchange import Address
from adapters.triton.options import Options
from adapters.triton.protocol import ENGINE
from contracts.engine import EngineSpec


def attached_grpc(spec: EngineSpec, options: Options) -> Address:
    """Where its gRPC service is, by convention the port after that of HTTP.

    Raises EngineError (INVALID_PARAMS) where nothing tells.
    """
    found = options.grpc or _port_after(spec, 1)
    if found is None:
        message = f"pool {spec.pool_id}: nothing tells where the gRPC service of {spec.endpoint} is; "
        message += "add --llorch-grpc=ADDRESS or --llorch-transport=http to the engine's arguments"
        raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
    return found


def attached_metrics(spec: EngineSpec, options: Options) -> Address | None:
    """Where its metrics are, by convention the second port after that of HTTP; None where nothing tells."""
    return options.metrics or _port_after(spec, 2)


def attached_key(spec: EngineSpec) -> str:
    """The key that the attached server asks for, empty where it asks for none."""
    return os.environ.get(spec.api_key_env, "") if spec.api_key_env else ""


def _port_after(spec: EngineSpec, steps: int) -> Address | None:
    parts = urlsplit(spec.endpoint)
    if parts.scheme != "http" or not parts.hostname or not parts.port or parts.port + steps > 65535:
        return None
    return Address(host=parts.hostname, port=parts.port + steps)
