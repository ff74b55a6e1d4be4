"""Trying an engine binary before it is trusted: bounded, and a crash becomes a reason."""

import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.redaction import redact

_TIMEOUT_S: Final = 20
_DEVICE = re.compile(r"^\s+(\w+\d+): ", re.MULTILINE)


def why_unusable(binary: Path, env: Mapping[str, str]) -> str | None:
    """Run `BINARY --version`; None where it works, else the reason it does not."""
    try:
        done = subprocess.run(
            [str(binary), "--version"], env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S
        )
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"did not answer --version within {_TIMEOUT_S} s"
    if done.returncode in (-signal.SIGILL, 128 + signal.SIGILL):
        return "uses instructions that this CPU lacks (SIGILL)"
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        return f"--version failed with status {done.returncode}" + (f": {redact(lines[-1])[:300]}" if lines else "")
    return None


def offload_devices(binary: Path, env: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that the binary can use; empty where there is none, or it cannot tell."""
    try:
        done = subprocess.run(
            [str(binary), "--list-devices"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _DEVICE.findall(done.stdout.decode(errors="replace")) if done.returncode == 0 else []
