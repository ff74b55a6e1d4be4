"""`llorch up` and `llorch down`: the service on a Ray cluster that already runs.

`up` is the last step of a head node's start (cluster.yaml), so it fails loudly: exit status 0 means that HTTP
answers. What it starts is detached and outlives it; Ray keeps that up from then on.
"""

import contextlib
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from contracts.config import Config
from orchestrator.cli_submit import FAILED
from orchestrator.cluster.local import THROUGHPUT_ENVIRONMENT
from orchestrator.configfile import ConfigError, load

HEALTH_POLL_S: Final = 0.5
HEALTH_REQUEST_TIMEOUT_S: Final = 5.0

Address = Annotated[
    str, typer.Option("--address", help="Ray cluster, as host:port of its head; auto: the one on this machine")
]


def up(
    config: Annotated[Path, typer.Option("--config", help="configuration file")],
    address: Address = "auto",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="HTTP port, over the file's")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=1, help="how long HTTP may take to answer")] = 120.0,
) -> None:
    """Start the service on a running Ray cluster, and return when it answers."""
    loaded = _loaded(config)
    deadline_s = time.monotonic() + timeout_s
    with _connected(address):
        # Late: it imports Serve, which reads its environment then.
        from orchestrator.app import AlreadyUpError, deploy_cluster
        from orchestrator.cluster.journal.errors import JournalError

        try:
            url = deploy_cluster(loaded, port=port or loaded.server.port)
        except (AlreadyUpError, JournalError) as there:
            _say(f"{there}")
            raise typer.Exit(FAILED) from None
        if not _answers(url, deadline_s):
            _say(f"the service was started, but {url}/healthz does not answer after {timeout_s:g} s")
            _say("  `ray status` and `serve status` tell what it waits for; `llorch down` removes it")
            raise typer.Exit(FAILED)
    typer.echo(url)


def down(address: Address = "auto") -> None:
    """Remove the service from a running Ray cluster; the cluster itself goes on."""
    with _connected(address):
        from orchestrator.app import remove_cluster

        removed = remove_cluster()
    typer.echo("removed" if removed else "there was nothing to remove")


def _loaded(path: Path) -> Config:
    """The configuration, fit for a cluster: every problem is told, and there is no key that everybody knows.

    The files that it names are the GPU nodes' own, so they are not looked for here: replicas do that.
    """
    try:
        loaded = load(path, files=False)
    except ConfigError as error:
        for problem in error.problems:
            _say(f"{problem}")
            if problem.hint:
                _say(f"    {problem.hint}")
        _say("nothing was started")
        raise typer.Exit(FAILED) from None
    for warning in loaded.warnings:
        _say(f"warning: {warning}")
    auth = loaded.config.auth
    if auth.enabled and not auth.keys and auth.keys_file is None:
        _say(f"{path} has no API keys, and a cluster gets no development key")
        _say("  `llorch hash-key` prints a key and what to put under `auth.keys`; nothing was started")
        raise typer.Exit(FAILED)
    return loaded.config


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A driver on the cluster, for as long as the block takes; Ray's errors become one line and a failure."""
    for name, value in THROUGHPUT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, RuntimeError, ray.exceptions.RayError) as failed:
        where = "on this machine" if address == "auto" else f"at {address}"
        _say(f"no Ray cluster answers {where}: {_first_line(failed)}")
        _say("  start one with `ray up cluster.yaml` or `ray start --head`; for this machine alone, `llorch run`")
        raise typer.Exit(FAILED) from None
    try:
        yield
    except typer.Exit:  # a RuntimeError too
        raise
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as failed:
        _say(f"failed: {failed}")
        raise typer.Exit(FAILED) from None
    finally:
        ray.shutdown()


def _answers(url: str, deadline_s: float) -> bool:
    """Whether the service answers its health check before the deadline; asked at least once."""
    while True:
        with contextlib.suppress(OSError), _asked(url):
            return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(HEALTH_POLL_S)


def _asked(url: str) -> contextlib.AbstractContextManager[object]:
    """An answer to look at. Raises OSError.

    A certificate is hardly for this address, and may be asked for in turn: over TLS a connection is answer enough.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return socket.create_connection((parts.hostname or "", parts.port or 443), HEALTH_REQUEST_TIMEOUT_S)
    answer: contextlib.AbstractContextManager[object] = urllib.request.urlopen(
        f"{url}/healthz", timeout=HEALTH_REQUEST_TIMEOUT_S
    )
    return answer


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _say(text: str) -> None:
    typer.echo(text, err=True)
