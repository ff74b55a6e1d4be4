"""API keys (ORCH-3035, OC-CTRL-2040): missing is 401, wrong is 403, too many of either 429.

Keys are never logged or kept (OC-CTRL-2041).
"""

import hashlib

import msgspec

from contracts.errors import ErrorInfo, OrchError
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.failures import Addresses, FailureLimit
from orchestrator.ingress.http import Request
from orchestrator.ingress.keyring import ANYONE, Keyring
from orchestrator.ingress.settings import IngressSettings, Key


class Authenticator:
    """From a request to its key."""

    def __init__(self, settings: IngressSettings, keyring: Keyring) -> None:
        self._enabled = settings.auth_enabled
        self._keyring = keyring
        self._failures = FailureLimit()
        self._addresses = Addresses(settings.trusted_proxies)

    def key_of(self, request: Request) -> Key:
        """The key that was presented. Raises OrchError UNAUTHENTICATED, FORBIDDEN or ADMISSION_REJECT."""
        if not self._enabled:
            return ANYONE
        presented = _presented(request.headers)
        if presented:
            key = self._keyring.find(hashlib.sha256(presented).hexdigest())
            if key is not None:
                return key
        too_early_ms = self._failures.failed(self._addresses.of(request.scope))
        raise _too_many(too_early_ms) if too_early_ms else _unknown() if presented else _missing()


def _presented(headers: dict[bytes, bytes]) -> bytes:
    """The key of `Authorization: Bearer`, which wins, or of `X-API-Key`."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key", b"").strip()


def _missing() -> OrchError:
    return refuse("UNAUTHENTICATED", "An API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`.")


def _unknown() -> OrchError:
    return refuse("FORBIDDEN", "This API key is not known here. Check the key, or ask the operator for one.")


def _too_many(retry_after_ms: int) -> OrchError:
    message = "Too many requests without a valid API key came from this address. Wait, and check the key."
    info = ErrorInfo("ADMISSION_REJECT", message, retriable=True, policy_label="reject")
    return OrchError(msgspec.structs.replace(info, retry_after_ms=retry_after_ms))
