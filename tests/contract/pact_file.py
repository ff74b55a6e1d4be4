"""The pact of the data plane as a file: `python -m tests.contract.pact_file` writes it."""

import json
import os
import tempfile
from pathlib import Path

from pact import Pact

import contracts
from tests.contract.interactions import INTERACTIONS

CONSUMER = "python-consumer"
PROVIDER = "llama-orch-data-plane"
PACT_FILE = Path(contracts.__file__).parent / "pacts" / f"{CONSUMER}-{PROVIDER}.json"

os.environ.setdefault("PACT_DO_NOT_TRACK", "true")


def new_pact() -> Pact:
    return Pact(CONSUMER, PROVIDER).with_specification("V4")


def render_pact() -> str:
    """All interactions in the order in which they are declared; without the writing library's versions."""
    pact = new_pact()
    for interaction in INTERACTIONS:
        interaction.add_to(pact)
    with tempfile.TemporaryDirectory() as folder:
        pact.write_file(folder, overwrite=True)
        (written,) = Path(folder).iterdir()
        document = json.loads(written.read_text(encoding="utf-8"))
    order = [interaction.description for interaction in INTERACTIONS]
    document["interactions"].sort(key=lambda item: order.index(item["description"]))
    document["metadata"] = {"pactSpecification": document["metadata"]["pactSpecification"]}
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PACT_FILE.parent.mkdir(parents=True, exist_ok=True)
    PACT_FILE.write_text(render_pact(), encoding="utf-8")
