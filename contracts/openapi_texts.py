"""What the fields of the data plane's bodies mean, in one place, for the OpenAPI document and `/docs`."""

from typing import Final

#: What is left of a session's budgets; the same names and meaning wherever they stand (ORCH-3099).
BUDGETS: Final = {
    "tokens_budget_remaining": "Tokens left to the session.",
    "time_budget_remaining_ms": "Slot time left to the session, in milliseconds.",
    "cost_budget_remaining": "Cost left to the session, in the operator's currency.",
}

FIELDS: Final[dict[str, dict[str, str]]] = {
    "TaskRequest": {
        "task_id": "The task's id and idempotency key (ORCH-3024). The same id with the same body is the same task.",
        "session_id": "The conversation that the task belongs to; its budgets and kept context are shared (ORCH-3021).",
        "workload": (
            "What to do: a completion takes `prompt` or `messages`; an embedding takes `inputs`; a rerank takes its "
            "query in `prompt` and the documents in `inputs`. The pools that serve the model must serve it."
        ),
        "model_ref": "`sha256:` digest, `repo:owner/name`, or a catalog name.",
        "engine": "The engine family that serves the task (ORCH-2008).",
        "ctx": "Context size that the task needs, in tokens.",
        "priority": "Class of the task; classes share a replica set by their weights (ORCH-3075).",
        "max_tokens": "Most tokens to generate. Embedding and rerank generate none and ignore it.",
        "deadline_ms": "By when the task is to end, in milliseconds from admission (ORCH-3079).",
        "seed": "Sampling seed. Left out: derived from `task_id`, between 0 and 2147483647 (ORCH-3045).",
        "determinism": (
            "`strict`: a re-run must give the same tokens. `best_effort`: restart only before the first. Left out: "
            "`strict`, but `best_effort` where the pools of the model promise no more; those refuse `strict`."
        ),
        "sampler_profile_version": "Pinned set of sampler defaults.",
        "prompt": (
            "Text to complete, or the query of a rerank. A completion with neither `prompt` nor `messages` completes "
            "the empty text."
        ),
        "messages": "Conversation, rendered through the model's own chat template.",
        "inputs": "Texts to embed, or documents to rank. Each has to fit into `ctx`, with the query if there is one.",
        "expected_tokens": "Hint for placement: how many tokens are likely.",
        "kv_hint": "Hint for placement: whether cached context of the session is wanted.",
        "sampling": "Overrides of the sampler profile.",
        "cancel_on_disconnect": (
            "Whether the task is canceled when a client leaves its stream. "
            "Default: true for a task admitted in one call, else false."
        ),
        "labels": "The client's own key-value pairs, echoed in `started` and the status.",
    },
    "Admission": {
        "queue_position": "Tasks that start before this one.",
        "predicted_start_ms": "Predicted start, in milliseconds from admission.",
        "backoff_ms": "How long a well-behaved client waits before it submits more.",
        "on_time_probability": "Chance of ending before the deadline, 0 to 1 (ORCH-3081).",
        **BUDGETS,
    },
    "Started": {
        "queue_position": "As told at admission (ORCH-3029).",
        "predicted_start_ms": "As told at admission (ORCH-3029).",
        "engine_version": "As the engine itself reports it.",
        "model_digest": "sha256 of the model file.",
        "accelerator": "`gpu`, or `cpu-dev` for the development carve-out (ORCH-1101).",
        "seed": "The seed in use.",
        "attempt": "Counts from 1; grows when the task is run again on another replica.",
        "queue_time_ms": "How long the task waited.",
        "kv_warmth": "Whether the replica should still hold the session's context (ORCH-3009).",
        "determinism": "The task's `determinism`; left out of the request, what the pools of the model promise.",
    },
    "Token": {"t": "Text.", "i": "Index of the token; from 0, no gaps, no repeats. Equals the event's `id:`."},
    "Metrics": {
        "queue_depth": "Tasks of the same class and replica set that wait.",
        "queue_position": "Tasks that start before this one, while it waits.",
        "predicted_start_ms": "Predicted start, in milliseconds from now, while the task waits.",
        "on_time_probability": "Chance of ending before the deadline, 0 to 1 (ORCH-3081).",
        "deadline_remaining_ms": "What is left of the task's `deadline_ms`.",
        "kv_warmth": "Whether the session's context is (while waiting: would be) found on the replica (ORCH-3009).",
        "kv_migrated": "Always false: context is never moved between replicas (ORCH-3023).",
        **BUDGETS,
        "preempted": "The task was stopped for a more urgent one (ORCH-3086).",
        "resumable": "It waits and will go on after the tokens that were delivered.",
        "resumed": "It goes on after the tokens that were delivered.",
    },
    "End": {
        "tokens_out": "Tokens generated; 0 for embedding and rerank.",
        "decode_ms": "From the first token to the last; 0 for embedding and rerank.",
        "tokens_in": "Tokens of the prompt, or of all inputs.",
        "tokens_cached": "How many of `tokens_in` were not computed again.",
        "stop_sequence": "The stop string that ended the text, if one did.",
        "embeddings": "Of an embedding: the numbers of each of `inputs`, in their order.",
        "ranks": "Of a rerank: a score for each of `inputs`, best first; of equals the one that was given first.",
    },
    "TaskStatus": {
        "state": "`measuring` and `queued` wait, `running` and `stopping` hold a slot, the others are final.",
        "first_token_ms": "From admission to the first token.",
        "error": "Set when the outcome was a failure.",
        "why": "The last decision about the task in one line, for people.",
        "on_time_probability": "Chance of ending before the deadline, 0 to 1 (ORCH-3081).",
        "preempted": "Whether the task was stopped for a more urgent one (ORCH-3086).",
        "resumable": "Whether it goes on after the tokens that were delivered, now or once it has a slot again.",
    },
    "Session": {
        "ttl_ms_remaining": "How long the session lives on without a task (ORCH-3021).",
        "turns": "Tasks served since its context was last given up.",
        "kv_bytes": "What its context takes in a replica's KV cache; 0 where the engine does not tell (ORCH-3022).",
        "kv_warmth": "Whether the next task may find that context.",
        **BUDGETS,
    },
    "ErrorInfo": {
        "code": "Stable; what programs decide on.",
        "message": "For people: what happened and what to do.",
        "retriable": "Whether sending the same request again can help (ORCH-3025).",
        "retry_after_ms": "When that is worth trying, from measured service times.",
        "policy_label": "The full-queue policy that refused the task; always present on 429 (ORCH-2007).",
        "earliest_deadline_ms": (
            "With DEADLINE_UNMET: the smallest `deadline_ms` that would have been accepted (ORCH-3079)."
        ),
    },
    "Readiness": {"pools": "State of each pool by id; empty where metrics are protected and the key lacks `observe`."},
}

OVERVIEW: Final = """\
Tasks go into a bounded queue and come back as token streams. `POST /v1/tasks` tells at once whether a task is taken,
where it stands and when it will start; `GET /v1/tasks/{id}/stream` delivers the tokens and can be re-attached at any
time with `Last-Event-ID`. With `Accept: text/event-stream` the POST itself answers with the stream.

Every path under `/v1` needs an API key (`Authorization: Bearer KEY` or `X-API-Key: KEY`) with the role that
`x-required-role` names; without it the answer is 403. Who fails to show one too often is answered 429 until it waits.
`X-Correlation-Id` is accepted on every request (1 to 128 visible ASCII characters), made when absent, and echoed on
every response.
A path that does not exist answers 404, a method that a path does not take 405 with `Allow`, both with the envelope.
Clients must ignore response fields and event kinds that they do not know: minor versions add some.
"""
