"""The configuration file's sections about pools over time: scaling, restarts, models to reload to, leases.

The translation into what the scheduler reads (`contracts/policies.py`) is `orchestrator/sets.py`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from contracts.api import Engine
from contracts.config_base import Percent, PositiveInt, Section

#: `sha256:<hex>` of a model's file.
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
#: What a request to drain may ask for as well: at most a day.
DrainMs = Annotated[int, Field(ge=0, le=86_400_000)]


class ScalingConfig(Section):
    """How many replicas a pool keeps; it starts with `replicas`, and with equal bounds it stays there.

    One more comes when the predicted wait has been over `target_wait_ms` for `up_after_ms`, one goes when the
    rest would have done for `down_after_ms`. With `min: 0` an idle pool gives up all of them.
    """

    min: Annotated[int, Field(ge=0)] | None = Field(None, description="left out: `replicas`")
    max: PositiveInt | None = Field(None, description="left out: `replicas`")
    target_wait_ms: PositiveInt = 2_000
    up_after_ms: PositiveInt = 3_000
    down_after_ms: PositiveInt = 120_000


class RestartConfig(Section):
    """How a failed launch is tried again (ORCH-3053).

    The wait doubles from `backoff_min_ms` to `backoff_max_ms`, plus up to `jitter_percent` of it, and starts over
    once a replica served for `stable_after_ms`. After `breaker_failures` failures of the pool in a row, one
    replica at a time is tried, at the longest wait.
    """

    backoff_min_ms: PositiveInt = 500
    backoff_max_ms: PositiveInt = 60_000
    jitter_percent: Percent = 20
    stable_after_ms: PositiveInt = 60_000
    breaker_failures: PositiveInt = 5


class ModelConfig(Section):
    """A model that pools of its engine may be reloaded to; their own models need no entry (ORCH-3031)."""

    ref: str = Field(min_length=1, max_length=256, description="name under which it is asked for")
    engine: Engine
    path: Path = Field(description="model file, at the same place on every node")
    digest: Digest | None = Field(None, description="the file is refused unless it has this digest")


class LeaseConfig(Section):
    """A replica that was not heard of for `ttl_ms` is sent nothing more; after `lost_ms` it counts as gone.

    Replicas renew their leases every half second, so that `ttl_ms` outlasts at least one lost renewal.
    """

    ttl_ms: Annotated[int, Field(ge=1_000)] = 2_500
    lost_ms: PositiveInt = 15_000
