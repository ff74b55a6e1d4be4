"""Small waiting tasks, tiers and a dispatch loop for tests of ordering and fairness."""

from contracts.policies import FairnessKind, QueuePolicy
from orchestrator.core.fairness import make
from orchestrator.core.flows import Fairness, Flow, Tier


class Job:
    """A task as a line sees it, and the flow it belongs to."""

    def __init__(self, order: int, key: int = 0, cost_tokens: int = 1, *, fresh: bool = True) -> None:
        self.order = order
        self.key = key
        self.cost_tokens = cost_tokens
        self.fresh = fresh
        self.flow: Flow[Job] | None = None

    def __repr__(self) -> str:
        return f"Job({self.order}, {self.key}, {self.cost_tokens})"


class Bench:
    """The queues of one set: `bench.push` lets tasks wait, `bench.start` takes the next one as a slot would."""

    def __init__(self, kind: FairnessKind, **weights: int) -> None:
        self.fairness: Fairness[Job] = make(kind)
        self.tiers = {
            name: Tier(QueuePolicy(name, 10**6, "reject", weight=weight), self.fairness)
            for name, weight in weights.items()
        }
        self.orders = 0

    def flow(self, priority: str, tenant: str = "acme", weight: int = 1) -> Flow[Job]:
        return self.tiers[priority].flow(tenant, weight)

    def push(self, flow: Flow[Job], cost_tokens: int = 1, key: int | None = None) -> Job:
        """A task arrives; by default the lines are first in, first out."""
        self.orders += 1
        job = Job(self.orders, self.orders if key is None else key, cost_tokens)
        job.flow = flow
        flow.push(job)
        return job

    def start(self) -> Job | None:
        """The next task, taken and charged; None when none may start."""
        flow = self.fairness.select()
        if flow is None:
            return None
        job = flow.pop()
        self.fairness.charge(flow, job.cost_tokens)
        return job

    def run(self, starts: int) -> list[Job]:
        """The next tasks, each ended before the one after it starts."""
        done: list[Job] = []
        while len(done) < starts:
            job = self.start()
            if job is None:
                break
            assert job.flow is not None
            self.fairness.correct(job.flow, 0)
            done.append(job)
        return done


def tokens_of(jobs: list[Job], flow: Flow[Job]) -> int:
    """What these tasks of a flow cost together."""
    return sum(job.cost_tokens for job in jobs if job.flow is flow)
