"""How `llorch run` stops: it asks what runs to end, says what is left, and a second signal makes it short."""

import io
import signal
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from contracts.config import Config
from orchestrator import local_run
from orchestrator.app import Service
from orchestrator.configfile import development_config

pytestmark = pytest.mark.req("ORCH-3051")


@pytest.fixture
def signals() -> Iterator[local_run._Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = local_run._Signals()
    taken.take()
    yield taken
    for number, handler in before.items():
        signal.signal(number, handler)


class Drained(Service):
    def __init__(self, left: tuple[int, int] | None) -> None:
        super().__init__("", "")
        self.left = left
        self.asked: list[int] = []

    def drain(self, deadline_ms: int, is_hurried: Callable[[], bool]) -> tuple[int, int] | None:
        self.asked.append(deadline_ms)
        return None if is_hurried() else self.left


def said(service: Service, signals: local_run._Signals, config: Config | None = None) -> str:
    text = io.StringIO()
    local_run._drain(service, config or development_config().config, Console(file=text, width=200), signals)
    return text.getvalue()


def test_it_says_how_many_tasks_the_next_start_goes_on_with(signals: local_run._Signals) -> None:
    service = Drained((1, 3))
    text = said(service, signals)
    assert service.asked == [10_000]
    assert "have 10 s to end" in text
    assert "4 tasks go on at the next start (1 ran, 3 waited)" in text
    assert "next start" not in said(Drained((0, 0)), signals)


def test_the_first_signal_interrupts_and_a_second_one_makes_it_short(signals: local_run._Signals) -> None:
    with pytest.raises(local_run._Stop):
        signal.raise_signal(signal.SIGINT)
    assert not signals.repeated
    signal.raise_signal(signal.SIGTERM)
    assert signals.repeated
    assert "ended at once" in said(Drained((1, 3)), signals)


def test_without_a_journal_nothing_is_promised(signals: local_run._Signals) -> None:
    config = development_config().config
    config = config.model_copy(update={"storage": config.storage.model_copy(update={"journal": False})})
    assert "next start" not in said(Drained((1, 3)), signals, config)
