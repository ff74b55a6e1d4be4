"""The frozen documents: regeneration changes nothing, they are valid, and every example in them is."""

import json
import re
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from contracts import api, control, generate
from contracts import openapi_examples as ex
from contracts.errors import HTTP_STATUS, ErrorInfo
from contracts.gateway import PoolAccepted, Readiness
from contracts.openapi_control_examples import CAPABILITIES, CONTROL_ERRORS
from contracts.openapi_source import SSE_SCHEMAS
from contracts.pools import FaultKind
from tests.unit.ingress.asgi import parse_sse

DATA, CONTROL = (
    yaml.safe_load((generate.HERE / "openapi" / name).read_text(encoding="utf-8"))
    for name in ("data-plane.yaml", "control-plane.yaml")
)
DOCUMENTS = {"data": DATA, "control": CONTROL}
#: Bodies that the code decodes; everything else it encodes.
REQUESTS = {"TaskRequest", "DrainRequest", "ReloadRequest"}
TYPES = {
    struct.__name__: struct
    for struct in (
        api.TaskRequest,
        api.Admission,
        api.TaskStatus,
        api.Started,
        api.Token,
        api.Metrics,
        api.End,
        api.Session,
        control.DrainRequest,
        control.ReloadRequest,
        control.PoolHealth,
        control.ReplicaSetStatus,
        control.Capabilities,
        PoolAccepted,
        ErrorInfo,
        Readiness,
    )
}


def resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    found: Any = document
    if "$ref" not in part:
        return part
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found  # type: ignore[no-any-return]


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Against the document's schema, and through the type that the code decodes or encodes with."""
    whole = {"components": document["components"], **schema}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)
    for one in value if schema.get("type") == "array" else [value]:
        name = schema.get("items", schema)["$ref"].rpartition("/")[2]
        decoded = msgspec.json.decode(json.dumps(one), type=TYPES[name])
        if name not in REQUESTS:
            assert msgspec.json.decode(msgspec.json.encode(decoded)) == one


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]


def json_examples() -> list[tuple[str, dict[str, Any], dict[str, Any], Any]]:
    found = []
    for document in DOCUMENTS.values():
        for method, path, operation in operations(document):
            answers = {status: resolve(document, answer) for status, answer in operation["responses"].items()}
            for where, part in {"request": operation.get("requestBody", {}), **answers}.items():
                content = part.get("content", {}).get("application/json", {})
                found += [
                    (f"{method} {path} {where} {name}", document, content["schema"], example["value"])
                    for name, example in content.get("examples", {}).items()
                ]
    return found


EXAMPLES = json_examples()
both_planes = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


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


@pytest.mark.req("ORCH-3044", "ORCH-3096", "OC-CTRL-2061")
@both_planes
def test_the_document_is_valid_and_has_the_apis_version(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == api.API_VERSION == CAPABILITIES.api_version


def test_the_configurations_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((generate.HERE / "config.schema.json").read_text()))


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2103", "ORCH-2104", "ORCH-3095", "ORCH-3033")
def test_no_path_is_described_twice_and_the_control_planes_are_all_there() -> None:
    assert DATA["paths"].keys() & CONTROL["paths"].keys() == set()
    assert {f"{method} {path}" for method, path, _ in operations(CONTROL)} == {
        "get /v1/pools",
        "get /v1/pools/{id}/health",
        "post /v1/pools/{id}/drain",
        "post /v1/pools/{id}/reload",
        "post /v1/pools/{id}/promote",
        "post /v1/pools/{id}/rollback",
        "get /v1/replicasets",
        "get /v1/capabilities",
        "get /openapi-control.json",
    }


@pytest.mark.req("ORCH-2001", "ORCH-2006", "ORCH-2103", "ORCH-2104", "ORCH-3095")
@pytest.mark.parametrize(
    ("document", "schema", "value"), [case[1:] for case in EXAMPLES], ids=[case[0] for case in EXAMPLES]
)
def test_every_json_example_is_what_it_says(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    check(document, schema, value)


@pytest.mark.req("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022")
@pytest.mark.parametrize(("path", "method"), [("/v1/tasks", "post"), ("/v1/tasks/{id}/stream", "get")])
def test_every_event_example_is_what_it_says(path: str, method: str) -> None:
    answer = DATA["paths"][path][method]["responses"]["200"]
    assert list(answer["x-sse-events"]) == ["started", "token", "metrics", "end", "error"]
    for name, event in answer["x-sse-events"].items():
        ((event_id, given, data),) = parse_sse(event["example"])
        assert given == name
        assert event["data"]["$ref"].endswith("/" + SSE_SCHEMAS[name])
        assert event_id == (str(data["i"]) if name == "token" else None)
        check(DATA, event["data"], data)
    whole = answer["content"]["text/event-stream"]["examples"]["stream"]["value"]
    for _, name, data in parse_sse(whole):
        check(DATA, answer["x-sse-events"][name]["data"], data)


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030", "ORCH-3025")
def test_every_code_has_a_status_and_an_example() -> None:
    for document in DOCUMENTS.values():
        codes = set(document["components"]["schemas"]["ErrorInfo"]["properties"]["code"]["enum"])
        assert codes == set(HTTP_STATUS) == set(ex.ERRORS) | set(CONTROL_ERRORS)
    for errors in (ex.ERRORS, CONTROL_ERRORS):
        assert all(error.code == code and error.retriable is not None for code, error in errors.items())
    assert all(ex.ERRORS[code].policy_label for code, status in HTTP_STATUS.items() if status == 429)


@pytest.mark.req("ORCH-2007", "OC-CTRL-2052")
@both_planes
def test_every_answer_documents_its_headers(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        answers = {status: resolve(document, answer) for status, answer in operation["responses"].items()}
        for answer in answers.values():
            assert "X-Correlation-Id" in answer["headers"]
        if "202" in answers:
            assert "Location" in answers["202"]["headers"]
        if "429" in answers:
            assert {"Retry-After", "X-Backoff-Ms"} <= answers["429"]["headers"].keys()
        if path.startswith("/v1"):
            assert "WWW-Authenticate" in answers["401"]["headers"]


@pytest.mark.req("ORCH-3044")
@both_planes
def test_every_operation_names_requirements_and_every_request_field_is_described(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        assert operation["x-requirements"]
        assert all(re.fullmatch(r"(ORCH|OC-[A-Z]+)-\d{4}", name) for name in operation["x-requirements"])
    for name, schema in document["components"]["schemas"].items():
        if name in REQUESTS:
            assert [field for field, about in schema["properties"].items() if not about.get("description")] == []


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3033")
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("DrainRequest", [{"deadline_ms": 0}], [{}, {"deadline_ms": -1}, {"deadline_ms": 1, "more": 1}]),
        (
            "ReloadRequest",
            [{"new_model_ref": "m"}, {"new_model_ref": "m", "canary_percent": 99}],
            [{}, {"new_model_ref": ""}, {"new_model_ref": "m", "canary_percent": 100}, {"model": "m"}],
        ),
    ],
)
def test_the_control_planes_schema_refuses_what_the_ingress_refuses(name: str, good: list[Any], bad: list[Any]) -> None:
    schema = {"components": CONTROL["components"], "$ref": f"#/components/schemas/{name}"}
    validator = jsonschema.Draft202012Validator(schema)
    assert all(validator.is_valid(value) for value in good)
    assert not any(validator.is_valid(value) for value in bad)


@pytest.mark.req("ORCH-2008")
def test_the_schema_refuses_what_the_ingress_refuses() -> None:
    schema = {"components": DATA["components"], "$ref": "#/components/schemas/TaskRequest"}
    validator = jsonschema.Draft202012Validator(schema)
    good = ex.plain(ex.PROMPT)
    bare = {name: value for name, value in good.items() if name != "prompt"}
    messages = [{"role": "user", "content": "x"}]
    assert validator.is_valid(bare)
    assert validator.is_valid(bare | {"messages": messages})
    assert validator.is_valid(bare | {"workload": "embedding", "inputs": ["x"]})
    assert validator.is_valid(bare | {"workload": "rerank", "prompt": "q", "inputs": ["x"]})
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


@pytest.mark.req("OC-CTRL-2001", "OC-POOL-3003")
def test_the_operators_guide_explains_every_kind_of_error_and_every_phase() -> None:
    guide = (generate.HERE.parent / "docs" / "pools.md").read_text(encoding="utf-8")
    words = {*get_args(FaultKind), *get_args(control.ReplicaPhase)}
    assert [word for word in sorted(words) if f"| `{word}` |" not in guide] == []
