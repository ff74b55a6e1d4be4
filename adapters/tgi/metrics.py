"""TGI's metrics page, mapped to the contract, and what it says of work that nobody waits for any more.

A sample appears on the page when it is first touched, so a missing one is 0.
"""

import math
import re
from collections.abc import Mapping
from typing import Final

from contracts.engine import EngineMetrics

_SAMPLE: Final = re.compile(rb"^(tgi_\w+(?:\{[^}\n]*\})?) (\S+)$", re.MULTILINE)
_PREFILLS: Final = 'tgi_batch_inference_{}{{method="prefill"}}'


def parse_metrics(page: bytes) -> dict[str, float]:
    """Finite samples by name, labels included."""
    samples = {}
    for name, told in _SAMPLE.findall(page):
        try:
            value = float(told)
        except ValueError:
            continue
        if math.isfinite(value):
            samples[name.decode(errors="replace")] = value
    return samples


def metrics_of(samples: Mapping[str, float]) -> EngineMetrics:
    """The contract's view. Tokens are those of validated prompts and of generations that ended regularly."""
    return EngineMetrics(
        requests_processing=_count(samples, "tgi_batch_current_size"),
        requests_waiting=_count(samples, "tgi_queue_size"),
        tokens_in_total=_count(samples, "tgi_request_input_length_sum"),
        tokens_out_total=_count(samples, "tgi_request_generated_tokens_sum"),
    )


def holds_at_most(samples: Mapping[str, float], requests: int) -> bool:
    """Whether the engine has no more than `requests` in its queue and batch, for certain.

    The first prefill of a batch does not show in the batch's size, so none may be under way.
    """
    begun, done, failed = (samples.get(_PREFILLS.format(what), 0.0) for what in ("count", "success", "failure"))
    held = _count(samples, "tgi_batch_current_size") + _count(samples, "tgi_queue_size")
    return held <= requests and begun <= done + failed


def _count(samples: Mapping[str, float], name: str) -> int:
    return int(samples.get(name, 0.0))
