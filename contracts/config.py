"""The configuration file, as pydantic models; `config.schema.json` is generated from them (OC-CONFIG-6001, 6002).

Every field that a small file does not name has a default. Fields marked "from a later release"
are part of the stable shape and are accepted, but not enforced yet: `llorch check` says so.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.api import Engine, Priority
from contracts.errors import PolicyLabel

PositiveInt = Annotated[int, Field(ge=1)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Section(BaseModel):
    """Base of all sections: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class QueueConfig(Section):
    """Bound of a pool's waiting tasks. `full_policy` left out: interactive `reject`, batch `drop-lru` (ORCH-3005)."""

    capacity: PositiveInt = 256
    full_policy: PolicyLabel | None = None


class PriorityConfig(Section):
    name: Priority
    queue_capacity: PositiveInt | None = Field(None, description="bound of this class; left out: the pool's capacity")
    rate_limit_rps: float | None = Field(None, gt=0, description="from a later release")
    weight: PositiveInt | None = Field(None, description="from a later release")


class TenantConfig(Section):
    id: Identifier
    weight: PositiveInt = 1
    max_concurrent: PositiveInt | None = None
    rps: float | None = Field(None, gt=0)


class FairnessConfig(Section):
    kind: Literal["wfq"] = "wfq"
    tenants: list[TenantConfig] = []


class AdmissionConfig(Section):
    priorities: list[PriorityConfig] = []
    fairness: FairnessConfig | None = Field(None, description="from a later release")


class HardRequirements(Section):
    engine_capability: str = "interruptible_decode"
    max_preemptions_per_min: PositiveInt = 10
    protect_priorities: list[Priority] = []


class PreemptionConfig(Section):
    mode: Literal["off", "soft", "hard"] = "off"
    hard_requirements: HardRequirements | None = None


class TimeoutConfig(Section):
    """Watchdog (ORCH-3016): `wall_ms` from an attempt's start, `idle_ms` since its last token."""

    wall_ms: PositiveInt = 300_000
    idle_ms: PositiveInt = 30_000


class EngineOptions(Section):
    """`binary`: path of the engine's executable; left out, the adapter finds or builds one."""

    binary: Path | None = None
    args: list[str] = []
    ready_timeout_ms: PositiveInt = 120_000


class PoolConfig(Section):
    """Replicas of one engine and one model."""

    id: Identifier
    engine: Engine
    model: str = Field(min_length=1, max_length=256, description="name under which clients ask for the model")
    model_path: Path | None = Field(
        None, description="model file; left out: the bundled development model of that name"
    )
    quant: str | None = None
    ctx: PositiveInt = 2048
    slots: PositiveInt = 4
    replicas: PositiveInt = 1
    accelerator: Literal["gpu", "cpu-dev"] = Field(
        "gpu", description="`cpu-dev` is the explicit development carve-out (ORCH-1101)"
    )
    devices: list[Annotated[int, Field(ge=0)]] = []
    tensor_split: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(None, description="from a later release")
    preload: bool = True
    require_same_engine_version: bool = True
    sampler_profile_version: str = "v1"
    queue: QueueConfig = QueueConfig()
    admission: AdmissionConfig = AdmissionConfig()
    preemption: PreemptionConfig = Field(PreemptionConfig(), description="from a later release")
    timeouts: TimeoutConfig = TimeoutConfig()
    engine_options: EngineOptions = EngineOptions()


class TrustPolicyConfig(Section):
    mode: Literal["strict", "permissive"] = "strict"
    allowed_registries: list[str] = []
    require_signature: bool = True
    require_sbom: bool = True
    ca_roots: list[str] = []


class CatalogConfig(Section):
    trust_policy: TrustPolicyConfig = TrustPolicyConfig()


class KeyConfig(Section):
    """One API key by reference: the file holds the sha256 of the key, never the key."""

    name: Identifier
    tenant: Identifier
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the key in hex; `llorch hash-key` makes it")


class AuthConfig(Section):
    enabled: bool = True
    keys: list[KeyConfig] = []


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
    catalog: CatalogConfig = Field(CatalogConfig(), description="from a later release")
    auth: AuthConfig = AuthConfig()
    server: ServerConfig = ServerConfig()
    results: ResultsConfig = ResultsConfig()
    unknown_fields: Literal["strict", "compat"] = "strict"
