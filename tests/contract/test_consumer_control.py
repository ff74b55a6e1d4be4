"""An operator's tool against the pact's mock: each interaction is what it can work with."""

import pytest

from contracts.api import API_VERSION
from tests.contract.interactions import CORRELATION_ID, Interaction
from tests.contract.interactions_control import LOOKED_AT, NOT_TAKEN_ON
from tests.contract.pact_file import CONTROL_PLANE
from tests.contract.test_consumer_tasks import ask

#: The fields that are fixed, of each body or of each entry of a list.
FIXED = {
    "/v1/pools": {"live", "ready", "draining", "metrics"},
    "/v1/pools/small/health": {"live", "ready", "draining", "metrics"},
    "/v1/replicasets": {"id", "engine", "load", "slots_total", "slots_free", "slo"},
    "/v1/capabilities": {"api_version", "engines"},
}


@pytest.mark.req("ORCH-2103", "ORCH-2104", "ORCH-3095", "ORCH-3096", "OC-CTRL-2001", "OC-CTRL-2004", "OC-CTRL-2060")
@pytest.mark.parametrize("interaction", LOOKED_AT, ids=lambda interaction: interaction.description)
def test_what_an_operator_sees(interaction: Interaction) -> None:
    answer = ask(interaction, CONTROL_PLANE)
    assert answer.status_code == 200
    assert answer.headers["x-correlation-id"] == CORRELATION_ID
    found = answer.json()
    entries = found if isinstance(found, list) else [found]
    assert entries
    assert all(FIXED[interaction.path] <= entry.keys() for entry in entries)
    if interaction.path == "/v1/capabilities":
        assert found["api_version"] == API_VERSION
        fixed = {"engine", "ctx_max", "supported_workloads", "rate_limits", "features"}
        assert all(fixed <= engine.keys() for engine in found["engines"])


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2006", "ORCH-3033", "OC-CTRL-2030", "OC-CTRL-2040")
@pytest.mark.parametrize("interaction", NOT_TAKEN_ON, ids=lambda interaction: interaction.description)
def test_what_an_operator_is_refused(interaction: Interaction) -> None:
    answer = ask(interaction, CONTROL_PLANE)
    assert answer.status_code == interaction.status
    assert answer.json()["message"]
    assert isinstance(answer.json()["retriable"], bool)
