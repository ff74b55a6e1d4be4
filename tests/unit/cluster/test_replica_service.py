"""Orders and subscriptions reach a replica over different connections, in any order."""

import asyncio

import msgspec
import pytest

from contracts import messages as wire
from contracts.engine import GenerateRequest
from orchestrator.cluster import early
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter, until


class Wire:
    """Stands for a connection; keeps what is sent on it."""

    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []

    def send(self, message: msgspec.Struct) -> None:
        self.sent.append(message)

    def over(self) -> wire.StreamOver | None:
        return next((message for message in self.sent if isinstance(message, wire.StreamOver)), None)

    def texts(self) -> list[str]:
        return [
            text
            for message in self.sent
            if isinstance(message, wire.TokenBatch)
            for _, _, texts in message.items
            for text in texts
        ]


def service() -> ReplicaService:
    return ReplicaService(SPEC, ScriptedAdapter(SPEC), Wire().send, TokenFlow())


def start(task_id: str, attempt: int = 1) -> wire.StartAttempt:
    return wire.StartAttempt(task_id, attempt, wire.encode(GenerateRequest(task_id, 3, 1, prompt="plain")))


@pytest.mark.req("ORCH-2002")
async def test_a_subscription_that_overtakes_its_attempts_start_gets_every_token() -> None:
    replica, ingress = service(), Wire()
    replica.subscribe(ingress, wire.Subscribe(7, "a", 1, 0, 100))  # type: ignore[arg-type]
    assert ingress.sent == []
    replica.start(start("a"))
    await until(ingress.over)
    assert ingress.texts() == ["t0 ", "t1 ", "t2 "]
    over = ingress.over()
    assert over is not None
    assert (over.sid, over.result) == (7, "finished")


async def test_a_subscription_to_an_attempt_that_never_starts_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "EARLY_WAIT_S", 0.01)
    replica, ingress = service(), Wire()
    replica.subscribe(ingress, wire.Subscribe(7, "a", 1, 0, 100))  # type: ignore[arg-type]
    await until(ingress.over)
    assert ingress.sent == [wire.StreamOver(7, "unknown")]


async def test_subscriptions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "EARLY_MAX", 2)
    replica, ingress = service(), Wire()
    for sid in range(3):
        replica.subscribe(ingress, wire.Subscribe(sid, f"task-{sid}", 1, 0, 100))  # type: ignore[arg-type]
    assert ingress.sent == [wire.StreamOver(2, "unknown")]
    await asyncio.sleep(0)
