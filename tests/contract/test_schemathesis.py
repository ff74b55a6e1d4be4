"""Generated requests, good and bad: every answer is one that the OpenAPI documents describe."""

from typing import Any

import jsonschema
import msgspec
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from contracts.api import End
from contracts.gateway import Tokens
from contracts.openapi_examples import STARTED
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import CONTROL_PLANE_DOCUMENT, DATA_PLANE_DOCUMENT
from tests.unit.ingress.asgi import KEY, SETTINGS, parse_sse
from tests.unit.ingress.fake_gateway import FakeGateway

DOCUMENT: dict[str, Any] = yaml.safe_load(DATA_PLANE_DOCUMENT.read_text(encoding="utf-8"))
CONTROL: dict[str, Any] = yaml.safe_load(CONTROL_PLANE_DOCUMENT.read_text(encoding="utf-8"))


def body_conformance(context: Any, response: Any, case: Any) -> bool | None:
    """JSON by the shipped check. That one takes a stream for a list of objects, so events are checked here."""
    if "text/event-stream" not in response.headers.get("content-type", [""])[0]:
        return checks.response_schema_conformance(context, response, case)
    events = DOCUMENT["paths"]["/v1/tasks/{id}/stream"]["get"]["responses"]["200"]["x-sse-events"]
    for _, name, data in parse_sse(response.content.decode()):
        jsonschema.validate(data, {"components": DOCUMENT["components"], **events[name]["data"]})
    return None


# Of the shipped checks, those that compare an answer with the document.
CONFORMANCE = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    body_conformance,
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
]


def plain_integers(value: Any) -> Any:
    """1.0 as 1: JSON Schema holds both for an integer, the data plane takes integers as they are written."""
    if isinstance(value, dict):
        return {key: plain_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def service() -> Any:
    """Both planes over a fake gateway that finishes every task at once and knows every model."""
    gateway = FakeGateway()
    gateway.models.clear()
    gateway.script = [STARTED, Tokens(0, [" A", " queue"]), End(2, 35, "stop", 9)]
    return build_app(gateway, msgspec.structs.replace(SETTINGS, body_max_bytes=4 * 1024 * 1024))


schema = schemathesis.openapi.from_dict(DOCUMENT)
control_schema = schemathesis.openapi.from_dict(CONTROL)
schema.app = control_schema.app = service()
generated = settings(
    max_examples=12,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.req("ORCH-2001", "ORCH-2002", "ORCH-2003", "ORCH-2006", "OC-CTRL-2030", "OC-CTRL-2052")
@schema.parametrize()
@seed(20)
@generated
def test_answers_conform_to_the_document(case: Any) -> None:
    conform(case)


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2103", "ORCH-2104", "ORCH-3095", "ORCH-3096", "OC-CTRL-2030")
@control_schema.parametrize()
@seed(20)
@generated
def test_answers_conform_to_the_control_planes_document(case: Any) -> None:
    conform(case)


def conform(case: Any) -> None:
    """Send the request with a key and compare the answer with the document."""
    case.headers = {**(case.headers or {}), "Authorization": f"Bearer {KEY}"}
    case.body = plain_integers(case.body)
    case.call_and_validate(checks=CONFORMANCE)
