"""From pools to replica sets."""

from pathlib import Path

import pytest

from contracts.policies import QueuePolicy, ResultPolicy
from orchestrator.configfile import loads
from orchestrator.sets import scheduler_config

TEXT = """\
pools:
  - &first {id: a, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, queue: {capacity: 10}}
  - {id: b, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, ctx: 4096,
     queue: {capacity: 5, full_policy: shed-low-priority}, timeouts: {wall_ms: 7, idle_ms: 3}}
  - {id: c, engine: llamacpp, model: smollm2-135m-instruct, accelerator: cpu-dev, queue: {capacity: 20},
     admission: {priorities: [{name: interactive, queue_capacity: 4}]}}
results: {ttl_ms: 1, tasks_max: 2, bytes_max: 3}
"""


@pytest.mark.req("ORCH-3007", "ORCH-3004", "ORCH-3005")
def test_like_pools_form_one_set_and_their_capacities_add_up() -> None:
    built = scheduler_config(loads(TEXT, "f.yaml", base=Path(), files=False).config)
    assert [s.set_id for s in built.sets] == [
        "llamacpp/smollm2-135m-instruct/-/2048/v1",
        "llamacpp/smollm2-135m-instruct/-/4096/v1",
    ]
    pair, single = built.sets
    assert pair.pool_ids == ("a", "c")
    assert pair.model_refs == ("smollm2-135m-instruct",)
    assert pair.capacity == 30
    assert pair.queues == (QueuePolicy("interactive", 14, "reject"), QueuePolicy("batch", 30, "drop-lru"))
    assert {queue.full_policy for queue in single.queues} == {"shed-low-priority"}
    assert (single.ctx, single.wall_timeout_ms, single.idle_timeout_ms) == (4096, 7, 3)
    assert built.results == ResultPolicy(ttl_ms=1, tasks_max=2, bytes_max=3)
