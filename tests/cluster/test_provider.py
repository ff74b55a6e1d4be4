"""The consumers' pact against the running service, its provider states made for real."""

import gc

import pytest

from tests.cluster.conftest import Service
from tests.contract.provider import HttpStates, verify


@pytest.mark.timeout(300)
# The pact library leaves the socket of its provider-state server to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.req("ORCH-2001", "ORCH-2002", "ORCH-2003", "ORCH-2006", "ORCH-2007", "ORCH-2008", "ORCH-3044")
@pytest.mark.req("OC-CTRL-2030", "OC-CTRL-2040", "OC-CTRL-2041", "OC-CTRL-2052")
def test_the_service_honours_the_pact(service: Service) -> None:
    # Temperature 5 keeps the small model from ending a long task early.
    states = HttpStates(service.url, long={"max_tokens": 1900, "deadline_ms": 600_000, "sampling": {"temperature": 5}})
    try:
        verify(service.url, states.handlers())
    finally:
        states.close()
        gc.collect()
