"""API keys (ORCH-3035, OC-CTRL-2040): missing is 401, wrong is 403. Keys are never logged or kept (OC-CTRL-2041)."""

import hashlib
import hmac
from typing import Final, NamedTuple

from contracts.errors import OrchError
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.settings import IngressSettings, Key

#: Whose tasks they are when authentication is off.
DEFAULT_TENANT: Final = "default"


class Caller(NamedTuple):
    """Whose request it is; `client` is the name of the key, "" without one."""

    tenant: str
    client: str


class Authenticator:
    """From request headers to a caller."""

    def __init__(self, settings: IngressSettings) -> None:
        self._enabled = settings.auth_enabled
        self._keys: dict[str, Key] = {key.sha256: key for key in settings.keys}

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Tenant and name of the presented key. Raises OrchError UNAUTHENTICATED or FORBIDDEN.

        The digest is looked up, so timing tells at most about digests, and compared in constant time.
        """
        if not self._enabled:
            return Caller(DEFAULT_TENANT, "")
        presented = _presented(headers)
        if not presented:
            raise _missing()
        digest = hashlib.sha256(presented).hexdigest()
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest):
            raise refuse("FORBIDDEN", "This API key is not known here. Check the key, or ask the operator for one.")
        return Caller(key.tenant, key.name)


def _presented(headers: dict[bytes, bytes]) -> bytes:
    """The key of `Authorization: Bearer`, which wins, or of `X-API-Key`."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key", b"").strip()


def _missing() -> OrchError:
    return refuse("UNAUTHENTICATED", "An API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
