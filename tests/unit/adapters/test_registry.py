import pytest

from adapters import ENGINES, create_adapter
from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.models import bundled_model_path
from contracts.engine import EngineError, EngineSpec


def spec(engine: str) -> EngineSpec:
    return EngineSpec(
        engine=engine,
        pool_id="p",
        replica_id="p-0",
        model="m",
        model_path="/m.gguf",
        ctx=64,
        slots=1,
        accelerator="cpu-dev",
    )


@pytest.mark.req("ORCH-3058", "ORCH-2008")
def test_known_engines_are_made_and_unknown_ones_refused_by_name() -> None:
    assert isinstance(create_adapter(spec("llamacpp")), LlamaCppAdapter)
    made = {engine: type(create_adapter(spec(engine))).__name__ for engine in ENGINES}
    assert made == {
        "llamacpp": "LlamaCppAdapter",
        "tgi": "TgiAdapter",
        "triton": "TritonAdapter",
        "vllm": "VllmAdapter",
    }
    with pytest.raises(EngineError, match="other") as raised:
        create_adapter(spec("other"))
    assert raised.value.info.code == "INVALID_PARAMS"
    assert raised.value.info.engine == "other"


def test_a_model_that_is_not_bundled_is_named_in_the_error() -> None:
    with pytest.raises(EngineError, match="smollm2-135m-instruct") as raised:
        bundled_model_path("other")
    assert raised.value.info.code == "INVALID_PARAMS"
