"""What a run does, drawn from its seed alone: which tasks are asked for when, and what is broken when.

Pure: the same seed and seconds give the same plan on every machine, so that a failure can be had again.
"""

import random
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

Pool = Literal["fake", "real"]
Door = Literal["own", "haproxy"]
#: one_call: POST that streams; post_get: POST, then GET the stream; shipped: the Python client of the project.
Style = Literal["one_call", "post_get", "shipped"]

TASKS_PER_S: Final = 1.1
REAL_SHARE: Final = 0.1
SESSIONS: Final = 6
FAKE_TOKENS: Final = (20, 60, 120, 200, 400)
REAL_TOKENS: Final = (16, 32, 48)
_WORDS: Final = ("river", "engine", "lantern", "copper", "meadow", "signal", "harbor", "violet", "timber", "compass")

#: Kinds of process that are killed, how often one is chosen against the others, and the least time between two kills
#: of a kind: how long it takes to be back, and some time in which all is well.
KILLS: Final[dict[str, tuple[float, float]]] = {
    "kill engine": (4, 6),
    "kill replica": (3, 10),
    "kill ingress": (2, 20),
    "kill scheduler": (3, 12),
    "kill standby": (1, 15),
    "kill manager": (1, 15),
    "kill node": (1, 50),
    "kill haproxy": (1, 40),
}
#: Everything else: how often, and how long it lasts, in milliseconds from and to.
TROUBLES: Final[dict[str, tuple[float, int, int]]] = {
    "stop engine": (2, 1000, 4000),
    "stop replica": (2, 1000, 4000),
    "stop scheduler": (2, 1000, 4000),
    "stop ingress": (2, 1000, 4000),
    "end replica": (1, 0, 0),
    "end ingress": (1, 0, 0),
    "end scheduler": (1, 0, 0),
    "cut scheduler link": (2, 0, 0),
    "cut replica link": (2, 0, 0),
    "lose scheduler link": (1, 1000, 6000),
    "lose replica link": (1, 1000, 6000),
    "disk full": (2, 2000, 3000),
    "clock step": (2, -3_600_000, 3_600_000),
}
#: What takes long to be back is killed at its own times alone.
_NEVER_INSTEAD: Final = ("kill node", "kill haproxy")
#: At least one in ten seconds; much closer, and two cores do nothing but start processes.
KILL_GAP_S: Final = (6.5, 9.8)
TROUBLE_GAP_S: Final = (4.0, 9.0)


class Recipe(Struct, frozen=True):
    """What determines a strict task's text."""

    pool: Pool
    prompt: str
    seed: int
    max_tokens: int


class TaskPlan(Struct, frozen=True):
    """One task: when it is asked for, how, and what its client does meanwhile; -1: nothing of that."""

    index: int
    at_s: float
    recipe: int
    style: Style
    door: Door
    leave_after: int = -1
    away_ms: int = 0
    cancel_after: int = -1
    slow_ms: int = 0
    session: int = -1
    deadline_ms: int = 120_000


class FaultPlan(Struct, frozen=True):
    """One fault: `pick` (0 to 1) chooses the victim among those alive. For a kill, `otherwise` are the kinds to kill
    instead, in this order, while one of `kind` is still missing: two of a kind are not missing at once.
    """

    at_s: float
    kind: str
    pick: float
    lasts_ms: int = 0
    otherwise: tuple[str, ...] = ()


def recipes(seed: int) -> list[Recipe]:
    """The distinct texts of a run, few enough to be made once beforehand."""
    rng = random.Random(f"{seed}/recipes")
    fakes = [_recipe(rng, "fake", tokens) for tokens in FAKE_TOKENS for _ in range(4)]
    reals = [_recipe(rng, "real", tokens) for tokens in REAL_TOKENS for _ in range(2)]
    return fakes + reals


def _recipe(rng: random.Random, pool: Pool, tokens: int) -> Recipe:
    prompt = f"Tell me of the {rng.choice(_WORDS)} and the {rng.choice(_WORDS)}, number {rng.randrange(1000)}:"
    return Recipe(pool, prompt, rng.randrange(2**31), tokens)


def tasks(seed: int, seconds: float, made: Sequence[Recipe]) -> list[TaskPlan]:
    """Tasks at a steady rate, each a little off its beat."""
    rng = random.Random(f"{seed}/tasks")
    by_pool = {pool: [n for n, recipe in enumerate(made) if recipe.pool == pool] for pool in ("fake", "real")}
    count = int(seconds * TASKS_PER_S)
    return [_task(rng, index, (index + rng.random()) / TASKS_PER_S, by_pool, made) for index in range(count)]


def _task(
    rng: random.Random, index: int, at_s: float, by_pool: dict[str, list[int]], made: Sequence[Recipe]
) -> TaskPlan:
    recipe = rng.choice(by_pool["real" if rng.random() < REAL_SHARE else "fake"])
    tokens = made[recipe].max_tokens
    style: Style = rng.choices(("one_call", "post_get", "shipped"), (44, 44, 12))[0]
    door: Door = "haproxy" if rng.random() < 0.25 else "own"
    draw, session = rng.random(), rng.randrange(SESSIONS) if rng.random() < 0.1 else -1
    deadline_ms = rng.choice((60_000, 90_000, 120_000))
    at = rng.randrange(1, tokens)
    away_ms, slow_ms = rng.randrange(0, 1500), rng.randrange(20, 60)
    leaves, slow, cancels = draw < 0.2, 0.2 <= draw < 0.26, 0.26 <= draw < 0.32
    if style == "shipped":  # it does these by itself, or not at all
        leaves = slow = False
        door = "own"  # it has one URL, and only there are two processes behind it
    return TaskPlan(
        index,
        round(at_s, 3),
        recipe,
        style,
        door,
        leave_after=at if leaves else -1,
        away_ms=away_ms if leaves else 0,
        cancel_after=at if cancels else -1,
        slow_ms=slow_ms if slow else 0,
        session=session,
        deadline_ms=deadline_ms,
    )


def faults(seed: int, seconds: float, only: Sequence[str] = ()) -> list[FaultPlan]:
    """Kills, at least one in ten seconds, and other troubles between them, in order of time.

    `only` takes faults of those kinds alone, at the same moments.
    """
    wanted = [kind for kind in (*KILLS, *TROUBLES) if not only or kind in only]
    made = _kills(seed, seconds, wanted) + _troubles(seed, seconds, wanted)
    return sorted(made, key=lambda fault: fault.at_s)


def _kills(seed: int, seconds: float, wanted: Sequence[str]) -> list[FaultPlan]:
    rng, moments = random.Random(f"{seed}/kills"), random.Random(f"{seed}/moments of kills")
    kinds = [kind for kind in KILLS if kind in wanted]
    made: list[FaultPlan] = []
    last_s = dict.fromkeys(kinds, float("-inf"))
    done = dict.fromkeys(kinds, 0)
    at_s = moments.uniform(1, 3)
    while kinds and at_s < seconds:
        # The kind that is furthest behind its share, among those that had their time: first, each has its turn.
        ready = [kind for kind in kinds if at_s - last_s[kind] >= KILLS[kind][1]] or kinds[:1]
        behind = {kind: rng.random() for kind in ready if not done[kind]} or {
            kind: (done[kind] + rng.random()) / KILLS[kind][0] for kind in ready
        }
        kind = min(behind, key=lambda each: behind[each])
        others = [each for each in kinds if each not in (kind, *_NEVER_INSTEAD)]
        rng.shuffle(others)
        made.append(FaultPlan(round(at_s, 3), kind, rng.random(), 0, tuple(others)))
        last_s[kind], done[kind] = at_s, done[kind] + 1
        at_s += moments.uniform(*KILL_GAP_S)
    return made


def _troubles(seed: int, seconds: float, wanted: Sequence[str]) -> list[FaultPlan]:
    rng, moments = random.Random(f"{seed}/troubles"), random.Random(f"{seed}/moments of troubles")
    kinds = [kind for kind in TROUBLES if kind in wanted]
    made: list[FaultPlan] = []
    seen: set[str] = set()
    busy_until_s = dict.fromkeys(kinds, 0.0)
    at_s = moments.uniform(3, 6)
    while kinds and at_s < seconds:
        ready = [kind for kind in kinds if busy_until_s[kind] <= at_s]
        if ready:
            fresh = [each for each in ready if each not in seen]  # first, each has its turn
            kind = rng.choices(fresh or ready, [TROUBLES[each][0] for each in fresh or ready])[0]
            seen.add(kind)
            lasts_ms = rng.randint(*TROUBLES[kind][1:])
            made.append(FaultPlan(round(at_s, 3), kind, rng.random(), lasts_ms))
            busy_until_s[kind] = at_s + abs(lasts_ms) / 1000 if kind != "clock step" else at_s
        at_s += moments.uniform(*TROUBLE_GAP_S)
    return made
