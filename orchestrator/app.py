"""The composition root: the only place that knows every part (adapters, ingress, cluster, core).

`deploy` puts a configured service on the Ray cluster this process is connected to;
`local_service` brings up such a cluster on this machine first.
"""

import contextlib
import functools
import io
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from adapters import create_adapter
from contracts.config import Config, PoolConfig
from contracts.engine import EngineSpec
from contracts.gateway import Gateway
from orchestrator.cluster.local import local_ray, prepare
from orchestrator.ingress.frontend import Frontend
from orchestrator.ingress.settings import IngressSettings, Key
from orchestrator.sets import scheduler_config

APP_NAME: Final = "llorch"
STOP_TIMEOUT_S: Final = 10.0


def engine_spec(pool: PoolConfig, index: int) -> EngineSpec:
    """What replica `index` of a pool runs."""
    return EngineSpec(
        engine=pool.engine,
        pool_id=pool.id,
        replica_id=f"{pool.id}-{index}",
        model=pool.model,
        model_path=str(pool.model_path or ""),
        ctx=pool.ctx,
        slots=pool.slots,
        accelerator=pool.accelerator,
        sampler_profile_version=pool.sampler_profile_version,
        binary=str(pool.engine_options.binary or ""),
        args=tuple(pool.engine_options.args),
        devices=tuple(str(device) for device in pool.devices),
        ready_timeout_ms=pool.engine_options.ready_timeout_ms,
        zone=pool.zone or "",
    )


def ingress_settings(config: Config) -> IngressSettings:
    return IngressSettings(
        auth_enabled=config.auth.enabled,
        keys=tuple(Key(key.name, key.tenant, key.sha256) for key in config.auth.keys),
        body_max_bytes=config.server.body_max_bytes,
        keepalive_ms=config.server.keepalive_ms,
    )


def make_frontend(settings: IngressSettings, gateway: Gateway) -> Frontend:
    """Runs in each ingress replica; a module-level function, so that it travels by name."""
    return Frontend(gateway, settings)


def balanced_port(config: Config, port: int) -> int:
    """HAProxy's port, when the ingress replicas' own is `port`."""
    return config.server.haproxy_port or port + 1


class Service:
    """A deployed service: its doors, and the actors that must be stopped in order.

    `url` is the ingress replicas' own listener on this node, `balanced_url` HAProxy in front of
    the replicas of all nodes.
    """

    def __init__(self, url: str, balanced_url: str, replicas: list[Any]) -> None:
        self.url = url
        self.balanced_url = balanced_url
        self.replicas = replicas

    def stop(self) -> None:
        """End the engines, then the ingress; Ray's own end takes the rest."""
        import ray
        from ray import serve

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([replica.stop.remote() for replica in self.replicas], timeout=STOP_TIMEOUT_S)
        # Ray prints that the controller's last call failed: it was killed on purpose.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()


def deploy(config: Config, *, port: int) -> Service:
    """Start scheduler, replicas and ingress on the connected Ray cluster; returns when HTTP answers.

    Engines load in the background; `/readyz` tells when they are ready.
    """
    from ray import serve

    from orchestrator.cluster.actors import start_scheduler
    from orchestrator.cluster.ingress_deployment import ingress_app
    from orchestrator.cluster.pools import start_replica

    secret = secrets.token_bytes(32)
    start_scheduler(scheduler_config(config), secret)
    replicas = [
        start_replica(engine_spec(pool, index), create_adapter, secret)
        for pool in config.pools
        for index in range(pool.replicas)
    ]
    serve.start(http_options={"host": "0.0.0.0", "port": balanced_port(config, port)})
    app = ingress_app(
        functools.partial(make_frontend, ingress_settings(config)),
        secret,
        port=port,
        replicas=config.server.ingress_replicas,
        metrics_interval_ms=config.server.metrics_interval_ms,
    )
    serve.run(
        app,
        name=APP_NAME,
        route_prefix="/",
        logging_config={"encoding": "JSON", "enable_access_log": False, "log_level": "WARNING"},
    )
    return Service(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{balanced_port(config, port)}", replicas)


@contextlib.contextmanager
def local_service(config: Config, *, port: int) -> Iterator[Service]:
    """A Ray cluster of its own with the service on it, ended on the way out."""
    with tempfile.TemporaryDirectory(prefix="llorch-", ignore_cleanup_errors=True) as directory:
        prepare(Path(directory))
        with local_ray():
            service = deploy(config, port=port)
            try:
                yield service
            finally:
                service.stop()
