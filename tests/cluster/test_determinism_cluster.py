"""The same bytes through the whole service: whichever replica serves, and when an engine was killed meanwhile."""

import concurrent.futures
import os
import signal
import time

import pytest

from adapters.testing.determinism.tasks import SEEDS
from tests.cluster.conftest import Service, data_of, text_of

PROMPTS = ("The sea", "Grüße, señor! 海は広いな 🌊 пиши дальше:", "Once upon a time there was a small robot who")
TASKS = [(PROMPTS[n % len(PROMPTS)], seed) for n, seed in enumerate(SEEDS[:8])]
TOKENS = 40
BOTH = {"real-0", "real-1"}

Answer = tuple[str, str, str]


def answer_of(service: Service, task_id: str) -> Answer:
    """Replica, text, and how it ended."""
    events = service.events(task_id)
    name, data = events[-1]
    return data_of(events, "started")["replica_id"], text_of(events), "end" if name == "end" else data["code"]


def submit(service: Service, task: tuple[str, int]) -> str:
    prompt, seed = task
    return service.submit(prompt=prompt, seed=seed, max_tokens=TOKENS)


def ask_all(service: Service, tasks: list[tuple[str, int]]) -> list[Answer]:
    """All at once."""
    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: answer_of(service, submit(service, task)), tasks))


@pytest.fixture(scope="module")
def alone(service: Service) -> dict[tuple[str, int], str]:
    """The text of each task that has the service to itself."""
    texts = {}
    for task in TASKS:
        _, texts[task], end = answer_of(service, submit(service, task))
        assert end == "end"
    assert len(set(texts.values())) == len(TASKS)
    return texts


@pytest.mark.req("ORCH-3045", "ORCH-3046", "ORCH-3050", "OC-CORE-1030", "OC-CORE-1031", "OC-TEST-7001")
def test_both_replicas_give_the_same_bytes_in_company(service: Service, alone: dict[tuple[str, int], str]) -> None:
    tasks = [*TASKS, *TASKS[::-1], *TASKS]
    answers = ask_all(service, tasks)
    assert [(text, end) for _, text, end in answers] == [(alone[task], "end") for task in tasks]
    assert {replica for replica, _, _ in answers} == BOTH


@pytest.mark.req("ORCH-3009", "ORCH-3045", "ORCH-3050", "OC-TEST-7001")
def test_a_killed_engine_changes_no_byte_of_what_it_ran(service: Service, alone: dict[tuple[str, int], str]) -> None:
    until = time.monotonic() + 90
    ids = [submit(service, task) for task in TASKS]
    while any((status := service.status(i))["tokens_out"] < 2 and status["state"] != "finished" for i in ids):
        assert time.monotonic() < until
    killed = service.engine_pids("real")[0]
    os.kill(killed, signal.SIGKILL)
    answers = [answer_of(service, task_id) for task_id in ids]
    assert [(text, end) for _, text, end in answers] == [(alone[task], "end") for task in TASKS]
    assert max(service.status(i)["attempt"] for i in ids) > 1, "nothing was under way on the engine that was killed"
    # The killed engine comes back, and is of the same set.
    seen: set[str] = set()
    while seen != BOTH or killed in service.engine_pids("real"):
        assert time.monotonic() < until, f"served since: {seen}"
        answers = ask_all(service, TASKS)
        assert [(text, end) for _, text, end in answers] == [(alone[task], "end") for task in TASKS]
        seen = {replica for replica, _, _ in answers}
