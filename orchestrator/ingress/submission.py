"""From the bytes of `POST /v1/tasks` to what the gateway takes (OC-CTRL-2010, ORCH-3024).

All that can be known without the cluster is checked here; limits of models and queues are the
scheduler's matter.
"""

import hashlib
from uuid import UUID

import msgspec

from contracts import api
from contracts.api import TaskRequest
from contracts.engine import GenerateRequest
from contracts.errors import OrchError
from contracts.tasks import TaskInfo
from orchestrator.ingress.bodies import read_json
from orchestrator.ingress.errors import refuse

_decoder = msgspec.json.Decoder(TaskRequest)
# Deterministic: the order of keys in maps does not change what a request is.
_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


class _EngineOnly(msgspec.Struct):
    engine: api.Engine


_decode_engine = msgspec.json.Decoder(_EngineOnly).decode


class Submission(msgspec.Struct, frozen=True):
    """A task as the scheduler sees it, and what the engine will need of it."""

    task: TaskInfo
    request: GenerateRequest


def engine_of(body: bytes) -> str:
    """The engine a refused body names, for the metrics; `unknown` when it names none (ORCH-2008)."""
    try:
        return _decode_engine(body).engine
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "unknown"


def parse_submission(body: bytes, tenant: str, correlation_id: str, one_call: bool, client: str = "") -> Submission:
    """Decode and check a body. Raises OrchError INVALID_PARAMS that names the field and what to do."""
    asked = read_json(_decoder, body)
    _check_content(asked)
    return _submission(asked, tenant, correlation_id, one_call, client)


def parse_task_id(text: str) -> str:
    """A task id from a path, in canonical lower-case form. Raises OrchError INVALID_PARAMS."""
    return _parse_id(text, "task")


def parse_session_id(text: str) -> str:
    """A session id from a path, in canonical lower-case form. Raises OrchError INVALID_PARAMS."""
    return _parse_id(text, "session")


def _parse_id(text: str, kind: str) -> str:
    try:
        return str(msgspec.convert(text, UUID))
    except msgspec.ValidationError:
        message = f"The {kind} id in the path is not a UUID. Use the {kind}_id of the {kind}."
        raise refuse("INVALID_PARAMS", message) from None


def derived_seed(task_id: str) -> int:
    """The seed of a task that names none (ORCH-3045): the first 31 bits of the id's sha256.

    31 bits, because every engine takes a seed of that size as it is.
    """
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:4], "big") >> 1


def _submission(asked: TaskRequest, tenant: str, correlation_id: str, one_call: bool, client: str) -> Submission:
    task_id = str(asked.task_id)
    seed = derived_seed(task_id) if asked.seed is None else asked.seed
    request = GenerateRequest(
        task_id=task_id,
        max_tokens=asked.max_tokens,
        seed=seed,
        workload=asked.workload,
        sampler_profile_version=asked.sampler_profile_version,
        # Neither content field: a completion of the empty prompt, as old consumers send it.
        prompt=asked.prompt if asked.messages or asked.inputs else asked.prompt or "",
        messages=asked.messages,
        inputs=asked.inputs,
        sampling=asked.sampling,
        kv_hint=asked.kv_hint,
        # Sessions are of one tenant each: another one's of the same id is another session.
        session_id=f"{tenant}/{asked.session_id}",
    )
    sizes = _content_sizes(request)
    task = TaskInfo(
        task_id=task_id,
        session_id=str(asked.session_id),
        tenant=tenant,
        workload=asked.workload,
        engine=asked.engine,
        model_ref=asked.model_ref,
        ctx=asked.ctx,
        priority=asked.priority,
        max_tokens=asked.max_tokens,
        deadline_ms=asked.deadline_ms,
        seed=seed,
        determinism=asked.determinism or "",
        sampler_profile_version=asked.sampler_profile_version,
        prompt_bytes=sum(sizes),
        templated=asked.messages is not None,
        body_digest=_digest(asked),
        correlation_id=correlation_id,
        expected_tokens=asked.expected_tokens,
        kv_hint=asked.kv_hint,
        cancel_on_disconnect=one_call if asked.cancel_on_disconnect is None else asked.cancel_on_disconnect,
        labels=asked.labels,
        client=client,
        items=len(asked.inputs or ("",)),
        longest_input_bytes=0 if asked.inputs is None else max(sizes),
    )
    return Submission(task, request)


def _digest(asked: TaskRequest) -> bytes:
    """Equal requests have equal digests. Left out, `determinism` is `strict` by contract."""
    said = asked if asked.determinism else msgspec.structs.replace(asked, determinism="strict")
    return hashlib.sha256(_canonical(said)).digest()


def _content_sizes(request: GenerateRequest) -> list[int]:
    """Bytes of each text that the engine will see. A rerank sees the query with each of the documents."""
    if request.messages is not None:
        return [len(message.content.encode()) for message in request.messages]
    prompt_bytes = len((request.prompt or "").encode())
    if request.inputs is not None:
        return [prompt_bytes + len(text.encode()) for text in request.inputs]
    return [prompt_bytes]


def _check_content(asked: TaskRequest) -> None:
    """Which of `prompt`, `messages` and `inputs` goes with which workload."""
    if asked.workload == "completion":
        if asked.inputs is not None:
            raise _invalid(asked, "`$.inputs`: not for workload `completion`; send `prompt` or `messages`.")
        if asked.prompt is not None and asked.messages is not None:
            raise _invalid(asked, "`$.messages`: either `prompt` or `messages` is allowed, not both; leave one out.")
        return
    if asked.messages is not None:
        raise _invalid(asked, f"`$.messages`: not for workload `{asked.workload}`; send `inputs`.")
    if asked.workload == "embedding" and asked.prompt is not None:
        raise _invalid(asked, "`$.prompt`: not for workload `embedding`; send `inputs`.")
    if asked.workload == "rerank" and not asked.prompt:
        raise _invalid(asked, "`$.prompt`: needed for workload `rerank`; send the query.")
    if asked.inputs is None:
        raise _invalid(asked, f"`$.inputs`: needed for workload `{asked.workload}`; send a list of texts.")


def _invalid(asked: TaskRequest, message: str) -> OrchError:
    return refuse("INVALID_PARAMS", message, engine=asked.engine)
