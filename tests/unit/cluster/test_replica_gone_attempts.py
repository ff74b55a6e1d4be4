"""A subscription to an attempt whose tokens are no longer kept does not wait for a start that has been."""

import pytest

from contracts import messages as wire
from contracts.engine import GenerateRequest
from contracts.scheduling import AttemptEnded
from orchestrator.cluster import ended
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter, until
from tests.unit.cluster.test_replica_service import Wire


async def test_a_subscription_to_an_attempt_that_has_gone_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "ENDED_KEPT_MAX", 1)
    scheduler, ingress = Wire(), Wire()
    replica = ReplicaService(SPEC, ScriptedAdapter(SPEC), scheduler.send, TokenFlow())
    for number in (1, 2):
        request = GenerateRequest("a", 3, 1, prompt="plain")
        replica.start(wire.StartAttempt("a", number, wire.encode(request)))
        await until(lambda ends=number: sum(isinstance(each, AttemptEnded) for each in scheduler.sent) >= ends)  # type: ignore[misc]
    replica.subscribe(ingress, wire.Subscribe(7, "a", 1, 0, 100))  # type: ignore[arg-type]
    assert ingress.sent == [wire.StreamOver(7, "unknown")]
    replica.subscribe(ingress, wire.Subscribe(8, "a", 2, 0, 100))  # type: ignore[arg-type]
    assert ingress.texts() == ["t0 ", "t1 ", "t2 "]
