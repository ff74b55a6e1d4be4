"""From a JSON body to a struct, with refusals that name the field and what to do (OC-CTRL-2010, OC-CTRL-2030)."""

from typing import Final, TypeVar, get_args

import msgspec

from contracts import api
from orchestrator.ingress.body_deadlines import BodyDeadlines, BodyTooSlow
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.http import BodyTooLarge, Request
from orchestrator.ingress.settings import IngressSettings

Body = TypeVar("Body")

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "workload": get_args(api.Workload),
    "engine": get_args(api.Engine),
    "priority": get_args(api.Priority),
    "determinism": get_args(api.Determinism),
    "role": get_args(api.Role),
    "kv_hint": ("reuse", "cold"),
}


class Bodies:
    """Reads bodies within the limits of an app."""

    def __init__(self, settings: IngressSettings) -> None:
        self._max_bytes = settings.body_max_bytes
        self._deadlines = BodyDeadlines(settings.request_timeout_ms)

    async def read(self, request: Request) -> bytes:
        """The request's body. Raises OrchError PAYLOAD_TOO_LARGE or INVALID_PARAMS, or ClientGone."""
        try:
            return await self._deadlines.within(lambda: request.read_body(self._max_bytes))
        except BodyTooLarge:
            message = f"The body is over {self._max_bytes} bytes. Send a shorter one."
            raise refuse("PAYLOAD_TOO_LARGE", message) from None
        except BodyTooSlow:
            # The rest of it would be taken for the next request.
            request.closing = True
            message = f"The body did not arrive within {self._deadlines.timeout_ms} ms. Send it without pauses."
            raise refuse("INVALID_PARAMS", message) from None


def read_json(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Decode and check a body. Raises OrchError INVALID_PARAMS."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refuse("INVALID_PARAMS", _explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse("INVALID_PARAMS", f"The body is not JSON in valid UTF-8: {error}. Send one JSON object.") from None


def _explain(problem: str) -> str:
    """Turn a decoder's complaint into "`$.field`: what is wrong; what to do"."""
    what, _, where = problem.partition(" - at ")
    where = where or "`$`"
    what = what[:1].lower() + what[1:]
    if "unknown field" in what:
        return f"{where}: {what}; remove it, or correct its name."
    if "missing required field" in what:
        return f"{where}: {what}; add it."
    choices = _CHOICES.get(where.strip("`").rpartition(".")[2])
    if choices and "enum" in what:
        return f"{where}: {what}; use one of {', '.join(choices)}."
    if what == "invalid UUID":
        return f"{where}: {what}; use the form 01234567-89ab-4cde-8f01-23456789abcd."
    return f"{where}: {what}."
