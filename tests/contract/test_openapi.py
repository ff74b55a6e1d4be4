"""The frozen documents: regeneration changes nothing, they are valid, and every example in them is."""

import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from contracts import api, generate
from contracts import openapi_examples as ex
from contracts.errors import HTTP_STATUS, ErrorInfo
from contracts.gateway import Readiness
from contracts.openapi_source import SSE_SCHEMAS
from tests.unit.ingress.asgi import parse_sse

PATH = generate.HERE / "openapi" / "data-plane.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
TYPES = {
    "TaskRequest": api.TaskRequest,
    "Admission": api.Admission,
    "TaskStatus": api.TaskStatus,
    "Started": api.Started,
    "Token": api.Token,
    "Metrics": api.Metrics,
    "End": api.End,
    "Session": api.Session,
    "ErrorInfo": ErrorInfo,
    "Readiness": Readiness,
}


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    found: Any = DOCUMENT
    if "$ref" not in part:
        return part
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found  # type: ignore[no-any-return]


def check(schema: dict[str, Any], value: Any) -> None:
    """Against the document's schema, and through the type that the code decodes or encodes with."""
    whole = {"components": DOCUMENT["components"], **schema}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)
    name = schema["$ref"].rpartition("/")[2]
    decoded = msgspec.json.decode(json.dumps(value), type=TYPES[name])
    if name not in ("TaskRequest",):
        assert msgspec.json.decode(msgspec.json.encode(decoded)) == value


def json_examples() -> list[tuple[str, dict[str, Any], Any]]:
    found = []
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            answers = {status: resolve(answer) for status, answer in operation["responses"].items()}
            for where, part in {"request": operation.get("requestBody", {}), **answers}.items():
                content = part.get("content", {}).get("application/json", {})
                found += [
                    (f"{method} {path} {where} {name}", content["schema"], example["value"])
                    for name, example in content.get("examples", {}).items()
                ]
    return found


EXAMPLES = json_examples()


@pytest.mark.req("OC-CONFIG-6010", "ORCH-3044")
def test_regeneration_changes_nothing() -> None:
    assert generate.outdated() == []
    assert generate.main(["--check"]) == 0
    for render in generate.ARTEFACTS.values():
        assert render() == render()


@pytest.mark.req("OC-CONFIG-6010")
def test_a_stale_artefact_is_found_and_written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(generate, "ARTEFACTS", {tmp_path / "new" / "one.yaml": lambda: "a: 1\n"})
    assert generate.main(["--check"]) == 1
    assert "one.yaml" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "new" / "one.yaml").write_text("a: 2\n")
    assert generate.main(["--check"]) == 1


@pytest.mark.req("ORCH-3044")
def test_the_document_is_valid_and_has_the_apis_version() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == api.API_VERSION
    jsonschema.Draft202012Validator.check_schema(json.loads((generate.HERE / "config.schema.json").read_text()))


@pytest.mark.req("ORCH-2001", "ORCH-2006")
@pytest.mark.parametrize(("schema", "value"), [case[1:] for case in EXAMPLES], ids=[case[0] for case in EXAMPLES])
def test_every_json_example_is_what_it_says(schema: dict[str, Any], value: Any) -> None:
    check(schema, value)


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022")
@pytest.mark.parametrize(("path", "method"), [("/v1/tasks", "post"), ("/v1/tasks/{id}/stream", "get")])
def test_every_event_example_is_what_it_says(path: str, method: str) -> None:
    answer = DOCUMENT["paths"][path][method]["responses"]["200"]
    assert list(answer["x-sse-events"]) == ["started", "token", "metrics", "end", "error"]
    for name, event in answer["x-sse-events"].items():
        ((event_id, given, data),) = parse_sse(event["example"])
        assert given == name
        assert event["data"]["$ref"].endswith("/" + SSE_SCHEMAS[name])
        assert event_id == (str(data["i"]) if name == "token" else None)
        check(event["data"], data)
    whole = answer["content"]["text/event-stream"]["examples"]["stream"]["value"]
    for _, name, data in parse_sse(whole):
        check(answer["x-sse-events"][name]["data"], data)


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030", "ORCH-3025")
def test_every_code_has_a_status_and_an_example() -> None:
    codes = set(DOCUMENT["components"]["schemas"]["ErrorInfo"]["properties"]["code"]["enum"])
    assert codes == set(HTTP_STATUS) == set(ex.ERRORS)
    assert all(error.retriable is not None for error in ex.ERRORS.values())
    assert all(ex.ERRORS[code].policy_label for code, status in HTTP_STATUS.items() if status == 429)


@pytest.mark.req("ORCH-2007", "OC-CTRL-2052")
def test_every_answer_documents_its_headers() -> None:
    for item in DOCUMENT["paths"].values():
        for operation in (value for key, value in item.items() if key != "parameters"):
            for answer in map(resolve, operation["responses"].values()):
                assert "X-Correlation-Id" in answer["headers"]
    assert {"Retry-After", "X-Backoff-Ms"} <= resolve(DOCUMENT["paths"]["/v1/tasks"]["post"]["responses"]["429"])[
        "headers"
    ].keys()


@pytest.mark.req("ORCH-3044")
def test_every_operation_names_requirements_and_every_request_field_is_described() -> None:
    for item in DOCUMENT["paths"].values():
        for operation in (value for key, value in item.items() if key != "parameters"):
            assert operation["x-requirements"]
            assert all(re.fullmatch(r"(ORCH|OC-[A-Z]+)-\d{4}", name) for name in operation["x-requirements"])
    fields = DOCUMENT["components"]["schemas"]["TaskRequest"]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.req("ORCH-2008")
def test_the_schema_refuses_what_the_ingress_refuses() -> None:
    schema = {"components": DOCUMENT["components"], "$ref": "#/components/schemas/TaskRequest"}
    validator = jsonschema.Draft202012Validator(schema)
    good = ex.plain(ex.PROMPT)
    bare = {name: value for name, value in good.items() if name != "prompt"}
    messages = [{"role": "user", "content": "x"}]
    assert validator.is_valid(bare)
    assert validator.is_valid(bare | {"messages": messages})
    assert validator.is_valid(bare | {"workload": "rerank", "inputs": ["x"]})
    for bad in (
        good | {"engine": "other"},
        good | {"more": 1},
        good | {"ctx": 0},
        good | {"messages": messages},
        good | {"inputs": ["x"]},
        good | {"workload": "embedding"},
        bare | {"workload": "embedding"},
    ):
        assert not validator.is_valid(bad)
