"""What the commands that talk to a server share: which server, with which key, and how they end."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from orchestrator.cli_submit import CANNOT_CONNECT, INTERRUPTED

#: Where `llorch run` leaves URL and key of a development cluster: {"url", "api_key"}.
DEV_FILE: Final = Path(".llorch/dev.json")

Url = Annotated[str | None, typer.Option("--url", envvar="LLORCH_URL", help="server; default: the one running here")]
Key = Annotated[str | None, typer.Option("--key", envvar="LLORCH_API_KEY", help="API key")]


class _DevFile(msgspec.Struct):
    url: str
    api_key: str = ""


def server(url: str | None, key: str | None) -> tuple[str, str]:
    """URL and key: as given, else of the development cluster that runs from this folder."""
    if url is not None:
        return url, key or ""
    try:
        found = msgspec.json.decode(DEV_FILE.read_bytes(), type=_DevFile)
    except FileNotFoundError:
        stderr().print(f"No server: {DEV_FILE} is not here.", style="red", markup=False)
        stderr().print("  start one with `llorch run`, or name one with --url or LLORCH_URL", markup=False)
        raise typer.Exit(CANNOT_CONNECT) from None
    except (OSError, msgspec.DecodeError) as error:
        stderr().print(f"{DEV_FILE} cannot be read: {error}", style="red", markup=False)
        raise typer.Exit(CANNOT_CONNECT) from None
    return found.url, found.api_key if key is None else key


def finish(work: Coroutine[Any, Any, int]) -> None:
    """Do the work and leave with its exit status."""
    try:
        raise typer.Exit(asyncio.run(work))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def stderr() -> Console:
    """Standard error as it is now; tests put another one in its place."""
    return Console(stderr=True)
