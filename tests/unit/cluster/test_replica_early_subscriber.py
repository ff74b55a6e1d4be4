"""A subscription may overtake the start of its attempt: scheduler tells ingress and replica at once (ORCH-2002)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from contracts import messages as wire
from contracts.engine import Chunk, EngineAdapter, EngineSpec, Finish, GenerateRequest
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.replica_service import ReplicaService
from orchestrator.cluster.transcript import TokenFlow

SPEC = EngineSpec(
    engine="llamacpp", pool_id="p", replica_id="p-0", model="m", model_path="", ctx=64, slots=1, accelerator="cpu-dev"
)
REQUEST = wire.encode(GenerateRequest(task_id="t", max_tokens=2, seed=1, prompt="x"))


class OneToken:
    """Generates one token and ends."""

    async def generate(self, _key: str, _request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        yield Chunk("a", 1)
        yield Finish(finish_reason="length", tokens_in=1, tokens_cached=0, stop_sequence=None)


class Inbox:
    """Stands for the ingress's connection: keeps what is sent to it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.over = asyncio.Event()

    def send(self, message: Any) -> None:
        self.messages.append(message)
        if isinstance(message, wire.StreamOver):
            self.over.set()


def make() -> tuple[ReplicaService, Inbox, Connection]:
    inbox = Inbox()
    service = ReplicaService(SPEC, cast(EngineAdapter, OneToken()), lambda _message: None, TokenFlow())
    return service, inbox, cast(Connection, inbox)


@pytest.mark.req("ORCH-2002")
async def test_a_subscriber_that_is_faster_than_the_start_gets_the_tokens() -> None:
    service, inbox, connection = make()
    service.subscribe(connection, wire.Subscribe(7, "t", 1, 0, 100))
    assert inbox.messages == []
    service.start(wire.StartAttempt("t", 1, REQUEST))
    async with asyncio.timeout(5):
        await inbox.over.wait()
    batch, over = inbox.messages
    assert batch.items == [(7, 0, ["a"])]
    assert (over.sid, over.result) == (7, "finished")


@pytest.mark.req("ORCH-2002")
async def test_a_subscriber_of_an_attempt_that_never_starts_is_told_so() -> None:
    service, inbox, connection = make()
    service.subscribe(connection, wire.Subscribe(7, "t", 2, 0, 100))
    service.start(wire.StartAttempt("t", 1, REQUEST))
    async with asyncio.timeout(5):
        await inbox.over.wait()
    assert inbox.messages == [wire.StreamOver(7, "unknown")]
