"""Finding the scheduler again after its death: calls that it met are answered late, so it is asked once more."""

import asyncio
import concurrent.futures
from collections.abc import Callable

import pytest
import ray

from contracts.messages import Endpoint
from orchestrator.cluster import actors
from orchestrator.cluster.connection import ChannelError

pytestmark = pytest.mark.req("ORCH-3051")

THERE = Endpoint("node", "/run/socket", "127.0.0.1", 4711)
UNAVAILABLE = ray.exceptions.ActorUnavailableError("its process died", None)
Answer = concurrent.futures.Future[Endpoint]


class FakeActor:
    """What `ray.get_actor` gives, with answers that the test gives: one for each call, the last ones none."""

    def __init__(self, *answers: Callable[[Answer], None]) -> None:
        self.calls: list[Answer] = []
        self._answers = list(answers)
        self.endpoint = self

    def remote(self) -> "FakeActor":
        return self

    def future(self) -> Answer:
        answer: Answer = concurrent.futures.Future()
        if len(self.calls) < len(self._answers):
            self._answers[len(self.calls)](answer)
        self.calls.append(answer)
        return answer


def nothing(_answer: Answer) -> None:
    """Never answered."""


def there(answer: Answer) -> None:
    answer.set_result(THERE)


def unavailable(answer: Answer) -> None:
    answer.set_exception(UNAVAILABLE)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeActor]:
    def use(*answers: Callable[[Answer], None]) -> FakeActor:
        actor = FakeActor(*answers)
        monkeypatch.setattr(ray, "get_actor", lambda *_, **__: actor)
        monkeypatch.setattr(actors, "ASK_AGAIN_S", 0.01)
        return actor

    return use


async def test_a_call_that_is_not_answered_is_made_again(found: Callable[..., FakeActor]) -> None:
    actor = found(nothing, nothing, there)
    async with asyncio.timeout(20):
        assert await actors.locate_scheduler() == THERE
    await asyncio.sleep(0)  # a cancellation is passed on by the loop
    assert [call.cancelled() for call in actor.calls] == [True, True, False]


async def test_a_call_that_fails_while_another_may_be_answered_is_not_the_end(found: Callable[..., FakeActor]) -> None:
    actor = found(nothing, nothing)

    async def answered_in_turn() -> None:
        while len(actor.calls) < 2:
            await asyncio.sleep(0)
        actor.calls[0].set_exception(UNAVAILABLE)
        await asyncio.sleep(0.05)
        actor.calls[1].set_result(THERE)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        answering = group.create_task(answered_in_turn())
        assert await actors.locate_scheduler() == THERE
        await answering


async def test_of_calls_that_end_together_one_answer_is_enough(found: Callable[..., FakeActor]) -> None:
    for turn in range(20):  # which one comes first is chance
        actor = found(nothing, nothing)
        locating = asyncio.create_task(actors.locate_scheduler())
        async with asyncio.timeout(20):
            while len(actor.calls) < 2:
                await asyncio.sleep(0)
            actor.calls[turn % 2].set_result(THERE)
            actor.calls[1 - turn % 2].set_exception(UNAVAILABLE)
            assert await locating == THERE


async def test_when_no_call_is_left_it_cannot_be_asked(found: Callable[..., FakeActor]) -> None:
    actor = found(unavailable)
    with pytest.raises(ChannelError, match="its process died"):
        await actors.locate_scheduler()
    assert len(actor.calls) == 1


async def test_who_waits_no_longer_leaves_no_call_behind(found: Callable[..., FakeActor]) -> None:
    actor = found()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await actors.locate_scheduler()
    await asyncio.sleep(0)
    assert len(actor.calls) > 1
    assert all(call.cancelled() for call in actor.calls)


async def test_without_an_actor_of_that_name_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_actor(*_: object, **__: object) -> None:
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "get_actor", get_actor)
    with pytest.raises(ChannelError, match="no such actor"):
        await actors.locate_scheduler()
