"""Sampler profile v1: what each parameter of the API is by default, and what each engine calls it.

Released versions are never edited: a seed would mean something else. A new table gets a new version.
Sources: llama.cpp tools/server/README.md; vLLM's `SamplingParams` and OpenAPI document; TGI's `GenerateParameters`;
TensorRT-LLM's `tensorrt_llm_bls` model configuration.
"""

from typing import Final

from adapters.profiles.table import EngineColumn, SamplerDefaults

DEFAULTS: Final = SamplerDefaults(
    temperature=0.8,
    top_p=0.95,
    top_k=40,
    min_p=0.05,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)

_LLAMACPP: Final = EngineColumn(
    names={
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repeat_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "stop": "stop",
        "logit_bias": "logit_bias",
        "seed": "seed",
    },
    fixed={
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "min_keep": 0,
        "n_probs": 0,
        "ignore_eos": False,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_n_sigma": -1.0,
        "typical_p": 1.0,
        "xtc_probability": 0.0,
        "repeat_last_n": 64,
        "dry_multiplier": 0.0,
        "mirostat": 0,
        "adaptive_target": -1.0,
        "grammar": "",
        "n_keep": 0,
        "n_indent": 0,
    },
    # The engine reads the highest 32-bit seed as "make one up", so seeds are folded below it.
    seeds=2**32 - 1,
    bias_pairs=True,
)

#: Applies penalties, temperature, min_p, top_k and top_p, in this order; penalties look at the whole text.
_VLLM: Final = EngineColumn(
    names={
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "stop": "stop",
        "logit_bias": "logit_bias",
        "seed": "seed",
    },
    fixed={
        "n": 1,
        "echo": False,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "ignore_eos": False,
        "min_tokens": 0,
        "stop_token_ids": [],
        "bad_words": [],
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "add_special_tokens": True,
    },
    seeds=2**63,
)

#: Has no min_p, no presence penalty and no biases.
_TGI: Final = EngineColumn(
    names={
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "repeat_penalty": "repetition_penalty",
        "frequency_penalty": "frequency_penalty",
        "stop": "stop",
        "seed": "seed",
    },
    fixed={
        "do_sample": True,
        "typical_p": None,
        "best_of": None,
        "truncate": None,
        "watermark": False,
        "return_full_text": False,
        "decoder_input_details": False,
        "details": True,
        "top_n_tokens": None,
        "grammar": None,
        "adapter_id": None,
    },
    seeds=2**63,
    stops_max=4,
    # Refuses values that mean "off"; to leave them out says the same. Zero temperature is asked for by not sampling.
    left_out={"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0, "frequency_penalty": 0.0},
    # A top_k or top_p that is there makes it sample, whatever else it is told.
    greedy={"do_sample": False, "top_k": None, "top_p": None},
)

#: Which of these a model takes is told by its configuration. Biases go by words there, not by token ids.
_TRITON: Final = EngineColumn(
    names={
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "stop": "stop_words",
        "seed": "seed",
    },
    fixed={
        "beam_width": 1,
        "length_penalty": 1.0,
        "min_length": 1,
        "return_log_probs": False,
        "return_context_logits": False,
        "return_generation_logits": False,
    },
    seeds=2**63,
    left_out={"temperature": 0.0},
    greedy={"temperature": 1.0, "top_k": 1},
)

ENGINES: Final[dict[str, EngineColumn]] = {"llamacpp": _LLAMACPP, "vllm": _VLLM, "tgi": _TGI, "triton": _TRITON}
