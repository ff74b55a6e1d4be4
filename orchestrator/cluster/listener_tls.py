"""The certificate of the ingress replicas' own port, which is renewed while the port is in use (OC-CTRL-2040)."""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Final

import msgspec
import structlog

POLL_S: Final = 1.0

log = structlog.get_logger(__name__)


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files; with `client_ca_file` clients must show a certificate that it signed."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def all(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(path for path in (self.cert_file, self.key_file, self.client_ca_file) if path is not None)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and later. Raises OSError (ssl.SSLError is one) for files that are missing or do not go together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A key with a passphrase would be asked for on the terminal; there is none to ask.
    context.load_cert_chain(files.cert_file, files.key_file, password=lambda: b"")
    if files.client_ca_file is not None:
        context.load_verify_locations(files.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Certificate:
    """`context` is for connections that begin now; those that are open keep theirs."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = self._signature()
        self._said = ""
        self.context = server_context(files)

    async def watch(self) -> None:
        """Follow the files until cancelled. What cannot be used is logged, and the certificate in use stays."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                renewed = await asyncio.to_thread(self._renewed)
            except OSError as error:
                if str(error) != self._said:
                    log.error("tls_certificate_unusable", cert_file=str(self._files.cert_file), why=str(error))
                self._said = str(error)
                continue
            if renewed is not None:
                self.context = renewed
                self._said = ""
                log.info("tls_certificate_loaded", cert_file=str(self._files.cert_file))

    def _renewed(self) -> ssl.SSLContext | None:
        """A context of the files as they are now, None if they are those that were seen; runs on any thread.

        Files that change one after the other do not go together in between: they are tried until they do.
        """
        signature = self._signature()
        if signature == self._seen:
            return None
        context = server_context(self._files)
        self._seen = signature
        return context

    def _signature(self) -> list[tuple[int, int, int]]:
        """What tells one state of the files from the next. Raises OSError."""
        found = [os.stat(path) for path in self._files.all()]
        return [(one.st_ino, one.st_mtime_ns, one.st_size) for one in found]
