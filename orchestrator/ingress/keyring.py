"""The API keys that are valid now: those of the configuration, and those of the keys file (ORCH-3035)."""

import hmac
from collections.abc import Callable, Iterable
from typing import Final

from contracts.config import KeyRole
from contracts.errors import ErrorInfo, OrchError
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.settings import ALL_ROLES, Key

#: Whose requests they are when authentication is off: they may do everything, and belong to one tenant.
ANYONE: Final = Key("", "default", "", ALL_ROLES)

#: Told to who has a stream open with a key that may no longer have it.
REVOKED: Final = ErrorInfo(
    "FORBIDDEN", "This API key was revoked, or may no longer read streams. Ask the operator.", retriable=False
)


class Keyring:
    """Keys by digest. `replace` takes over what the keys file says now and tells who asked to hear of it."""

    def __init__(self, configured: Iterable[Key]) -> None:
        self._configured = {key.sha256: key for key in configured}
        self._keys = dict(self._configured)
        self._listeners: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def configured(self) -> tuple[Key, ...]:
        """Keys that stay as long as the process does."""
        return tuple(self._configured.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each change."""
        self._listeners.append(listener)

    def replace(self, from_file: Iterable[Key]) -> None:
        """Valid are the configured keys and these, from now on."""
        self._keys = {key.sha256: key for key in from_file} | self._configured
        for listener in self._listeners:
            listener()

    def find(self, digest: str) -> Key | None:
        """The key of a digest. Looking it up tells timing at most about digests; comparing takes constant time."""
        key = self._keys.get(digest)
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None

    def still_allows(self, key: Key, role: KeyRole) -> bool:
        """Whether what was found before is valid now, for the same tenant and with this role."""
        if key is ANYONE:
            return True
        now = self._keys.get(key.sha256)
        return now is not None and now.tenant == key.tenant and role in now.roles


def require(key: Key, role: KeyRole | None) -> None:
    """Raise OrchError FORBIDDEN unless the key has the role (OC-CTRL-2040). None: every key will do."""
    if role is not None and role not in key.roles:
        raise lacking(role)


def lacking(role: KeyRole) -> OrchError:
    """The refusal of a key that is known and may not do this."""
    return refuse("FORBIDDEN", f"This API key may not do this: it needs the role `{role}`. Ask the operator for one.")
