"""`llorch_text`, a model of Triton's Python backend for tests: one loop makes a token of every sequence in turn.

What a prompt tells it to do, besides making text, is for tests of what goes wrong:

- `[[fail]]`, `[[fail:N]]`   an error instead of the first response, or after N tokens
- `[[crash]]`, `[[crash:N]]` the stub process dies, at once or after N tokens
- `[[stall]]`, `[[stall:N]]` nothing more comes until the request is cancelled
- `[[deaf]]`                 cancelling is not noticed
- `[[nothing]]`              no response at all, only the end
- `[[blank:N]]`              the first N tokens have no text
- `[[huge:N]]`               the first token has N characters
- `[[pace:MS]]`              so many milliseconds a token (2 by default)
- `[[split]]`                characters are broken between responses, as a careless detokenizer breaks them
"""

import json
import os
import re
import threading
import time
from typing import Any

import numpy as np
import toy_text  # type: ignore[import-not-found]
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

_COMMAND = re.compile(r"\[\[(\w+)(?::(\d+))?\]\]")
_PACE_MS = 2
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Job:
    """One request: its text, its sender, what its prompt told."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.sender = request.get_response_sender()
        prompt = _input(request, "text_input").decode()
        self.told = {name: int(value or 0) for name, value in _COMMAND.findall(prompt)}
        self.tokens_in = len(toy_text.tokenize(prompt))
        self.made = 0
        self.next_at = time.monotonic()
        self.pace_s = self.told.get("pace", _PACE_MS) / 1000
        self.rest = b""
        sampling = {name: value for name in _SAMPLING if (value := _input(request, name)) is not None}
        stops = pb_utils.get_input_tensor_by_name(request, "stop_words")
        self.text = toy_text.Text(
            prompt,
            int(_input(request, "max_tokens")),
            int(_input(request, "seed") or 0),
            toy_text.Sampling(**sampling),
            [] if stops is None else [word.decode() for word in stops.as_numpy().reshape(-1)],
        )

    def is_due(self, name: str) -> bool:
        return self.told.get(name) == self.made

    def fail(self, message: str, code: int) -> None:
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
        self.sender.send(error, flags=_FINAL)

    def step(self) -> bool:
        """Make one token; whether this was the last thing to do."""
        if self.request.is_cancelled() and "deaf" not in self.told:
            self.fail("cancelled", pb_utils.TritonError.CANCELLED)
            return True
        if self.is_due("crash"):
            os._exit(3)
        if self.is_due("fail"):
            self.fail("the prompt asked for an error", pb_utils.TritonError.INTERNAL)
            return True
        if "nothing" in self.told:
            self.sender.send(flags=_FINAL)
            return True
        if self.is_due("stall"):
            self.next_at += 0.005
            return False
        self.next_at += self.pace_s
        self.respond()
        if self.text.finish_reason:
            self.sender.send(flags=_FINAL)
        return bool(self.text.finish_reason)

    def respond(self) -> None:
        piece = self.text.step()
        if self.made == 0 and "huge" in self.told:
            piece = "x" * self.told["huge"]
        if self.made < self.told.get("blank", 0):
            piece = ""
        self.made += 1
        data = self.rest + piece.encode()
        keep = len(data) // 2 if "split" in self.told and not self.text.finish_reason and not data.isascii() else 0
        self.rest = data[len(data) - keep :] if keep else b""
        outputs = {
            "text_output": np.array([data[: len(data) - keep]], dtype=np.object_),
            "cum_log_probs": np.array([self.text.log_prob], dtype=np.float32),
            "finish_reason": np.array([self.text.finish_reason.encode()], dtype=np.object_),
            "num_input_tokens": np.array([self.tokens_in], dtype=np.uint32),
            "num_output_tokens": np.array([1], dtype=np.uint32),
        }
        tensors = [pb_utils.Tensor(name, values) for name, values in outputs.items()]
        self.sender.send(pb_utils.InferenceResponse(output_tensors=tensors))


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._limit_tokens = int(config["parameters"]["max_seq_len"]["string_value"])
        # The name under which TensorRT-LLM's backend tells how many requests it works on.
        family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="requests by state", kind=pb_utils.MetricFamily.GAUGE
        )
        labels = {"model": args["model_name"], "version": args["model_version"], "request_type": "active"}
        self._active = family.Metric(labels=labels)
        self._families = [family]
        self._new: list[Job] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests over; their responses come from the loop."""
        for request in requests:
            job = Job(request)
            limit = self._limit_tokens
            if job.tokens_in + int(_input(request, "max_tokens")) > limit:
                message = f"prompt length ({job.tokens_in}) and max_tokens exceed the maximum of {limit} tokens"
                job.fail(message, pb_utils.TritonError.INVALID_ARG)
                continue
            with self._wake:
                self._new.append(job)
                self._wake.notify()

    def finalize(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._loop.join(5)

    def _run(self) -> None:
        jobs: list[Job] = []
        while not self._stopping:
            with self._wake:
                if not self._new and not jobs:
                    self._wake.wait(1)
                jobs += self._new
                self._new = []
                self._active.set(len(jobs))
            now = time.monotonic()
            jobs = [job for job in jobs if job.next_at > now or not job.step()]
            self._active.set(len(jobs))
            if jobs:
                time.sleep(max(0.0, min(job.next_at for job in jobs) - time.monotonic()))


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]
