"""What the client raises besides the service's own errors."""

import msgspec

from contracts.errors import ErrorInfo, OrchError


class CannotConnectError(Exception):
    """Nothing answers at the URL."""


class NotTheServiceError(CannotConnectError):
    """Something else answers in the place of the service, as a proxy does while that is being started."""


class StreamBrokenError(Exception):
    """A connection ended before the stream's `end` or `error` event."""


def refusal(status: int, body: bytes) -> Exception:
    """The envelope in a response; where there is none, something else answered in the place of the service.

    A proxy does so with a 5xx while the service behind it is not there, or with a 404 while it starts itself.
    """
    try:
        return OrchError(msgspec.json.decode(body, type=ErrorInfo))
    except msgspec.DecodeError:
        kind = NotTheServiceError if status == 404 or status >= 500 else CannotConnectError
        return kind(f"HTTP {status} without an error envelope: is this the right URL?")
