"""A consumer of the data plane against the pact's mock: each interaction is what it can work with."""

import httpx2
import pytest

from tests.contract.interactions import CORRELATION_ID, REFUSED, SERVED, Interaction
from tests.contract.pact_file import DATA_PLANE, PactFile, new_pact
from tests.unit.ingress.asgi import parse_sse


def ask(interaction: Interaction, plane: PactFile = DATA_PLANE) -> httpx2.Response:
    """Send the interaction's request to a mock that knows only this one; any mismatch fails."""
    pact = new_pact(plane.provider)
    interaction.add_to(pact)
    headers = {"X-Correlation-Id": CORRELATION_ID, **interaction.headers}
    if interaction.authorization is not None:
        headers["Authorization"] = interaction.authorization
    with pact.serve() as mock, httpx2.Client(base_url=str(mock.url), headers=headers, timeout=10) as http:
        if isinstance(interaction.request, str):
            return http.post(interaction.path, content=interaction.request, headers={"Content-Type": "text/plain"})
        return http.request(interaction.method, interaction.path, json=interaction.request)


@pytest.mark.req("ORCH-2001", "ORCH-2002", "ORCH-2003", "OC-CTRL-2020", "OC-CTRL-2052")
@pytest.mark.parametrize("interaction", SERVED, ids=lambda interaction: interaction.description)
def test_what_is_served(interaction: Interaction) -> None:
    answer = ask(interaction)
    assert answer.status_code == interaction.status
    assert answer.headers["x-correlation-id"] == CORRELATION_ID
    if interaction.stream:
        events = parse_sse(answer.text)
        assert events[-1][1] in ("end", "error")
        tokens = [(event_id, data["i"]) for event_id, name, data in events if name == "token"]
        assert all(event_id == str(index) for event_id, index in tokens)
    elif interaction.status == 202:
        assert answer.json()["queue_position"] >= 0
        assert answer.json()["predicted_start_ms"] >= 0
        assert 0 <= answer.json()["on_time_probability"] <= 1


@pytest.mark.req("ORCH-2006", "ORCH-2007", "ORCH-3025", "ORCH-3035", "OC-CTRL-2011", "OC-CTRL-2030", "OC-CTRL-2040")
@pytest.mark.parametrize("interaction", REFUSED, ids=lambda interaction: interaction.description)
def test_what_is_refused(interaction: Interaction) -> None:
    answer = ask(interaction)
    assert answer.status_code == interaction.status
    assert answer.json()["code"] == answer.json()["code"].upper()
    assert answer.json()["message"]
    assert isinstance(answer.json()["retriable"], bool)
    if answer.json()["code"] == "DEADLINE_UNMET":
        assert answer.json()["earliest_deadline_ms"] > interaction.request["deadline_ms"]
    if interaction.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["x-backoff-ms"]) == answer.json()["retry_after_ms"]
