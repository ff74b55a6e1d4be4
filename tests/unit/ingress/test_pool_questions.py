"""What the cluster's gateway asks the scheduler about pools, message by message."""

from typing import Any

import msgspec
import pytest

from contracts import control_messages as wire
from contracts import messages
from contracts import openapi_control_examples as ex
from contracts.control import DrainRequest, ReloadRequest
from contracts.errors import ErrorInfo, OrchError
from orchestrator.cluster.pool_questions import PoolQuestions


class ScriptedLink:
    """Test double of the link: every question and answer goes through the wire's own encoding."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    async def ask(self, question: Any, req: int, answer: type[Any]) -> Any:
        assert question.req == req
        self.asked.append(msgspec.msgpack.decode(messages.encode(question), type=messages.ToScheduler))
        reply = msgspec.msgpack.decode(messages.encode(self.answers.pop(0)), type=messages.ToIngress)
        if isinstance(reply, messages.Failed):
            raise OrchError(reply.error)
        assert isinstance(reply, answer)
        return reply


def questions(link: ScriptedLink) -> PoolQuestions:
    return PoolQuestions(link)  # type: ignore[arg-type]


@pytest.mark.req("ORCH-2103", "ORCH-2104", "ORCH-3095")
async def test_what_is_looked_at_comes_back_whole() -> None:
    link = ScriptedLink(
        wire.PoolHealthReport(1, ex.ROLLED_BACK),
        wire.ReplicaSetsReport(2, [ex.REPLICA_SET]),
        wire.CapabilitiesReport(3, ex.CAPABILITIES),
    )
    gateway = questions(link)
    assert await gateway.pool_health("smollm2") == ex.ROLLED_BACK
    assert await gateway.replica_sets() == [ex.REPLICA_SET]
    assert await gateway.capabilities() == ex.CAPABILITIES
    assert link.asked == [wire.GetPoolHealth(1, "smollm2"), wire.GetReplicaSets(2), wire.GetCapabilities(3)]


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3033")
async def test_what_is_asked_for_reaches_the_scheduler() -> None:
    link = ScriptedLink(*(messages.Done(req) for req in range(1, 6)))
    gateway = questions(link)
    await gateway.drain_pool("a", DrainRequest(250))
    await gateway.reload_pool("a", ReloadRequest("m"))
    await gateway.reload_pool("a", ReloadRequest("m", 5))
    await gateway.promote_pool("a")
    await gateway.rollback_pool("a")
    assert link.asked == [
        wire.DrainPool(1, "a", 250),
        wire.ReloadPool(2, "a", "m"),
        wire.ReloadPool(3, "a", "m", 5),
        wire.PromotePool(4, "a"),
        wire.RollbackPool(5, "a"),
    ]


@pytest.mark.req("ORCH-2006")
async def test_a_refusal_is_raised_as_it_was_sent() -> None:
    error = ErrorInfo("CONFLICT", "A drain is under way.", "llamacpp", "a", True)
    link = ScriptedLink(messages.Failed(1, error))
    with pytest.raises(OrchError) as refused:
        await questions(link).promote_pool("a")
    assert refused.value.info == error
