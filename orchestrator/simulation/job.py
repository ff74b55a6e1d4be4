"""A task as its client has it, from its first submission until its end."""

from typing import TYPE_CHECKING

from contracts.tasks import TaskInfo
from orchestrator.simulation.flows import FlowMeter

if TYPE_CHECKING:
    from orchestrator.simulation.agents import Agent
    from orchestrator.simulation.replica import Attempt
    from orchestrator.simulation.workloads import Workload

#: An instant that has not come.
NEVER = -1


class Job:
    """One task. `info` is what is submitted; prompt and output tokens are what it really takes.

    `deadline_ns` is the client's own: it counts from the first submission, whatever is submitted later.
    Instants are the world's; `NEVER` where it has not come to that.
    """

    __slots__ = (
        "admitted_ns",
        "agent",
        "arrived_ns",
        "attempts",
        "cancel_after_ns",
        "deadline_ns",
        "delivered_diverges",
        "delivered_tokens",
        "earliest_ms",
        "first_ns",
        "flow",
        "info",
        "last",
        "number",
        "output_tokens",
        "poison",
        "position",
        "predicted_ms",
        "preemptions",
        "probability",
        "promised_ns",
        "prompt_tokens",
        "resend_after_ns",
        "started_ns",
        "task_id",
        "told_apart",
        "tries",
        "waiting",
        "workload",
    )

    def __init__(
        self,
        number: int,
        workload: "Workload",
        flow: FlowMeter,
        info: TaskInfo,
        prompt_tokens: int,
        output_tokens: int,
        arrived_ns: int,
    ) -> None:
        self.number = number
        self.workload = workload
        self.flow = flow
        self.info = info
        self.task_id = info.task_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.arrived_ns = arrived_ns
        self.deadline_ns = arrived_ns + info.deadline_ms * 1_000_000
        self.admitted_ns = NEVER
        self.started_ns = NEVER
        self.first_ns = NEVER
        self.promised_ns = NEVER
        #: What the scheduler said would be the smallest deadline it accepts, when it refused the task's; else 0.
        self.earliest_ms = 0
        self.position = 0
        self.predicted_ms = 0
        self.probability = 1.0
        self.tries = 0
        self.attempts = 0
        self.preemptions = 0
        self.waiting = False
        self.cancel_after_ns = NEVER
        self.resend_after_ns = NEVER
        self.agent: Agent | None = None
        #: The last attempt, and what those before it delivered, as which text.
        self.last: Attempt | None = None
        self.delivered_tokens = 0
        self.delivered_diverges = False
        #: The attempt of which it was told that it makes other text than was delivered.
        self.told_apart = 0
        #: It crashes the engine that runs it.
        self.poison = False
