"""The pacts of both planes as files: `python -m tests.contract.pact_file` writes them."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pact import Pact

import contracts
from tests.contract.interactions import INTERACTIONS, Interaction
from tests.contract.interactions_control import CONTROL_INTERACTIONS

CONSUMER = "python-consumer"

os.environ.setdefault("PACT_DO_NOT_TRACK", "true")


@dataclass(frozen=True)
class PactFile:
    """What consumers rely on of one plane."""

    provider: str
    interactions: Sequence[Interaction]

    @property
    def path(self) -> Path:
        return Path(contracts.__file__).parent / "pacts" / f"{CONSUMER}-{self.provider}.json"

    def render(self) -> str:
        """All interactions in the order in which they are declared; without the writing library's versions."""
        pact = new_pact(self.provider)
        for interaction in self.interactions:
            interaction.add_to(pact)
        with tempfile.TemporaryDirectory() as folder:
            pact.write_file(folder, overwrite=True)
            (written,) = Path(folder).iterdir()
            document = json.loads(written.read_text(encoding="utf-8"))
        order = [interaction.description for interaction in self.interactions]
        document["interactions"].sort(key=lambda item: order.index(item["description"]))
        document["metadata"] = {"pactSpecification": document["metadata"]["pactSpecification"]}
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def new_pact(provider: str) -> Pact:
    return Pact(CONSUMER, provider).with_specification("V4")


DATA_PLANE = PactFile("llama-orch-data-plane", INTERACTIONS)
CONTROL_PLANE = PactFile("llama-orch-control-plane", CONTROL_INTERACTIONS)
PACT_FILES = (DATA_PLANE, CONTROL_PLANE)


if __name__ == "__main__":
    for pact_file in PACT_FILES:
        pact_file.path.parent.mkdir(parents=True, exist_ok=True)
        pact_file.path.write_text(pact_file.render(), encoding="utf-8")
