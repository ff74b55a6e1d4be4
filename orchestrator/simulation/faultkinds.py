"""The kinds of faults that a scenario can have; times count from its start."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.config_base import Section
from contracts.pools import FaultKind

Seconds = Annotated[float, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(gt=0, le=100)]
Targets = Annotated[int, Field(ge=1)] | Annotated[list[str], Field(min_length=1)]


class Crash(Section):
    """Replicas die at `at_s` and are started again after `down_s` (left out: never)."""

    kind: Literal["crash"]
    at_s: Seconds
    down_s: Seconds | None = 10
    replicas: Targets = 1


class Flapping(Section):
    """Replicas die again and again, up for `up_s` and down for `down_s`, until `for_s` have passed."""

    kind: Literal["flapping"]
    at_s: Seconds
    for_s: Length
    up_s: Length = 10
    down_s: Length = 1
    replicas: Targets = 1


class EngineDown(Section):
    """The engine stops but its replica lives: it says so, and loads again after `down_s`.

    `why` decides whether what it was running may have caused it: `exit`, `stuck`, `vram_oom` and `xid` do.
    """

    kind: Literal["engine-down"]
    at_s: Seconds
    down_s: Length = 10
    why: FaultKind = "exit"
    replicas: Targets = 1


class Slow(Section):
    """Attempts that start meanwhile take `factor` times as long."""

    kind: Literal["slow"]
    at_s: Seconds
    for_s: Length
    factor: Annotated[float, Field(gt=0)] = 3
    replicas: Targets = 1


class Hanging(Section):
    """Attempts that start meanwhile make no token and never end by themselves; a `deaf` engine ignores stops too."""

    kind: Literal["hanging"]
    at_s: Seconds
    for_s: Length
    deaf: bool = False
    replicas: Targets = 1


class Failing(Section):
    """A share of the attempts that start meanwhile fails before the first token, for a retriable reason."""

    kind: Literal["failing"]
    at_s: Seconds
    for_s: Length
    percent: Percent = 50
    replicas: Targets = 1


class Diverging(Section):
    """Attempts that start meanwhile make other text than every other replica would."""

    kind: Literal["diverging"]
    at_s: Seconds
    for_s: Length
    replicas: Targets = 1


class Reports(Section):
    """What replicas report is lost, repeated or late; late ones overtake each other, by up to `late_ms`."""

    kind: Literal["reports"]
    at_s: Seconds
    for_s: Length
    lost_percent: Annotated[float, Field(ge=0, le=100)] = 0
    duplicate_percent: Annotated[float, Field(ge=0, le=100)] = 0
    late_ms: Annotated[int, Field(ge=0)] = 0
    replicas: Targets = 1


class ClockJump(Section):
    """The scheduler's clock jumps by `jump_ms`, forward or back."""

    kind: Literal["clock"]
    at_s: Seconds
    jump_ms: int


class Cut(Section):
    """The links of replicas to the scheduler are cut; the replicas go on, and have new links after `for_s`."""

    kind: Literal["cut"]
    at_s: Seconds
    for_s: Length = 2
    replicas: Targets = 1


class SchedulerDown(Section):
    """The scheduler dies, and another one goes on with its journal after `down_s`; replicas and clients live on.

    With `shutdown_ms` it is asked to end first, and what runs may finish for as long.
    """

    kind: Literal["scheduler"]
    at_s: Seconds
    down_s: Length = 1
    shutdown_ms: Annotated[int, Field(ge=0)] = 0


class Storage(Section):
    """The disk of the journal is full: nothing becomes durable for `for_s`."""

    kind: Literal["storage"]
    at_s: Seconds
    for_s: Length = 5


Fault = Annotated[
    Crash
    | Flapping
    | EngineDown
    | Slow
    | Hanging
    | Failing
    | Diverging
    | Reports
    | ClockJump
    | Cut
    | SchedulerDown
    | Storage,
    Field(discriminator="kind"),
]
