"""What is asked of the engines: fixed prompts, fixed seeds, fixed lengths (OC-TEST-7003).

Nothing here is drawn at random: another run, on another machine, asks the very same. Adding or changing a task makes
another task of it, with another golden.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.api import Message
from contracts.engine import GenerateRequest

#: Values at which engines fold, truncate or take a seed for "make one up".
_EDGE_SEEDS: Final = (0, 1, 2**32 - 1, 2**63 - 1)
SEEDS_MIN: Final = 64


def _seed(number: int) -> int:
    digest = hashlib.blake2b(f"llama-orch determinism {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


SEEDS: Final = (*_EDGE_SEEDS, *(_seed(number) for number in range(SEEDS_MIN - len(_EDGE_SEEDS))))

_WINDS: Final = ("north", "south", "east", "west")


def _log_book(first: int, days: int) -> str:
    """Text of about 23 tokens a day, each of which reads otherwise."""
    return "".join(
        f"Day {day}: wind from the {_WINDS[day * 3 % 4]}, {day * 7 % 23} boats out and {day * 5 % 17} back by dark. "
        for day in range(first, first + days)
    )


#: By id, from nothing to about 600 tokens, with characters of several bytes and with a chat template. No two
#: begin with the same letter: engines that reuse the prompt with the longest common beginning would take turns in
#: dropping one for the other.
PROMPTS: Final[dict[str, str | list[Message]]] = {
    "empty": "",
    "short": "The sea",
    "medium": _log_book(70, 4),
    "multibyte": "Grüße, señor! 海は広いな 🌊🚢 Ωμέγα — пиши дальше: 🙂🙂",
    "chat": [
        Message("system", "You keep a harbour's log and answer in one sentence."),
        Message("user", "How many boats came back? 🚤"),
    ],
    "long": f"Log of the ferry. {_log_book(1, 26)}",
}
#: Fewer prompts than these that apply to an engine prove too little.
PROMPTS_MIN: Final = 4


class Task(Struct, frozen=True):
    """One request, and the name by which reports and goldens know it."""

    prompt_id: str
    seed: int
    request: GenerateRequest

    @property
    def name(self) -> str:
        """`prompt/seed/tokens`, with a digest of all that the engine is told."""
        told = hashlib.sha256(msgspec.json.encode(self.request)).hexdigest()[:12]
        return f"{self.prompt_id}/{self.seed}/{self.request.max_tokens}/{told}"

    def cold(self) -> "Task":
        """The same, with the prompt's cache not to be used."""
        return Task(self.prompt_id, self.seed, replace(self.request, kv_hint="cold"))


class Plan(Struct, frozen=True):
    """How much is run. `tokens_min` and `tokens_max` bound the lengths, which differ from seed to seed.

    `crossed`: scenarios that otherwise deal every seed one of the prompts run every seed with every prompt.
    `continued` seeds take part where prompts go on, `kills` engines are killed at most. `timeout_s` is for one task.
    """

    seeds: tuple[int, ...] = SEEDS
    prompts: tuple[str, ...] = tuple(PROMPTS)
    scenarios: tuple[str, ...] = ()
    tokens_min: int = 6
    tokens_max: int = 12
    crossed: bool = False
    continued: int = 16
    kills: int = 5
    timeout_s: float = 120.0

    def tasks(self, prompts: Sequence[str] | None = None) -> list[Task]:
        """Every seed with every prompt, seed by seed."""
        return [self.task(name, seed) for seed in self.seeds for name in (prompts or self.prompts)]

    def dealt(self, prompts: Sequence[str], turn: int) -> list[Task]:
        """Every seed with one of the prompts, another one each turn; with all of them where plans are crossed.

        The long prompt comes half as often as others: it takes as long to compute as all of them.
        """
        if self.crossed:
            return self.tasks(prompts)
        pack = [*prompts, *(name for name in prompts if name != "long")]
        return [self.task(pack[(n + turn) % len(pack)], seed) for n, seed in enumerate(self.seeds)]

    def task(self, prompt_id: str, seed: int) -> Task:
        """One task of the plan."""
        prompt = PROMPTS[prompt_id]
        return Task(prompt_id, seed, self._request(prompt, seed))

    def _request(self, prompt: str | list[Message], seed: int) -> GenerateRequest:
        tokens = self.tokens_min + seed % (self.tokens_max - self.tokens_min + 1)
        text, messages = (prompt, None) if isinstance(prompt, str) else (None, prompt)
        return GenerateRequest(task_id="determinism", max_tokens=tokens, seed=seed, prompt=text, messages=messages)

    def continuations(self) -> list[tuple[GenerateRequest, Task]]:
        """Pairs of a prompt's beginning and the whole of it; each begins unlike any other, and breaks elsewhere."""
        pairs = []
        for n, seed in enumerate(self.seeds[: self.continued]):
            text = f"Page {n} of {seed}. {_log_book(40, 3)}"
            cut = len(text) * (n + 1) // (len(self.seeds[: self.continued]) + 1)
            begin = replace(self._request(text[:cut], seed), max_tokens=1)
            pairs.append((begin, Task("continued", seed, self._request(text, seed))))
        return pairs


PLAN_DEFAULT: Final = Plan()
PLAN_FULL: Final = Plan(tokens_min=24, tokens_max=64, crossed=True, continued=SEEDS_MIN, kills=16, timeout_s=600.0)
