"""`llorch_embed`, a model of Triton's Python backend for tests: a text's embedding is made of its hash."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

sys.path.append(str(Path(__file__).resolve().parents[2] / "llorch_text" / "1"))

import toy_text  # type: ignore[import-not-found]


class TritonPythonModel:
    """What Triton loads."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._embed(request) for request in requests]

    def _embed(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)
        embedding = np.array([_numbers(text) for text in texts])
        count = np.array([[len(toy_text.tokenize(text.decode()))] for text in texts], dtype=np.int32)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("embedding", embedding.astype(np.float32)),
                pb_utils.Tensor("num_input_tokens", count),
            ]
        )


def _numbers(text: bytes) -> Any:
    numbers = np.frombuffer(hashlib.shake_128(text).digest(32), dtype="<u2").astype(np.float32)
    return (numbers - 32767.5) / 32767.5
