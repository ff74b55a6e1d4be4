"""What scenarios work on: two replicas, the tasks that apply, the reference, the books."""

from collections.abc import Sequence
from typing import Final

from adapters.testing.determinism.ledger import Ledger
from adapters.testing.determinism.replicas import Replica
from adapters.testing.determinism.tasks import PROMPTS_MIN, Plan, Task
from adapters.testing.determinism.transcript import Transcript
from contracts.engine import EngineError

REFERENCE: Final = "alone"


class Bench:
    """Two replicas of one set and the answers that both must give."""

    def __init__(self, a: Replica, b: Replica, plan: Plan, ledger: Ledger) -> None:
        self.a = a
        self.b = b
        self.plan = plan
        self.ledger = ledger
        self.prompts: tuple[str, ...] = ()
        self.reference: dict[str, Transcript] = {}

    @property
    def slots(self) -> int:
        """How many tasks both replicas take at once."""
        return min(self.a.properties.slots, self.b.properties.slots)

    async def find_prompts(self) -> None:
        """Keep the prompts that the engine can serve at all; what it refuses is written down with its reason."""
        kept = []
        for name in self.plan.prompts:
            task = self.plan.task(name, self.plan.seeds[0])
            try:
                await self.a.run(task)
            except EngineError as error:
                if error.info.code != "INVALID_PARAMS":
                    raise
                self.ledger.passes_over(f"prompt {name}", error.info.message)
            else:
                kept.append(name)
        self.prompts = tuple(kept)
        if len(kept) < min(PROMPTS_MIN, len(self.plan.prompts)):
            self.ledger.fail(REFERENCE, f"the engine serves {len(kept)} of the prompts; {PROMPTS_MIN} are the least")

    async def make_reference(self, tasks: Sequence[Task]) -> None:
        """Every task by itself on A: what everything else is compared with."""

        def keep(task: Task, found: Transcript) -> None:
            self.reference[task.name] = found

        await self.a.run_all(tasks, 1, keep, lambda task, why: self.lost(REFERENCE, self.a, task, why))

    async def compare_all(self, scenario: str, replica: Replica, tasks: Sequence[Task], width: int) -> None:
        """Run the tasks and compare each with the reference."""

        def compare(task: Task, found: Transcript) -> None:
            self.compare(scenario, replica, task, found)

        await replica.run_all(tasks, width, compare, lambda task, why: self.lost(scenario, replica, task, why))

    def compare(self, scenario: str, replica: Replica, task: Task, found: Transcript) -> None:
        """Compare one generation with the reference of the task, however its prompt was to be cached."""
        expected = self.reference.get(self.plan.task(task.prompt_id, task.seed).name)
        if expected is None:
            self.ledger.fail(scenario, f"{task.prompt_id}/{task.seed} has no reference")
        else:
            self.ledger.compare(scenario, replica.name, task, expected, found)

    def lost(self, scenario: str, replica: Replica, task: Task, why: str) -> None:
        """A task came to nothing that had to be served."""
        self.ledger.fail(scenario, f"{task.prompt_id}/{task.seed} on {replica.name}: {why}")
