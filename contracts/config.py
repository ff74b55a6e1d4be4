"""The configuration file, as pydantic models; `config.schema.json` is generated from them (OC-CONFIG-6001, 6002).

Every field that a small file does not name has a default. Fields marked "from a later release"
are part of the stable shape and are accepted, but not enforced yet: `llorch check` says so.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contracts.api import Determinism, Engine, Workload
from contracts.config_base import Identifier, PercentOfSome, PositiveInt, Rate, Section
from contracts.config_pools import Digest, DrainMs, LeaseConfig, ModelConfig, RestartConfig, ScalingConfig
from contracts.config_scheduling import AdmissionConfig, PreemptionConfig, PriceConfig, RateConfig, SessionsConfig
from contracts.errors import PolicyLabel


class QueueConfig(Section):
    """Bound of a pool's waiting tasks. `full_policy` left out: interactive `reject`, batch `drop-lru` (ORCH-3005)."""

    capacity: PositiveInt = 256
    full_policy: PolicyLabel | None = None


class TimeoutConfig(Section):
    """Watchdog (ORCH-3016): `wall_ms` from an attempt's start, `idle_ms` since its last token."""

    wall_ms: PositiveInt = 300_000
    idle_ms: PositiveInt = 30_000


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
    """

    name: Identifier
    tenant: Identifier
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the key in hex; `llorch hash-key` makes it")
    rps: Rate | None = None
    burst: PositiveInt | None = None


class AuthConfig(Section):
    """Who may call. `rate` bounds each key that has no `rps` of its own (ORCH-3006)."""

    enabled: bool = True
    keys: list[KeyConfig] = Field([])
    rate: RateConfig | None = None


class ServerConfig(Section):
    """The HTTP side, on all interfaces.

    `port` is the ingress replicas' own listener, the fast door of every node that has one;
    `haproxy_port` (left out: `port` + 1) is HAProxy, which spreads over the replicas of all nodes.
    """

    port: Annotated[int, Field(ge=1, le=65534)] = 8000
    haproxy_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    ingress_replicas: PositiveInt = 2
    body_max_bytes: PositiveInt = 4 * 1024 * 1024
    keepalive_ms: PositiveInt = 15_000
    metrics_interval_ms: PositiveInt = 1_000


class ResultsConfig(Section):
    """How long and how many ended tasks stay re-attachable."""

    ttl_ms: PositiveInt = 600_000
    tasks_max: PositiveInt = 10_000
    bytes_max: PositiveInt = 256 * 1024 * 1024


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
    unknown_fields: Literal["strict", "compat"] = "strict"
