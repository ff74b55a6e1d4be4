"""The books of a run: what was compared, what differed, what failed, and what did not apply and why."""

from typing import Final

from msgspec import Struct

from adapters.testing.determinism.tasks import Task
from adapters.testing.determinism.transcript import Divergence, Transcript, divergence

#: Details that are kept of a run that goes wrong everywhere; the counts go on.
DETAILS_MAX: Final = 50


class Difference(Struct, frozen=True):
    """One comparison that failed. `replica` made what was `found`."""

    scenario: str
    prompt_id: str
    seed: int
    max_tokens: int
    replica: str
    where: Divergence
    expected: Transcript
    found: Transcript


class Count:
    """What one scenario compared."""

    def __init__(self) -> None:
        self.comparisons = 0
        self.differences = 0
        self.failures = 0
        self.reused = 0
        self.seeds: set[int] = set()
        self.prompts: set[str] = set()
        self.note = ""


class Ledger:
    """Scenarios by name, in the order in which they began."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}
        self.differences: list[Difference] = []
        self.failures: list[str] = []
        self.not_applicable: dict[str, str] = {}

    def count(self, scenario: str) -> Count:
        """The scenario's count, begun where there is none."""
        return self.counts.setdefault(scenario, Count())

    def compare(self, scenario: str, replica: str, task: Task, expected: Transcript, found: Transcript) -> None:
        """Count a comparison, and keep what differs."""
        count = self.count(scenario)
        count.comparisons += 1
        count.reused += found.tokens_cached > 0
        count.seeds.add(task.seed)
        count.prompts.add(task.prompt_id)
        where = divergence(expected, found)
        if where is None:
            return
        count.differences += 1
        if len(self.differences) < DETAILS_MAX:
            self.differences.append(
                Difference(
                    scenario=scenario,
                    prompt_id=task.prompt_id,
                    seed=task.seed,
                    max_tokens=task.request.max_tokens,
                    replica=replica,
                    where=where,
                    expected=expected,
                    found=found,
                )
            )

    def fail(self, scenario: str, message: str) -> None:
        """Something that had to work did not, so that nothing could be compared."""
        self.count(scenario).failures += 1
        if len(self.failures) < DETAILS_MAX:
            self.failures.append(f"{scenario}: {message}")

    def passes_over(self, what: str, reason: str) -> None:
        """Something does not apply to this engine."""
        self.not_applicable[what] = reason

    @property
    def comparisons(self) -> int:
        """Of all scenarios."""
        return sum(count.comparisons for count in self.counts.values())

    @property
    def green(self) -> bool:
        """Whether all was compared that applies, and nothing differed."""
        return self.comparisons > 0 and not any(c.differences or c.failures for c in self.counts.values())
