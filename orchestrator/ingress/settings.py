"""What the ingress is configured with; the composition root fills it from the configuration file."""

from pathlib import Path
from typing import Final, get_args

import msgspec

import contracts
from contracts.config import KeyRole

#: The frozen OpenAPI documents, as they lie beside the contracts.
_OPENAPI: Final = Path(contracts.__file__).parent / "openapi"
DATA_PLANE_DOCUMENT: Final = _OPENAPI / "data-plane.yaml"
CONTROL_PLANE_DOCUMENT: Final = _OPENAPI / "control-plane.yaml"

ALL_ROLES: Final[tuple[KeyRole, ...]] = get_args(KeyRole)


class Key(msgspec.Struct, frozen=True):
    """An API key by its digest: `sha256` is lower-case hex of the key's bytes, the key itself is not kept."""

    name: str
    tenant: str
    sha256: str
    roles: tuple[KeyRole, ...] = ("submit",)


class IngressSettings(msgspec.Struct, frozen=True):
    """`cancel_timeout_ms` bounds the clean-up after a client that went away.

    `streams_max` bounds the streams that one key has open here; `trusted_proxies` are networks in CIDR notation.
    """

    auth_enabled: bool = True
    keys: tuple[Key, ...] = ()
    keys_file: Path | None = None
    protect_metrics: bool = False
    trusted_proxies: tuple[str, ...] = ()
    body_max_bytes: int = 4 * 1024 * 1024
    request_timeout_ms: int = 30_000
    streams_max: int = 1_000
    keepalive_ms: int = 15_000
    cancel_timeout_ms: int = 5_000
    openapi_path: Path = DATA_PLANE_DOCUMENT
    control_openapi_path: Path = CONTROL_PLANE_DOCUMENT
