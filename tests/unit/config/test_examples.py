"""Every configuration that the project shows is one that works (OC-CONFIG-6002)."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from contracts import config, config_pools, config_scheduling
from contracts.generate import render_config_schema
from orchestrator.config_yaml import parse
from orchestrator.configfile import loads
from tools.trace import ROOT, source_files

#: Under examples/ and for other programs: scenarios of the simulator, files for `ray up` and for KubeRay.
NOT_OURS = ("examples/simulation/", "examples/kuberay/", "examples/cluster-local.yaml")

FENCE = re.compile(r"^```ya?ml\n(# llorch config\n.*?)^```", re.MULTILINE | re.DOTALL)


def shown() -> list[tuple[str, str]]:
    """Configurations under examples/, and each fenced block of a document that starts with `# llorch config`."""
    found = []
    for name in source_files():
        text = (ROOT / name).read_text() if name.endswith((".md", ".yaml")) else ""
        if name.startswith(NOT_OURS):
            continue
        if name.startswith("examples/") and name.endswith(".yaml"):
            found.append((name, text))
        elif name.endswith(".md"):
            found += [(f"{name}#{n}", block) for n, block in enumerate(FENCE.findall(text))]
    return found


def test_there_are_examples_in_files_and_in_documents() -> None:
    names = [name for name, _ in shown()]
    assert any(name.startswith("examples/") for name in names)
    assert any(name.startswith("README.md") for name in names)


@pytest.mark.req("OC-CONFIG-6002")
@pytest.mark.parametrize(("name", "text"), shown(), ids=[name for name, _ in shown()])
def test_every_example_validates(name: str, text: str) -> None:
    """The files that an example names are the reader's own, so they are not looked for."""
    assert text.startswith("# llorch config\n")
    loads(text, name, base=Path(), files=False)
    jsonschema.validate(parse(text, name).data, json.loads((ROOT / "contracts/config.schema.json").read_text()))


def sections() -> list[type[BaseModel]]:
    """Every section that a file can have, but for those that are not enforced yet."""
    found = {
        kind
        for module in (config, config_pools, config_scheduling)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }
    later = {config.CatalogConfig, config.TrustPolicyConfig}
    return sorted(found - later, key=lambda kind: kind.__name__)


@pytest.mark.req("OC-CONFIG-6002")
def test_the_guide_has_every_field_of_every_section() -> None:
    guide = (ROOT / "docs/configuration.md").read_text()
    missing = [
        f"{kind.__name__}.{name}"
        for kind in sections()
        for name in kind.model_fields
        if not re.search(rf"\b{name}\b", guide)
    ]
    assert missing == []


@pytest.mark.req("OC-CONFIG-6010")
def test_the_committed_schema_is_what_the_models_make_each_time() -> None:
    committed = (ROOT / "contracts/config.schema.json").read_text()
    assert [render_config_schema(), render_config_schema()] == [committed, committed]
