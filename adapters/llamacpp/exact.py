"""What of a llama-server's ways is known to keep tokens as they are (ORCH-3045)."""

from adapters.exactness import in_flight, is_exact, is_invariant
from contracts.engine import EngineSpec


def is_batch_invariant(spec: EngineSpec) -> bool:
    """Our flags, and nothing else, make batches exact on the CPU; GPU kernels are chosen by how many rows a batch has.

    Whole inputs of embeddings and ranks share batches of many rows, which is exact nowhere. What flags a server has
    that runs already, nobody knows.
    """
    ours = not spec.args and not spec.env and not spec.endpoint
    return ours and spec.accelerator == "cpu-dev" and spec.workload == "completion"


def slots_of(spec: EngineSpec) -> int:
    """How many tasks run at once. Ranks of inputs that share a batch are plainly wrong, not only rounded otherwise."""
    if spec.workload == "rerank" and not spec.batch_invariant:
        return 1
    return in_flight(spec, known=is_batch_invariant(spec))


def keeps_bytes(spec: EngineSpec) -> bool:
    """Whether equal tasks give equal bytes. Ranks are made one task and one document at a time in any case."""
    return is_exact(spec, known=is_batch_invariant(spec)) or (spec.workload == "rerank" and slots_of(spec) == 1)


def may_reuse(spec: EngineSpec) -> bool:
    """Whether a prompt may be answered from what its slot holds: elsewhere a cached one rounds otherwise."""
    return spec.determinism == "best_effort" or is_invariant(spec, known=is_batch_invariant(spec))
