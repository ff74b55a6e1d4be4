"""While nothing becomes durable: what must not reach a later engine, and who asks again and again."""

from typing import Any

import pytest

from contracts import messages as wire
from contracts import scheduling as ev
from tests.unit.cluster.journal_kit import kept
from tests.unit.cluster.scripted import task
from tests.unit.cluster.scripted_core import REPLICA, started_view, status
from tests.unit.cluster.test_scheduler_durability import ADMIT, FINISH, START, TASK, DurableShell

pytestmark = pytest.mark.req("ORCH-3051")


@pytest.fixture
async def durable(monkeypatch: pytest.MonkeyPatch) -> DurableShell:
    return DurableShell(monkeypatch)


def held_start(shell: DurableShell, *, down: bool) -> None:
    """An admitted task is started, and that does not become durable."""
    shell.step(shell.ingress, wire.Submit(1, TASK, b"p"), ADMIT, record=kept("a"))
    shell.service._durability.durable(1)
    shell.step(shell.replica, ev.SlotReleased("x", 1, "pool-0"), START, record=kept("a", attempt=1))
    if down:
        shell.service._durability.failed("disk full", ())
    shell.ingress.take(), shell.replica.take()


@pytest.mark.req("ORCH-3009")
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("told", [ev.ReplicaUnready("pool-0", "it died"), ev.ReplicaLoading("pool-0", "pool", 0)])
async def test_a_start_that_was_held_does_not_reach_the_engine_that_comes_next(
    durable: DurableShell, told: Any, down: bool
) -> None:
    held_start(durable, down=down)
    lost = ev.Pause("set", "a", 1, 0, "lost")
    durable.step(durable.replica, told, lost, record=kept("a", attempt=1, lost_attempt=1))
    again = ev.Start("set", "a", 2, "pool-0")
    durable.step(durable.replica, ev.ReplicaReady(REPLICA), again, record=kept("a", attempt=2))
    durable.service._durability.durable(len(durable.store.puts))
    if down:
        durable.service._durability.restored()
    assert durable.replica.take() == [wire.StartAttempt("a", 2, b"p")]
    assert len(durable.service._durability._held) == 0


async def test_a_start_that_is_held_for_another_replica_is_sent(durable: DurableShell) -> None:
    held_start(durable, down=True)
    other: Any = type(durable.replica)("replica", "pool-1")
    durable.tell(other, wire.RegisterReplica("pool-1", "pool", durable_endpoint()))
    durable.tell(other, ev.ReplicaUnready("pool-1", "it died"))
    durable.service._durability.durable(len(durable.store.puts))
    assert durable.replica.take() == [wire.StartAttempt("a", 1, b"p")]


def durable_endpoint() -> wire.Endpoint:
    return wire.Endpoint("node", "", "127.0.0.1", 2)


async def test_questions_about_what_is_not_durable_are_refused_and_do_not_pile_up(durable: DurableShell) -> None:
    durable.step(durable.ingress, wire.Submit(1, TASK, b"p", watch=True), ADMIT, START, record=kept("a"))
    durable.service._durability.durable(1)
    durable.core.views["a"] = started_view(TASK)
    ended = ev.AttemptEnded("a", 1, "pool-0", "finished", slot_free=True)
    durable.step(durable.replica, ended, FINISH, record=kept("a", outcome=FINISH.outcome))
    durable.service._durability.failed("disk full", ())
    durable.core.statuses["a"] = status(TASK, "finished")
    durable.core.outcomes["a"] = FINISH.outcome
    held = len(durable.service._durability._held)
    durable.ingress.take()
    for ask in (
        lambda req: wire.GetStatus(req, "a", "acme"),
        lambda req: wire.GetTask(req, "a", "acme"),
        lambda req: wire.Watch(req, "a", "acme"),
        lambda req: wire.Submit(req, TASK, b"p"),
        lambda req: wire.Submit(req, TASK, b"p", watch=True),
    ):
        for req in range(5):
            durable.tell(durable.ingress, ask(req))
            (refused,) = durable.ingress.take()
            assert isinstance(refused, wire.Failed)
            assert (refused.req, refused.error.code, refused.error.retriable) == (req, "ADMISSION_REJECT", True)
            assert "disk full" in refused.error.message
    assert len(durable.service._durability._held) == held
    assert durable.service._switchboard.watchers("a") == []
    # Others, and whoever asks once it is durable, are answered.
    durable.core.statuses["b"] = status(task("b"), "running")
    durable.tell(durable.ingress, wire.GetStatus(7, "b", "acme"))
    assert isinstance(durable.ingress.take()[-1], wire.Status)
    durable.service._durability.durable(2)
    assert durable.ingress.take() == [wire.TaskEnded("a", FINISH.outcome)]
    durable.tell(durable.ingress, wire.GetStatus(8, "a", "acme"))
    assert isinstance(durable.ingress.take()[-1], wire.Status)
