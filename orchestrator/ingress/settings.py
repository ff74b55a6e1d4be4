"""What the ingress is configured with; the composition root fills it from the configuration file."""

from pathlib import Path
from typing import Final

import msgspec

import contracts

#: The frozen OpenAPI document of the data plane, as it lies beside the contracts.
DATA_PLANE_DOCUMENT: Final = Path(contracts.__file__).parent / "openapi" / "data-plane.yaml"


class Key(msgspec.Struct, frozen=True):
    """An API key by its digest: `sha256` is lower-case hex of the key's bytes, the key itself is not kept."""

    name: str
    tenant: str
    sha256: str


class IngressSettings(msgspec.Struct, frozen=True):
    """`cancel_timeout_ms` bounds the clean-up after a client that went away."""

    auth_enabled: bool = True
    keys: tuple[Key, ...] = ()
    body_max_bytes: int = 4 * 1024 * 1024
    keepalive_ms: int = 15_000
    cancel_timeout_ms: int = 5_000
    openapi_path: Path = DATA_PLANE_DOCUMENT
