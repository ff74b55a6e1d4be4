"""The frozen OpenAPI documents of both planes as JSON, and `/docs`, a readable page made from them.

The page is rendered once, loads nothing from anywhere, and runs no script.
"""

import json
import re
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestrator.ingress.http import Reply, Request

Json = dict[str, Any]

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--accent:light-dark(#0a58ca,#7db4ff)}
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:2rem 1.2rem}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{margin-bottom:.3rem}
a{color:var(--accent)}code,pre{font:.875em/1.5 ui-monospace,monospace;background:var(--soft);border-radius:4px}
code{padding:.1em .3em}pre{padding:.8rem;overflow-x:auto}pre code{background:none;padding:0}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;
border-bottom:1px solid var(--line)}nav li{list-style:none}nav ul{padding:0}
.method{font-weight:700;color:var(--accent)}.quiet{opacity:.7;font-size:.9em}
"""
_HEADERS: Final = [(b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")]


class Documents:
    """The documents and their page, ready to send. Raises OSError or msgspec.DecodeError for an unreadable file."""

    def __init__(self, data_path: Path, control_path: Path) -> None:
        data, control = (_read(path) for path in (data_path, control_path))
        self._json = msgspec.json.encode(data)
        self._control_json = msgspec.json.encode(control)
        self._page = render_page({"/openapi.json": data, "/openapi-control.json": control}).encode()

    async def openapi(self, _request: Request) -> Reply:
        return Reply(200, self._json)

    async def control_openapi(self, _request: Request) -> Reply:
        return Reply(200, self._control_json)

    async def page(self, _request: Request) -> Reply:
        return Reply(200, self._page, b"text/html; charset=utf-8", list(_HEADERS))


def render_page(documents: dict[str, Json]) -> str:
    """Documents by their addresses as one HTML page; a type of one name is the same in all of them."""
    schemas: Json = {}
    for document in documents.values():
        schemas |= document["components"]["schemas"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>llama-orch</title><style>{_STYLE}</style></head><body>"
        + "".join(_contents(address, document) for address, document in documents.items())
        + "".join(
            _operation(document, *operation) for document in documents.values() for operation in _operations(document)
        )
        + "<h2>Types</h2>"
        + "".join(_schema(name, schemas[name]) for name in sorted(schemas))
        + "</body></html>"
    )


def _read(path: Path) -> Json:
    return msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])


def _operations(document: Json) -> list[tuple[str, str, Json]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]


def _contents(address: str, document: Json) -> str:
    """What a document is about, and links to its operations."""
    info = document["info"]
    links = "".join(
        f'<li><a href="#{operation["operationId"]}"><code>{method.upper()} {escape(path)}</code></a> '
        f"{escape(operation['summary'])}</li>"
        for method, path, operation in _operations(document)
    )
    return (
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>{_prose(info['description'])}"
        f'<p><a href="{address}">OpenAPI document</a></p><nav><ul>{links}</ul></nav>'
    )


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    answers = [(status, _resolve(document, answer)) for status, answer in operation["responses"].items()]
    rows = "".join(
        f"<tr><td><code>{status}</code></td><td>{_inline(answer['description'])}{_headers(answer)}</td></tr>"
        for status, answer in answers
    )
    parameters = [_resolve(document, parameter) for parameter in operation.get("parameters", [])]
    given = "".join(
        f"<tr><td><code>{escape(item['name'])}</code></td><td>{_inline(item['description'])}</td></tr>"
        for item in parameters
    )
    return (
        f'<h2 id="{operation["operationId"]}"><span class="method">{method.upper()}</span> '
        f"<code>{escape(path)}</code></h2><p>{_inline(operation['summary'])}.</p>"
        f"<pre><code>{escape(_curl(document, method, path, operation))}</code></pre>"
        f"{_body(operation)}<h3>Headers</h3><table>{given}</table><h3>Answers</h3><table>{rows}</table>"
        + "".join(_examples(status, answer) for status, answer in answers)
    )


def _body(operation: Json) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    content = body["content"]["application/json"]
    shown = "".join(
        f"<p>{escape(example['summary'])}</p>{_code(example['value'])}" for example in content["examples"].values()
    )
    return f"<h3>Body: {_type(content['schema'])}</h3><p>{_inline(body['description'])}</p>{shown}"


def _examples(status: str, answer: Json) -> str:
    parts = []
    for content in answer.get("content", {}).values():
        for name, example in content.get("examples", {}).items():
            parts.append(f"<p><code>{escape(name)}</code></p>{_code(example['value'])}")
    for name, event in answer.get("x-sse-events", {}).items():
        parts.append(f"<p>event <code>{escape(name)}</code>, data {_type(event['data'])}</p>{_code(event['example'])}")
    return f"<details><summary>Examples of {status}</summary>{''.join(parts)}</details>" if parts else ""


def _curl(document: Json, method: str, path: str, operation: Json) -> str:
    """A line to paste; the key and the address come from the reader's shell."""
    words = ["curl -sS"]
    if path.endswith("/stream"):
        words[0] += " -N"
    if method != "get":
        words.append(f"-X {method.upper()}")
    if operation.get("security", True):
        words.append('-H "Authorization: Bearer $LLORCH_API_KEY"')
    if "requestBody" in operation:
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        value = next(iter(examples.values()))["value"]
        words.append("-d '" + json.dumps(value) + "'")
    for parameter in document["paths"][path].get("parameters", []):
        given = _resolve(document, parameter)
        path = path.replace("{" + given["name"] + "}", given["example"])
    words.append(f'"$LLORCH_URL{path}"')
    return " \\\n  ".join(words)


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(part)}"
        f"{'' if field in required else ' <span class=quiet>optional</span>'}</td>"
        f"<td>{_inline(part.get('description', ''))}</td></tr>"
        for field, part in schema.get("properties", {}).items()
    )
    return f'<h3 id="schema-{name}">{escape(name)}</h3>{_prose(schema.get("description", ""))}<table>{rows}</table>'


def _type(part: Json) -> str:
    """A field's type in a few words, linked where it is a named one."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{escape(name)}</a>'
    if "anyOf" in part:
        return " or ".join(_type(choice) for choice in part["anyOf"] if choice.get("type") != "null")
    if "enum" in part:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in part["enum"] if value is not None)
    text = escape(str(part.get("format", part.get("type", "any"))))
    if "items" in part:
        text = f"list of {_type(part['items'])}"
    low, high = part.get("minimum", part.get("exclusiveMinimum")), part.get("maximum")
    limits = " to ".join(str(limit) for limit in (low, high) if limit is not None)
    return f'{text} <span class="quiet">{limits}</span>' if limits else text


def _headers(answer: Json) -> str:
    names = ", ".join(f"<code>{escape(name)}</code>" for name in answer.get("headers", {}))
    return f'<br><span class="quiet">{names}</span>' if names else ""


def _code(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    return f"<pre><code>{escape(text.rstrip())}</code></pre>"


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _resolve(document: Json, part: Json) -> Json:
    """Follow one local `$ref`."""
    if "$ref" not in part:
        return part
    found: Any = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)
