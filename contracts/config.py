"""The configuration file, as pydantic models; `config.schema.json` is generated from them (OC-CONFIG-6001, 6002).

Every field that a small file does not name has a default. Fields marked "from a later release"
are part of the stable shape and are accepted, but not enforced yet: `llorch check` says so.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from contracts.api import Determinism, Engine, Workload
from contracts.config_base import Identifier, PercentOfSome, PositiveInt, Rate, Section
from contracts.config_pools import Digest, DrainMs, LeaseConfig, ModelConfig, RestartConfig, ScalingConfig
from contracts.config_scheduling import AdmissionConfig, PreemptionConfig, PriceConfig, RateConfig, SessionsConfig
from contracts.errors import PolicyLabel

#: What an API key may do (OC-CTRL-2040).
KeyRole = Literal["submit", "operate", "observe"]

#: An address or a network, v4 or v6. A network with bits behind its prefix is a slip of the pen, and refused.
Network = Annotated[str, AfterValidator(lambda text: str(ip_network(text)))]


class QueueConfig(Section):
    """Bound of a pool's waiting tasks. `full_policy` left out: interactive `reject`, batch `drop-lru` (ORCH-3005)."""

    capacity: PositiveInt = 256
    full_policy: PolicyLabel | None = None


class TimeoutConfig(Section):
    """Watchdog (ORCH-3016): `wall_ms` from an attempt's start, `idle_ms` since its last token.

    Left out: `first_token_ms`, from an attempt's start to its first token, and `queue_ms`, how long a task may wait
    to be started, are bounded by the others and by the task's deadline alone.
    """

    wall_ms: PositiveInt = 300_000
    idle_ms: PositiveInt = 30_000
    first_token_ms: PositiveInt | None = None
    queue_ms: PositiveInt | None = None


class EngineOptions(Section):
    """How the engine is run, or where it runs already.

    `binary`: path of the engine's executable (vLLM: of the Python that has it); left out, the adapter finds or
    builds one. With `endpoint` nothing is launched: the engine that answers there is used, and outlives the pool.
    """

    binary: Path | None = None
    args: list[str] = Field([])
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        {}, description="added to the environment of a launched engine"
    )
    endpoint: str | None = Field(
        None, pattern=r"^(http://[^/\s]+:\d{1,5}/?|unix:/\S+)$", description="`http://host:port` or `unix:/path`"
    )
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="variable that holds the key of `endpoint`"
    )
    ready_timeout_ms: PositiveInt = 120_000


class PoolConfig(Section):
    """Replicas of one engine and one model."""

    id: Identifier
    engine: Engine
    model: str = Field(min_length=1, max_length=256, description="name under which clients ask for the model")
    model_path: Path | None = Field(
        None, description="model file; left out: the bundled development model of that name"
    )
    model_digest: Digest | None = Field(None, description="the model file is refused unless it has this digest")
    quant: str | None = None
    workload: Workload = Field("completion", description="what its engine is started for")
    determinism: Determinism = Field(
        "strict",
        description="`strict`: same seed, same bytes, and where batches could change them one task at a time;"
        " `best_effort`: all slots at once, and tasks that ask for `strict` are refused",
    )
    batch_invariant: bool | None = Field(
        None,
        description="true: this engine on this hardware was shown to give the same bytes with all slots in use;"
        " left out: what is known of the engine",
    )
    ctx: PositiveInt = 2048
    slots: PositiveInt = 4
    replicas: Annotated[int, Field(ge=0)] = Field(1, description="0: none until `scaling` brings one")
    scaling: ScalingConfig | None = Field(None, description="left out: the pool keeps `replicas`")
    accelerator: Literal["gpu", "cpu-dev"] = Field(
        "gpu", description="`cpu-dev` is the explicit development carve-out (ORCH-1101)"
    )
    devices: list[Annotated[int, Field(ge=0)]] = Field([])
    tensor_split: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None, description="share of the model that each device takes; left out: the devices are alike (ORCH-3012)"
    )
    numa: bool = Field(True, description="bind engines to the NUMA node of their GPUs, where numactl is there")
    zone: Identifier | None = Field(None, description="the only zone in which the pool's replicas may stand")
    canary_percent: PercentOfSome | None = Field(
        None, description="share of sessions that this pool serves; left out: what the set's canaries leave"
    )
    price: PriceConfig = PriceConfig()
    preload: bool = True
    require_same_engine_version: bool = True
    sampler_profile_version: str = "v1"
    queue: QueueConfig = QueueConfig()
    admission: AdmissionConfig = AdmissionConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    restart: RestartConfig = RestartConfig()
    drain_ms: DrainMs = Field(300_000, description="how long replicas that are replaced may finish their work")
    reload_timeout_ms: PositiveInt = Field(600_000, description="how long a reload's new replicas may take to be Ready")
    engine_options: EngineOptions = EngineOptions()


class TrustPolicyConfig(Section):
    mode: Literal["strict", "permissive"] = "strict"
    allowed_registries: list[str] = Field([])
    require_signature: bool = True
    require_sbom: bool = True
    ca_roots: list[str] = Field([])


class CatalogConfig(Section):
    trust_policy: TrustPolicyConfig = TrustPolicyConfig()


class KeyConfig(Section):
    """One API key by reference: the file holds the sha256 of the key, never the key.

    `rps` and `burst` bound the requests made with it (ORCH-3006); without `rps`, `auth.rate` does.
    `roles` say what it may do (OC-CTRL-2040): `submit` the data plane, `operate` what changes pools,
    `observe` looking at pools, replica sets and metrics. Any key may read the capabilities.
    """

    name: Identifier
    tenant: Identifier
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the key in hex; `llorch hash-key` makes it")
    roles: list[KeyRole] = Field(["submit"], min_length=1, description="what the key may do")
    rps: Rate | None = None
    burst: PositiveInt | None = None


class AuthConfig(Section):
    """Who may call. `rate` bounds each key that has no `rps` of its own (ORCH-3006)."""

    enabled: bool = True
    keys: list[KeyConfig] = Field([])
    keys_file: Path | None = Field(
        None,
        description="more keys, a YAML list like `keys` but without `rps` and `burst`; read again when it changes,"
        " so that keys come and go without a restart. Each node with an ingress replica needs it at this path",
    )
    rate: RateConfig | None = None
    protect_metrics: bool = Field(
        False, description="true: `/metrics`, and the pools that `/readyz` tells of, need a key with `observe`"
    )


class TlsConfig(Section):
    """Certificate of the ingress replicas' own listener, in PEM; read again when a file changes."""

    cert_file: Path = Field(description="the certificate, and behind it those between it and the root")
    key_file: Path = Field(description="its private key, without a passphrase")
    client_ca_file: Path | None = Field(
        None, description="given: clients need a certificate that one of these authorities signed"
    )


class ServerConfig(Section):
    """The HTTP side, on all interfaces.

    `port` is the ingress replicas' own listener, the fast door of every node that has one;
    `haproxy_port` (left out: `port` + 1) is HAProxy, which spreads over the replicas of all nodes.
    Limits hold for each ingress replica; those of heads, times and connections for its own listener.
    """

    port: Annotated[int, Field(ge=1, le=65534)] = 8000
    haproxy_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    ingress_replicas: PositiveInt = 2
    body_max_bytes: PositiveInt = 4 * 1024 * 1024
    head_max_bytes: PositiveInt = Field(32 * 1024, description="request line and headers together")
    headers_max: PositiveInt = Field(100, description="headers of one request")
    request_timeout_ms: PositiveInt = Field(
        30_000, description="how long a request's head may take to arrive, and then its body"
    )
    write_timeout_ms: PositiveInt = Field(
        60_000, description="how long a client may take nothing of what waits for it, before its connection is cut"
    )
    connections_max: PositiveInt = Field(10_000, description="connections at once; one over it is told to try later")
    streams_max: PositiveInt = Field(1_000, description="streams that one key may have open at once")
    trusted_proxies: list[Network] = Field(
        [], description="addresses or networks whose `X-Forwarded-For` is believed when failed keys are counted"
    )
    tls: TlsConfig | None = Field(None, description="left out: plain HTTP")
    keepalive_ms: PositiveInt = 15_000
    metrics_interval_ms: PositiveInt = 1_000
    shutdown_ms: Annotated[int, Field(ge=0)] = Field(
        10_000, description="how long running tasks may end when the service is stopped; the next start does the rest"
    )


class ResultsConfig(Section):
    """How long and how many ended tasks stay re-attachable."""

    ttl_ms: PositiveInt = 600_000
    tasks_max: PositiveInt = 10_000
    bytes_max: PositiveInt = 256 * 1024 * 1024


class StorageConfig(Section):
    """Where the service keeps what outlives it: accepted tasks, their results, sessions, quotas, pools (ORCH-3051).

    The journal in `data_dir` is of one service. Left out, it is `.llorch/data` for `llorch run`, else
    `llorch` in the user's own folder for data, on the head node.
    """

    data_dir: Path | None = Field(None, description="folder on a local disk of the head node")
    journal: bool = Field(True, description="false: keep nothing; all is lost with the scheduler's process")
    bytes_max: Annotated[int, Field(ge=16 * 1024 * 1024)] = Field(
        4 * 1024 * 1024 * 1024, description="size that the journal may reach; beyond it nothing is accepted"
    )


class Config(Section):
    """The whole file. `unknown_fields: compat` logs unknown fields instead of refusing them (ORCH-3030)."""

    pools: list[PoolConfig] = Field(min_length=1)
    models: list[ModelConfig] = Field([], description="what pools may be reloaded to, besides their own models")
    lease: LeaseConfig = LeaseConfig()
    catalog: CatalogConfig = Field(CatalogConfig(), description="from a later release")
    auth: AuthConfig = AuthConfig()
    server: ServerConfig = ServerConfig()
    results: ResultsConfig = ResultsConfig()
    sessions: SessionsConfig = SessionsConfig()
    storage: StorageConfig = StorageConfig()
    unknown_fields: Literal["strict", "compat"] = "strict"
