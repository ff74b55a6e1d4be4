"""The peer's command line: the launcher's arguments that matter here, and faults to be played."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

_EPILOG = """The peer is NOT TGI. It takes the arguments of text-generation-launcher and ignores those that it
does not know; as there, API_KEY comes from the environment too. Its own arguments begin with --peer and
are also read from $LLORCH_TGI_PEER_ARGS. Those that take a number of tokens act in every stream that gets so far."""


class PeerOptions(Struct, frozen=True, kw_only=True):
    """How the peer serves, and which faults it plays (None, 0 and False: not this one)."""

    hostname: str = "127.0.0.1"
    port: int = 0
    model_id: str = "peer/model"
    revision: str | None = None
    api_key: str = ""
    max_concurrent_requests: int = 128
    max_stop_sequences: int = 4
    max_input_tokens: int = 0
    max_total_tokens: int = 4096
    max_batch_size: int = 64
    first_token_ms: float = 0.0
    token_ms: float = 0.0
    headers_ms: float = 0.0
    load_ms: float = 0.0
    comment_every: int = 0
    die_after: int | None = None
    stall_after: int | None = None
    garbage_after: int | None = None
    eof_after: int | None = None
    end_after: int | None = None
    fail_after: int | None = None
    deaf: bool = False
    unhealthy_file: str = ""
    fail_text: str = "peer: told to fail"
    die_at_launch: str = ""
    launch_log: str = ""

    @property
    def input_tokens_max(self) -> int:
        """The longest prompt: as the launcher does, one less than the context unless told."""
        return self.max_input_tokens or self.max_total_tokens - 1


def parse_arguments(argv: Sequence[str]) -> PeerOptions:
    """The options of a command line. Ends the process where one cannot be read."""
    parser = argparse.ArgumentParser("tgi-peer", allow_abbrev=False, epilog=_EPILOG)
    parser.add_argument("--model-id", default="peer/model")
    parser.add_argument("--revision")
    parser.add_argument("--hostname", default="127.0.0.1")
    parser.add_argument("-p", "--port", type=int, default=3000)
    parser.add_argument("--api-key", default=os.environ.get("API_KEY", ""))
    for name, default in (
        ("concurrent-requests", 128),
        ("stop-sequences", 4),
        ("input-tokens", 0),
        ("total-tokens", 4096),
        ("batch-size", 64),
    ):
        parser.add_argument(f"--max-{name}", type=int, default=default)
    for name in ("first-token-ms", "token-ms", "headers-ms", "load-ms"):
        parser.add_argument(f"--peer-{name}", type=float, default=0.0)
    parser.add_argument("--peer-comment-every", type=int, default=0)
    for name in ("die", "stall", "garbage", "eof", "end", "fail"):
        parser.add_argument(f"--peer-{name}-after", type=int, default=None)
    parser.add_argument("--peer-deaf", action="store_true", help="never notice a closed connection")
    parser.add_argument("--peer-unhealthy-file", default="", help="answer 503 to health checks while it exists")
    parser.add_argument("--peer-fail-text", default="peer: told to fail")
    parser.add_argument("--peer-die-at-launch", default="")
    parser.add_argument("--peer-launch-log", default="", help="add a line with the arguments to this file")
    arguments, _ = parser.parse_known_args(argv)
    return PeerOptions(**{name.removeprefix("peer_"): value for name, value in vars(arguments).items()})


def write_launcher(directory: Path, *options: str) -> Path:
    """Write an executable that runs the peer in the place of text-generation-launcher; `options` come first."""
    root = Path(__file__).resolve().parents[3]
    words = [sys.executable, "-m", "adapters.testing.tgi_peer", *options]
    path = directory / "tgi-peer-launcher"
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+":$PYTHONPATH"}} exec {shlex.join(words)} "$@"\n'
    )
    path.chmod(0o755)
    return path
