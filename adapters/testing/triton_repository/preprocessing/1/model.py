"""`preprocessing` of the toy model: how many tokens a prompt has."""

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
        return [self._count(request) for request in requests]

    def _count(self, request: Any) -> Any:
        query = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().reshape(-1)[0].decode()
        length = np.array([len(toy_text.tokenize(query))], dtype=np.int32)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("REQUEST_INPUT_LEN", length)])
