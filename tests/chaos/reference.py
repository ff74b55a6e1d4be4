"""The undisturbed texts: every recipe once, before anything is broken."""

import asyncio
import itertools
import uuid
from collections.abc import Sequence
from typing import Final

from tests.chaos.doors import Doors, events_of
from tests.chaos.history import Reference
from tests.chaos.plan import Recipe

#: So few at once that no task of a recipe waits for a slot.
AT_ONCE: Final = {"fake": 8, "real": 2}
TIMEOUT_S: Final = 120
_TRIES: Final = 20


class ReferenceError(Exception):
    """A recipe could not be run although nothing was broken yet."""


async def take(doors: Doors, recipes: Sequence[Recipe]) -> dict[int, Reference]:
    """The references of all recipes, by their number."""
    room = {pool: asyncio.Semaphore(count) for pool, count in AT_ONCE.items()}

    async def one(recipe: Recipe) -> Reference:
        async with room[recipe.pool], asyncio.timeout(TIMEOUT_S):
            return await _run(doors, recipe)

    return dict(enumerate(await asyncio.gather(*(one(recipe) for recipe in recipes))))


async def _run(doors: Doors, recipe: Recipe) -> Reference:
    """One task; a start that is refused (engines load) is tried again a few times."""
    for _ in range(_TRIES):
        body = doors.body(recipe, str(uuid.uuid4()))
        headers = {"Accept": "text/event-stream"}
        async with doors.http.post(doors.urls["own"] + "/v1/tasks", json=body, headers=headers) as answer:
            if answer.status == 200:
                begun_s = doors.now_s()
                texts: list[str] = []
                at_s: list[float] = []
                async for name, data in events_of(answer):
                    if name == "token":
                        texts.append(data["t"])
                        at_s.append(doors.now_s())
                    elif name == "end":
                        return _reference(texts, at_s, data["finish_reason"], begun_s)
                    elif name == "error":
                        raise ReferenceError(f"{recipe}: {data}")
            told = await answer.text()
        await asyncio.sleep(1)
    raise ReferenceError(f"{recipe}: refused {_TRIES} times, at last with {told}")


def _reference(texts: list[str], at_s: list[float], finish: str, begun_s: float) -> Reference:
    gaps = [after - before for before, after in itertools.pairwise(at_s)]
    first_s = at_s[0] - begun_s if at_s else 0.0
    mean_s = sum(gaps) / len(gaps) if gaps else 0.0
    return Reference(tuple(texts), finish, first_s, mean_s, max(gaps, default=0.0))
