"""A task as the inputs of a Triton model: what it declares decides what can be passed (ORCH-3058).

Models are named and fed as TensorRT-LLM's `tensorrt_llm_bls` is. Defaults of the sampler profile that a model has no
input for are left out, because it could not be told; what a request asks for must be there.
"""

from collections.abc import Mapping
from typing import Final

from adapters.errors import engine_error
from adapters.profiles import parameters
from adapters.triton.protocol import ENGINE, ModelConfig
from contracts.engine import EngineError, GenerateRequest

#: Other names under which models have had an input.
_ALIASES: Final = {"seed": "random_seed"}
#: Inputs that shape what comes back and not what is generated, passed where a model has them.
_FORM: Final[dict[str, object]] = {
    "stream": True,
    "exclude_input_in_output": True,
    "return_finish_reason": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}
#: What is read of a response.
READ_OUTPUTS: Final = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")

Inputs = Mapping[str, object]


def completion_inputs(config: ModelConfig, request: GenerateRequest) -> dict[str, object]:
    """Values by input name. Raises EngineError (INVALID_PARAMS) for what the model cannot be told."""
    declared = {tensor.name for tensor in config.input}
    names = {known: alias for known, alias in _ALIASES.items() if alias in declared and known not in declared}
    told = parameters(
        ENGINE,
        request.sampler_profile_version,
        request.sampling,
        request.seed,
        available=declared | names.keys(),
    )
    inputs = {names.get(name, name): value for name, value in told.items()}
    if not inputs.get("stop_words"):
        inputs.pop("stop_words", None)  # a tensor without elements is refused by many models
    inputs.update((name, value) for name, value in _FORM.items() if name in declared)
    inputs["text_input"] = _prompt(request)
    inputs["max_tokens"] = request.max_tokens
    return inputs


def stop_strings(request: GenerateRequest) -> list[str]:
    """The request's stop strings."""
    return (request.sampling.stop if request.sampling else None) or []


def _prompt(request: GenerateRequest) -> str:
    if request.messages is not None:
        raise _refused("it has no chat template; send `prompt`, with the template applied")
    if not request.prompt:
        raise _refused("it needs a prompt; send one that is not empty")
    return request.prompt


def _refused(why: str) -> EngineError:
    return engine_error(
        "INVALID_PARAMS", f"the engine {ENGINE} cannot serve this: {why}", engine=ENGINE, retriable=False
    )
