"""A Ray cluster of its own on this machine, for `llorch run`, tests and benchmarks.

Serve reads its environment when it is first imported, so `prepare` must run before anything
imports `ray.serve`; this module imports Ray inside its functions for that reason.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.cluster.channel import RUN_FOLDER

#: One HAProxy per node in front of the ingress replicas' own listeners; Serve's Python proxy costs
#: 6 to 8 ms a request and stops near 200 requests a second.
THROUGHPUT_ENVIRONMENT: Final = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # HAProxy reloads when an ingress replica changes and ends older streams after this long.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Three failed looks and a dead HAProxy is brought back; ten seconds between them would be half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Ray puts its workers behind everything else on a machine; a busy one would starve scheduler and ingress.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
OBJECT_STORE_BYTES: Final = 100 * 1024 * 1024


def prepare(directory: Path, stats_port: int, metrics_port: int) -> None:
    """Set Serve's throughput mode and give HAProxy's files and side ports a place of their own.

    What the caller's environment already sets is left alone. `directory` must stay short: Unix
    socket paths end at 108 bytes.
    """
    os.environ[RUN_FOLDER] = str(directory)
    own = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
    }
    for name, value in (THROUGHPUT_ENVIRONMENT | own).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Start Ray here and end it, with everything it started, on the way out.

    The actors' logs are in Ray's session directory.
    """
    import ray
    from ray import serve  # noqa: F401 (importing it sets up the logger that is turned down here)

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
