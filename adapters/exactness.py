"""How many tasks an engine may run at once without one changing the tokens of another (ORCH-3045, ORCH-3050).

Engines that batch continuously choose their kernels by how many rows a batch has, and floating-point sums depend on
the kernel: most engines give the same bytes for the same seed only while a task runs alone. A pool that promises
`strict` therefore gets one task at a time, unless the engine is known not to care, or was shown not to.
"""

from contracts.engine import EngineSpec


def is_invariant(spec: EngineSpec, *, known: bool) -> bool:
    """Whether batches do not change tokens: what the configuration says was shown, else what is `known`."""
    return known if spec.batch_invariant is None else spec.batch_invariant


def in_flight(spec: EngineSpec, *, known: bool) -> int:
    """How many tasks may be in flight: all slots, or one where that would break the pool's promise."""
    if spec.determinism == "best_effort" or is_invariant(spec, known=known):
        return spec.slots
    return 1


def is_exact(spec: EngineSpec, *, known: bool) -> bool:
    """Whether equal tasks give equal tokens, as the engine is run: one slot alone is no promise."""
    return is_invariant(spec, known=known) or spec.determinism == "strict"


def is_exact_as_launched(spec: EngineSpec, *, known: bool) -> bool:
    """The same of an engine that is exact only as this side starts it for a strict pool.

    One that is attached to was started, and is maybe used, by others: only what was declared of it counts.
    """
    return is_exact(spec, known=known) and (not spec.endpoint or is_invariant(spec, known=known))
