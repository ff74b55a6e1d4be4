"""What a model must declare to be served."""

from typing import Final

from adapters.errors import engine_error
from adapters.triton.protocol import ENGINE, ModelConfig
from contracts.engine import EngineSpec

#: Inputs and outputs by workload; there is no convention for reranking.
_NEEDED: Final = {
    "completion": (("text_input", "max_tokens"), ("text_output",)),
    "embedding": (("text_input",), ("embedding",)),
}


def check_interface(spec: EngineSpec, config: ModelConfig) -> None:
    """Raises EngineError with kind `model`: INVALID_PARAMS for a workload that Triton does not serve, POOL_UNREADY
    for a model that does not declare what the workload needs."""
    if spec.workload not in _NEEDED:
        message = f"pool {spec.pool_id}: the engine {ENGINE} serves no {spec.workload}; use another engine for it"
        raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False, kind="model")
    inputs, outputs = _NEEDED[spec.workload]
    declared = {tensor.name for tensor in config.input}
    lacking = [name for name in inputs if name not in declared]
    lacking += [name for name in outputs if not config.has_output(name)]
    if spec.workload == "completion" and not config.model_transaction_policy.decoupled:
        lacking.append("decoupled transaction policy")
    if lacking:
        message = f"model {spec.model!r} declares no {', '.join(lacking)}, which a {spec.workload} needs"
        message += "; name a model that does"
        raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True, kind="model")
