"""How `text-generation-launcher` is started: arguments and environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.gpus import gpu_count
from contracts.engine import EngineSpec

HOST: Final = "127.0.0.1"

#: TGI makes the samplers of all requests anew whenever one joins the batch, which starts their random numbers again:
#: a seeded text depends on when others came, whatever the kernels do.
BATCH_INVARIANT: Final = False

#: A request holds its permit for a moment after its last frame was sent, so there are more than are ever used.
_PERMITS_PER_REQUEST: Final = 2
_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
#: The launcher ends its router and its shards one after the other, each in this time, before it would be killed.
_GRACEFUL_S: Final = 1

#: Each argument of the launcher has an environment variable of the same name; some more belong to its shards.
_SETTINGS: Final = """
    MODEL_ID REVISION VALIDATION_WORKERS SHARDED NUM_SHARD QUANTIZE SPECULATE DTYPE KV_CACHE_DTYPE TRUST_REMOTE_CODE
    MAX_CONCURRENT_REQUESTS MAX_BEST_OF MAX_STOP_SEQUENCES MAX_TOP_N_TOKENS MAX_INPUT_TOKENS MAX_INPUT_LENGTH
    MAX_TOTAL_TOKENS WAITING_SERVED_RATIO MAX_BATCH_PREFILL_TOKENS MAX_BATCH_TOTAL_TOKENS MAX_WAITING_TOKENS
    MAX_BATCH_SIZE CUDA_GRAPHS HOSTNAME PORT PROMETHEUS_PORT SHARD_UDS_PATH MASTER_ADDR MASTER_PORT
    DISABLE_CUSTOM_KERNELS CUDA_MEMORY_FRACTION ROPE_SCALING ROPE_FACTOR JSON_OUTPUT OTLP_ENDPOINT OTLP_SERVICE_NAME
    CORS_ALLOW_ORIGIN API_KEY WATERMARK_GAMMA WATERMARK_DELTA NGROK NGROK_AUTHTOKEN NGROK_EDGE TOKENIZER_CONFIG_PATH
    DISABLE_GRAMMAR_SUPPORT MAX_CLIENT_BATCH_SIZE LORA_ADAPTERS USAGE_STATS PAYLOAD_LIMIT ENABLE_PREFILL_LOGPROBS
    GRACEFUL_TERMINATION_TIMEOUT ATTENTION PREFIX_CACHING PREFILL_CHUNKING LOG_LEVEL
"""


def launcher_command(spec: EngineSpec, folder: Path, port: int, prometheus_port: int, master_port: int) -> list[str]:
    """The command line, with the launcher's log turned to stderr: it writes errors, its shards' too, to stdout.

    TGI cannot listen on a Unix socket. Shards talk through sockets in `folder`; the ports besides `port` have fixed
    defaults on which a second replica of the host would fail.
    """
    return [
        *("/bin/sh", "-c", 'exec "$@" >&2', "tgi", spec.binary),
        *("--model-id", spec.model_path),
        *("--hostname", HOST, "--port", str(port)),
        *("--prometheus-port", str(prometheus_port), "--master-port", str(master_port)),
        *("--shard-uds-path", str(folder / "shard")),
        *("--num-shard", str(max(gpu_count(spec), 1))),
        *("--max-concurrent-requests", str(_PERMITS_PER_REQUEST * spec.slots)),
        *("--max-input-tokens", str(spec.ctx - 1), "--max-total-tokens", str(spec.ctx)),
        *("--payload-limit", str(_BODY_BYTES_MAX)),
        *("--graceful-termination-timeout", str(_GRACEFUL_S)),
        *("--usage-stats", "off"),
        *spec.args,
    ]


def launcher_environment(spec: EngineSpec, api_key: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment: no inherited engine settings, exactly the devices of the mask, nothing from the network.

    Models that see images would fetch those that a prompt links to, from wherever it says; they get none of them.

    The key goes through the environment, though the launcher passes it on to its router as an argument, which other
    users of the host can read. Where the pool promises exactness the prefix cache is off: what is computed anew and
    what was kept come from batches of different shapes (ORCH-3045).
    """
    source = os.environ if base is None else base
    settings = set(_SETTINGS.split())
    env = {name: value for name, value in source.items() if name not in settings}
    env["API_KEY"] = api_key
    env["LOG_LEVEL"] = "warn"
    env["HF_HUB_OFFLINE"] = "1"
    env["MAX_IMAGE_FETCH_SIZE"] = "0"
    if spec.determinism == "strict":
        env["PREFIX_CACHING"] = "0"
    if spec.accelerator == "cpu-dev":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif spec.gpu_uuids or spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids or spec.devices)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return env
