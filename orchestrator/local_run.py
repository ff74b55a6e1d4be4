"""`llorch run`: engine, Ray, service, and a clean end, each step said aloud."""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any, Final, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from adapters.provisioning.progress import Progress
from contracts.config import Config, KeyConfig, KeyRole, PoolConfig
from contracts.engine import EngineError
from orchestrator import orphans
from orchestrator.app import Service, balanced_port, local_service
from orchestrator.cluster.journal.errors import JournalError
from orchestrator.configfile import LoadedConfig

READY_POLL_S: Final = 0.3
ORPHANS_TIMEOUT_S: Final = 10.0
FAILED: Final = 1


class CannotStartError(Exception):
    """Something outside is in the way; the text says what, and what to do."""


class _Stop(BaseException):
    """SIGINT or SIGTERM arrived; unwinds the start-up wherever it is."""


class _Signals:
    """Raises `_Stop` for the first SIGINT or SIGTERM; more must not interrupt the clean-up, and only make it short."""

    def __init__(self) -> None:
        self.arrived = False
        self.repeated = False

    def take(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.arrived:
            self.repeated = True
            return
        self.arrived = True
        raise _Stop


def run_local(loaded: LoadedConfig, *, port: int | None, dev_file: Path) -> int:
    """Serve until SIGINT or SIGTERM, then end the process; returns a status only if it cannot start.

    Without keys in the configuration a key is made for this run. URL and key go to `dev_file`
    (mode 0600) for scripts, and the file goes when the service does.
    """
    console = Console(stderr=True, highlight=False)
    signals = _Signals()
    signals.take()
    orphans.adopt()
    try:
        config, key = _with_key(loaded.config)
        config = _with_engines(config, console)
        _serve(config, key, port or config.server.port, dev_file, console, signals)
    except (EngineError, JournalError, CannotStartError) as failed:
        why = failed.info.message if isinstance(failed, EngineError) else str(failed)
        console.print(f"cannot start: {why}", style="red", markup=False)
        return FAILED
    except BaseException:
        # Ray's compiled parts may turn the signal's exception into one of their own.
        if not signals.arrived:
            raise
    finally:
        orphans.end_all(ORPHANS_TIMEOUT_S)
    console.print("stopped; nothing is left running")
    # Ray's exit handlers have nothing left to end, and crash on what is gone when its start was interrupted.
    os._exit(0)


def _serve(config: Config, key: str, port: int, dev_file: Path, console: Console, signals: _Signals) -> None:
    _check_free(port, balanced_port(config, port))
    console.print("starting Ray, the scheduler and the ingress (10 to 40 seconds)")
    with contextlib.ExitStack() as running:
        service = running.enter_context(local_service(config, port=port, data_dir=dev_file.parent.absolute() / "data"))
        signals.take()  # once more: Ray has taken SIGTERM for itself
        running.callback(_write_dev_file(dev_file, service, key).unlink, missing_ok=True)
        # A certificate is hardly for this address, and may be asked for in turn; HAProxy's door has none.
        _wait_ready(service.url if config.server.tls is None else service.balanced_url, console)
        _print_welcome(service, key, console)
        try:
            while True:
                signal.pause()
        except _Stop:
            _drain(service, config, console, signals)
            raise


def _drain(service: Service, config: Config, console: Console, signals: _Signals) -> None:
    """Let what runs end, and say what is left to the next start (ORCH-3051)."""
    seconds = config.server.shutdown_ms / 1000
    console.print(f"stopping; tasks that run have {seconds:g} s to end, another Ctrl-C ends them now")
    left = service.drain(config.server.shutdown_ms, lambda: signals.repeated)
    if not config.storage.journal:
        return
    if left is None:
        console.print("ended at once; what was accepted goes on at the next start")
    elif sum(left):
        running, waiting = left
        console.print(f"{running + waiting} tasks go on at the next start ({running} ran, {waiting} waited)")


def _check_free(*ports: int) -> None:
    """The ingress replicas share their port, so a second service would silently share it too."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as taken:
                raise CannotStartError(
                    f"port {port} is in use ({taken.strerror}); choose another with --port"
                ) from taken


def _with_key(config: Config) -> tuple[Config, str]:
    """The configuration with a key made for this run, unless it has keys or needs none."""
    if not config.auth.enabled or config.auth.keys or config.auth.keys_file:
        return config, ""
    key = f"llk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    made = KeyConfig(name="dev", tenant="default", sha256=digest, roles=list(get_args(KeyRole)))
    return config.model_copy(update={"auth": config.auth.model_copy(update={"keys": [made]})}), key


def _with_engines(config: Config, console: Console) -> Config:
    """Resolve engine binaries and bundled models now, where their progress can be seen."""
    here = [pool.engine == "llamacpp" and pool.accelerator == "cpu-dev" for pool in config.pools]
    pools = [_resolved(pool, console) if local else pool for pool, local in zip(config.pools, here, strict=True)]
    return config.model_copy(update={"pools": pools})


def _resolved(pool: PoolConfig, console: Console) -> PoolConfig:
    model_path = pool.model_path or bundled_model_path(pool.model)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("engine", total=None, visible=False)

        def report(progress: Progress) -> None:
            counted = progress.total > 1
            bar.update(task, visible=counted, description=f"engine: {progress.phase}")
            if counted:
                bar.update(task, completed=progress.done, total=progress.total)
            else:
                bar.console.print(f"engine: {progress.phase}: {progress.detail}", markup=False, soft_wrap=True)

        binary = find_engine(pool.engine_options.binary, accelerator=pool.accelerator, report=report)
    options = pool.engine_options.model_copy(update={"binary": binary})
    return pool.model_copy(update={"model_path": model_path, "engine_options": options})


def _write_dev_file(path: Path, service: Service, key: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    found = {"url": service.url, "api_key": key, "balanced_url": service.balanced_url, "ray_address": _ray_address()}
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(found, file)
    return path


def _ray_address() -> str:
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


def _wait_ready(url: str, console: Console) -> None:
    """Wait for every pool, saying what each one waits for whenever that changes."""
    said: dict[str, str] = {}
    while True:
        ready, pools = _readiness(url)
        if pools != said:
            console.print("pools: " + ", ".join(f"{pool} {state}" for pool, state in pools.items()), markup=False)
            said = pools
        if ready:
            return
        time.sleep(READY_POLL_S)


def _readiness(url: str) -> tuple[bool, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            body: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as unready:
        with contextlib.suppress(ValueError):
            return False, json.load(unready).get("pools", {})
        return False, {}
    except OSError:
        return False, {}
    return bool(body["ready"]), body["pools"]


def _print_welcome(service: Service, key: str, console: Console) -> None:
    url = service.url
    console.print(f"\nready: {url}    docs: {url}/docs", style="bold green", markup=False)
    console.print(f"through HAProxy: {service.balanced_url}", markup=False)
    if key:
        console.print(f"API key: {key}", markup=False, soft_wrap=True)
    console.print('try: .venv/bin/llorch submit "The capital of France is"', markup=False)
    console.print("Ctrl-C stops everything", markup=False)
