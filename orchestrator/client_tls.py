"""Whose certificates the client believes: the host's authorities, or those of a file (`--ca`, LLORCH_CA)."""

import os
import ssl
from typing import Final

import aiohttp

CA_VARIABLE: Final = "LLORCH_CA"

StrPath = str | os.PathLike[str]


def trust(ca_file: StrPath | None) -> ssl.SSLContext | bool:
    """How servers are checked, as aiohttp takes it. Raises OSError for a file that holds no authority."""
    named = ca_file or os.environ.get(CA_VARIABLE)
    return ssl.create_default_context(cafile=named) if named else True


def connector(ca_file: StrPath | None) -> aiohttp.TCPConnector:
    """What makes the client's connections. Raises OSError as `trust` does."""
    return aiohttp.TCPConnector(ssl=trust(ca_file))
