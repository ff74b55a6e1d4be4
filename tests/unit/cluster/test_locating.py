"""Finding the scheduler again after its death: calls that it met are answered late, so it is asked once more."""

import asyncio
import concurrent.futures
from collections.abc import Callable

import pytest
import ray

from contracts.messages import Endpoint
from orchestrator.cluster import locating
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


def use(monkeypatch: pytest.MonkeyPatch, actors: dict[str, FakeActor]) -> None:
    def get_actor(name: str, namespace: str) -> FakeActor:
        if name not in actors:
            raise ValueError(f"no actor {name} in {namespace}")
        return actors[name]

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(locating, "ASK_AGAIN_S", 0.01)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeActor]:
    """A scheduler that nobody stands by for, as without a journal."""

    def one(*answers: Callable[[Answer], None]) -> FakeActor:
        actor = FakeActor(*answers)
        use(monkeypatch, {locating.SCHEDULER: actor})
        return actor

    return one


async def test_a_call_that_is_not_answered_is_made_again(found: Callable[..., FakeActor]) -> None:
    actor = found(nothing, nothing, there)
    async with asyncio.timeout(20):
        assert await locating.locate_scheduler() == THERE
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
        assert await locating.locate_scheduler() == THERE
        await answering


async def test_of_calls_that_end_together_one_answer_is_enough(found: Callable[..., FakeActor]) -> None:
    for turn in range(20):  # which one comes first is chance
        actor = found(nothing, nothing)
        answer = asyncio.create_task(locating.locate_scheduler())
        async with asyncio.timeout(20):
            while len(actor.calls) < 2:
                await asyncio.sleep(0)
            actor.calls[turn % 2].set_result(THERE)
            actor.calls[1 - turn % 2].set_exception(UNAVAILABLE)
            assert await answer == THERE


async def test_when_no_call_is_left_it_cannot_be_asked(found: Callable[..., FakeActor]) -> None:
    actor = found(unavailable)
    with pytest.raises(ChannelError, match="its process died"):
        await locating.locate_scheduler()
    assert len(actor.calls) == 1


async def test_who_waits_no_longer_leaves_no_call_behind(found: Callable[..., FakeActor]) -> None:
    actor = found()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await locating.locate_scheduler()
    await asyncio.sleep(0)
    assert len(actor.calls) > 1
    assert all(call.cancelled() for call in actor.calls)


async def test_without_an_actor_of_that_name_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {})
    with pytest.raises(ChannelError, match="there is no scheduler actor"):
        await locating.locate_scheduler()


@pytest.mark.parametrize("leader", [locating.SCHEDULER, locating.STANDBY])
@pytest.mark.parametrize("other", [nothing, unavailable])
async def test_whichever_of_the_two_leads_answers(
    monkeypatch: pytest.MonkeyPatch, leader: str, other: Callable[[Answer], None]
) -> None:
    leads, stands_by = FakeActor(there), FakeActor(other)
    actors = {locating.SCHEDULER: stands_by, locating.STANDBY: stands_by} | {leader: leads}
    use(monkeypatch, actors)
    async with asyncio.timeout(20):
        assert await locating.locate_scheduler() == THERE


async def test_who_stands_by_may_be_all_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {locating.STANDBY: FakeActor(there)})
    assert await locating.locate_scheduler() == THERE


async def test_when_both_fail_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FakeActor(unavailable), FakeActor(unavailable)
    use(monkeypatch, {locating.SCHEDULER: first, locating.STANDBY: second})
    with pytest.raises(ChannelError, match="its process died"):
        await locating.locate_scheduler()
    assert (len(first.calls), len(second.calls)) == (1, 1)
