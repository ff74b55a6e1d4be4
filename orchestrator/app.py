"""The composition root: the only place that knows every part (adapters, ingress, cluster, core).

`deploy` puts a configured service on the Ray cluster this process is connected to;
`local_service` brings up such a cluster on this machine first. `application` is the same for Serve's own
configuration files (KubeRay).
"""

import contextlib
import functools
import io
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from adapters import create_adapter
from adapters.ports import free_ports
from contracts.config import Config
from contracts.gateway import Gateway
from orchestrator.cluster.http_connection import HttpLimits
from orchestrator.cluster.journal.store import Storage
from orchestrator.cluster.listener import Door
from orchestrator.cluster.listener_tls import TlsFiles
from orchestrator.cluster.local import local_ray, prepare
from orchestrator.configfile import load
from orchestrator.ingress.frontend import Frontend
from orchestrator.ingress.settings import IngressSettings, Key
from orchestrator.sets import scheduler_config
from orchestrator.specs import spec_for

APP_NAME: Final = "llorch"


class AlreadyUpError(Exception):
    """The service is on this cluster already; take it down first to bring it up with another configuration."""


def ingress_settings(config: Config) -> IngressSettings:
    return IngressSettings(
        auth_enabled=config.auth.enabled,
        keys=tuple(Key(key.name, key.tenant, key.sha256, tuple(key.roles)) for key in config.auth.keys),
        keys_file=config.auth.keys_file,
        protect_metrics=config.auth.protect_metrics,
        trusted_proxies=tuple(config.server.trusted_proxies),
        body_max_bytes=config.server.body_max_bytes,
        request_timeout_ms=config.server.request_timeout_ms,
        streams_max=config.server.streams_max,
        keepalive_ms=config.server.keepalive_ms,
    )


def door_of(config: Config, port: int) -> Door:
    """The ingress replicas' own listener."""
    server, tls = config.server, config.server.tls
    return Door(
        port,
        server.connections_max,
        HttpLimits(server.head_max_bytes, server.headers_max, server.request_timeout_ms, server.write_timeout_ms),
        None if tls is None else TlsFiles(tls.cert_file, tls.key_file, tls.client_ca_file),
    )


def storage_of(config: Config) -> Storage:
    """Where the scheduler keeps what outlives it; without a folder it finds the user's own where it runs."""
    storage = config.storage
    folder = None if storage.data_dir is None else str(storage.data_dir.expanduser().absolute())
    return Storage(folder, storage.journal, storage.bytes_max)


def make_frontend(settings: IngressSettings, gateway: Gateway) -> Frontend:
    """Runs in each ingress replica; a module-level function, so that it travels by name."""
    return Frontend(gateway, settings)


def balanced_port(config: Config, port: int) -> int:
    """HAProxy's port, when the ingress replicas' own is `port`."""
    return config.server.haproxy_port or port + 1


class Service:
    """A deployed service and its doors.

    `url` is the ingress replicas' own listener on this node, `balanced_url` HAProxy in front of
    the replicas of all nodes.
    """

    def __init__(self, url: str, balanced_url: str) -> None:
        self.url = url
        self.balanced_url = balanced_url

    def drain(self, deadline_ms: int, is_hurried: Callable[[], bool]) -> tuple[int, int] | None:
        """Accept and start nothing more, and let tasks that run end for so long: (running, waiting) that are left.

        None: nobody answered in time, or `is_hurried` said that it has to be at once.
        """
        from orchestrator.cluster.scheduler_actor import drain_scheduler

        return drain_scheduler(deadline_ms, is_hurried)

    def stop(self) -> None:
        """End the engines, then the ingress; Ray's own end takes the rest."""
        remove_cluster()


def deploy(config: Config, *, port: int) -> Service:
    """Start scheduler, pool manager and ingress on the connected Ray cluster; returns when HTTP answers.

    Replicas are made and engines load in the background; `/readyz` tells when they are ready.
    Raises AlreadyUpError, JournalError.
    """
    from ray import serve

    from orchestrator.cluster.locating import find_secret

    if find_secret() is not None:
        raise AlreadyUpError(f"{APP_NAME} is on this Ray cluster already; `llorch down` takes it down")
    serve.start(http_options={"host": "0.0.0.0", "port": balanced_port(config, port)})
    serve.run(
        _application(config, port),
        name=APP_NAME,
        route_prefix="/",
        logging_config={"encoding": "JSON", "enable_access_log": False, "log_level": "WARNING"},
    )
    scheme = "http" if config.server.tls is None else "https"
    return Service(f"{scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{balanced_port(config, port)}")


def application(args: dict[str, str]) -> Any:
    """The Serve application for a RayService: `args["config"]` is the path of the configuration file.

    Scheduler and pool manager are started beside it, unless an earlier version of it left them running.
    """
    config = load(Path(args["config"]), files=False).config
    return _application(config, config.server.port)


def _application(config: Config, port: int) -> Any:
    from orchestrator.cluster.actors import start_manager
    from orchestrator.cluster.ingress_deployment import ingress_app
    from orchestrator.cluster.locating import find_secret
    from orchestrator.cluster.ray_fleet import RayFleet
    from orchestrator.cluster.scheduler_actor import start_scheduler

    secret = find_secret()
    if secret is None:
        secret = secrets.token_bytes(32)
        policies = replace(scheduler_config(config), jitter_seed=secrets.randbits(32))
        start_scheduler(policies, secret, storage_of(config))
    start_manager(RayFleet(functools.partial(spec_for, config), create_adapter, secret), secret)
    return ingress_app(
        functools.partial(make_frontend, ingress_settings(config)),
        secret,
        door=door_of(config, port),
        replicas=config.server.ingress_replicas,
        metrics_interval_ms=config.server.metrics_interval_ms,
    )


def deploy_cluster(config: Config, *, port: int) -> str:
    """`deploy` for a cluster that is to outlive this process; returns the URL of this node's listener."""
    return deploy(config, port=port).url


def remove_cluster() -> bool:
    """End replicas, pool manager, scheduler and ingress on the connected Ray cluster; false if there were none."""
    from ray import serve

    from orchestrator.cluster.actors import end_all

    found = end_all()
    # Ray prints that the controller's last call failed: it was killed on purpose.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
    return found


@contextlib.contextmanager
def local_service(config: Config, *, port: int, data_dir: Path | None = None) -> Iterator[Service]:
    """A Ray cluster of its own with the service on it, ended on the way out.

    `data_dir` is for what outlives it, where the configuration names no folder; left out, nothing does.
    """
    with tempfile.TemporaryDirectory(prefix="llorch-", ignore_cleanup_errors=True) as directory:
        prepare(Path(directory), *free_ports(2))
        if config.storage.data_dir is None:
            folder = data_dir or Path(directory) / "data"
            config = config.model_copy(update={"storage": config.storage.model_copy(update={"data_dir": folder})})
        with local_ray():
            service = deploy(config, port=port)
            try:
                yield service
            finally:
                service.stop()
