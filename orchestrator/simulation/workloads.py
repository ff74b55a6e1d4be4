"""One stream of tasks: who sends them, how big they are, and what its clients do about a refusal."""

from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import Final

from contracts.errors import ErrorInfo
from contracts.tasks import TaskInfo
from orchestrator.simulation.flows import Flows
from orchestrator.simulation.job import Job
from orchestrator.simulation.scenario import WorkloadSection
from orchestrator.simulation.sizes import drawer

NS_PER_MS: Final = 1_000_000
#: Within how many milliseconds a client that did not see its answer sends the task again.
RESEND_MS_MAX: Final = 2000
#: What every task asks for; the scenario's one replica set serves it.
ENGINE: Final = "llamacpp"
MODEL: Final = "model"
PROFILE: Final = "v1"


class Workload:
    """Makes the tasks of one stream. All sizes come from one generator of random numbers, in the order of arrivals.

    So the same scenario has the same tasks whatever the scheduler does with them, and policies can be
    compared on them.
    """

    def __init__(self, section: WorkloadSection, index: int, ctx: int, flows: Flows, seed: int) -> None:
        self.section = section
        self.index = index
        self.ctx = ctx
        self.rng = Random(f"{seed}/{section.name}")
        self._name = section.name
        self._seed = seed
        self._flows = flows
        self.tenant = _picker(section.tenants, self.rng)
        self.priority = _picker(section.priority, self.rng)
        self.prompt_tokens = drawer(section.prompt_tokens, self.rng)
        self.output_tokens = drawer(section.output_tokens, self.rng)
        self.deadline_ms = drawer(section.deadline_ms, self.rng)
        self._cancel_ms = drawer(section.cancel_after_ms, self.rng)

    def make(self, number: int, now_ns: int) -> Job:
        """The next task, drawn from the stream's sizes and shares."""
        return self.job(
            number,
            now_ns,
            tenant=self.tenant(),
            priority=self.priority(),
            prompt_tokens=self.prompt_tokens(),
            output_tokens=self.output_tokens(),
            max_tokens=self.section.max_tokens,
            deadline_ms=self.deadline_ms(),
        )

    def job(
        self,
        number: int,
        now_ns: int,
        *,
        tenant: str,
        priority: str,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        deadline_ms: int,
        session_id: str = "",
    ) -> Job:
        """A task of these sizes; what is not given is drawn."""
        section, rng = self.section, self.rng
        prompt_tokens = prompt_tokens if prompt_tokens > 1 else 1
        output_tokens = max(1, output_tokens) if output_tokens < max_tokens else max_tokens
        task_id = f"{self._name}.{number}"
        hint: int | None = None
        if section.hint_error_percent is not None:
            wrong = rng.lognormvariate(0, section.hint_error_percent / 100)
            hint = min(max_tokens, max(1, round(output_tokens * wrong)))
        # By position, in the order of the contract: by name it would cost four times as much, for every task.
        info = TaskInfo(
            task_id,
            session_id or task_id,
            tenant,
            "completion",
            ENGINE,
            MODEL,
            self.ctx,
            priority,
            max_tokens,
            deadline_ms if deadline_ms > 1 else 1,
            number,
            "strict",
            PROFILE,
            int(prompt_tokens * section.bytes_per_token),
            False,
            b"",
            "",
            hint,
            None,
            False,
            None,
            tenant,
        )
        job = Job(number, self, self._flows.meter(priority, tenant), info, prompt_tokens, output_tokens, now_ns)
        if section.cancel_percent and rng.random() * 100 < section.cancel_percent:
            job.cancel_after_ns = self._cancel_ms() * NS_PER_MS
        if section.resend_percent and rng.random() * 100 < section.resend_percent:
            job.resend_after_ns = int(rng.random() * RESEND_MS_MAX * NS_PER_MS)
        if section.poison_percent and rng.random() * 100 < section.poison_percent:
            job.poison = True
        return job

    def next_try_ns(self, job: Job, now_ns: int, error: ErrorInfo) -> int | None:
        """When the client submits the task again after a refusal; None if it gives up."""
        policy = self.section.on_refusal
        after_ms = error.retry_after_ms
        if policy.kind == "give-up" or not error.retriable or after_ms is None or job.tries >= policy.tries_max:
            return None
        again_ns = now_ns + after_ms * NS_PER_MS
        if policy.kind == "jitter":
            # A generator of its own: tries must not change the sizes of the tasks that follow.
            chance = Random(f"{self._seed}/{job.task_id}/{job.tries}").random()
            again_ns += int(after_ms * NS_PER_MS * chance * policy.jitter_percent / 100)
        return again_ns if again_ns < job.deadline_ns else None


def _picker(shares: str | dict[str, float], rng: Random) -> Callable[[], str]:
    """A function that picks one name after the other by their shares."""
    if isinstance(shares, str):
        return lambda: shares
    names, cumulative = list(shares), list(accumulate(shares.values()))
    return lambda: names[bisect(cumulative, rng.random() * cumulative[-1], 0, len(names) - 1)]
