"""TLS between nodes, where Ray has it (OC-CTRL-2040).

`RAY_USE_TLS=1` with `RAY_TLS_SERVER_CERT`, `RAY_TLS_SERVER_KEY` and `RAY_TLS_CA_CERT` encrypts Ray's own connections;
the channel's TCP connections use the same files. Both sides show their certificate and check the other's: its
authority, and that it is for the address that was dialled. Unix sockets stay as they are: they do not leave the host.
"""

import os
import ssl
from typing import Final

USE: Final = "RAY_USE_TLS"
CERT: Final = "RAY_TLS_SERVER_CERT"
KEY: Final = "RAY_TLS_SERVER_KEY"
CA: Final = "RAY_TLS_CA_CERT"


class ChannelTlsError(RuntimeError):
    """TLS is asked for and cannot be had. Nothing falls back to plain connections."""


def server_context() -> ssl.SSLContext | None:
    """For listening; None where Ray runs without TLS. Raises ChannelTlsError."""
    return _context(ssl.PROTOCOL_TLS_SERVER)


def client_context() -> ssl.SSLContext | None:
    """For dialling; None where Ray runs without TLS. Raises ChannelTlsError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(side: int) -> ssl.SSLContext | None:
    if os.environ.get(USE, "0").lower() not in ("1", "true"):
        return None
    missing = [name for name in (CERT, KEY, CA) if not os.environ.get(name)]
    if missing:
        raise ChannelTlsError(f"{USE} is set, and {', '.join(missing)} is not: set it on every node, or unset {USE}")
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # A key with a passphrase would be asked for on the terminal; there is none to ask.
        context.load_cert_chain(os.environ[CERT], os.environ[KEY], password=lambda: b"")
        context.load_verify_locations(os.environ[CA])
    except OSError as error:
        raise ChannelTlsError(f"{CERT}, {KEY} or {CA} cannot be used: {error}") from None
    return context
