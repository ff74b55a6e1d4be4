"""A deterministic fake engine that speaks llama-server's HTTP, for tests and the overhead benchmark.

It takes llama-server's command line (what it does not know it ignores) and says in `build_info`
that it is a fake. Further options, also read from `$LLORCH_FAKE_ARGS`:

  --fake-first-token-ms N   pause before the first token of a completion (default 0)
  --fake-token-ms N         pause between tokens (default 0: a burst)
  --fake-burst              no pauses, whatever was said before
  --fake-die-after N        kill itself when a completion has made N tokens
  --fake-last-words TEXT    say TEXT on stderr before that
  --fake-stall-after N      a completion falls silent after N tokens
  --fake-load-ms N          answer "loading" for so long after the start
  --fake-die-at-launch TEXT say TEXT on stderr and end with status 1 instead of serving
  --fake-exit-status N      end with this status instead, here and below
  --fake-broken-while FILE  fail to launch while FILE exists, blurting out secrets (`fake_launch.PLANTED_SECRET`)
  --fake-oom [SLOTS]        run out of GPU memory at launch with more than SLOTS slots (default 0: always)
  --fake-launches FILE      add a line with the process id to FILE at each launch
  --fake-fail-first N       fail the first N launches that FILE counts
  --fake-fail-after N       fail every launch after the first N that FILE counts
  --fake-cache              tell how much of a prompt was in its slot already (else always 0)
  --fake-context-ms N       what saving and restoring a slot takes (default 0)
  --fake-gpu                list the GPUs that CUDA_VISIBLE_DEVICES names as found

Another model gives other text: what counts is the name in its file, so that copies of a file give the same. Files
without a name, and those of the name "fake", all give the usual text.

With --embeddings or --reranking it gives numbers that follow from the text, each input after the time of a first
token. An input may have as many tokens as -ub says.

A completion ends at `n_predict` tokens, or by itself where its prompt says so: after N tokens of a
prompt with the word `fake-length=N`.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from adapters.llamacpp.gguf import GgufError, read_header
from adapters.ports import free_ports
from adapters.testing import fake_launch
from adapters.testing.fake_contexts import SlotContexts
from adapters.testing.fake_http import HttpProtocol
from adapters.testing.fake_model import NAME_DEFAULT
from adapters.testing.fake_pooled import Pooling
from adapters.testing.fake_scheduler import Pace, SlotScheduler

BUILD_INFO: Final = "fake-llama-server 1"
_CTX_DEFAULT: Final = 4096


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("fake-llama-server", allow_abbrev=False)
    parser.add_argument("-m", "--model", default="fake.gguf")
    parser.add_argument("-a", "--alias", default="fake")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-np", "--parallel", type=int, default=4)
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("--api-key", default=os.environ.get("LLAMA_API_KEY", ""))
    parser.add_argument("-ub", "--ubatch-size", type=int, default=512)
    parser.add_argument(
        "--embedding", "--embeddings", action="store_const", const="embedding", dest="pooling", default=""
    )
    parser.add_argument("--rerank", "--reranking", action="store_const", const="rerank", dest="pooling")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--list-devices", action="store_true")
    parser.add_argument("--slot-save-path", default="")
    for name in ("first-token-ms", "token-ms", "load-ms", "context-ms"):
        parser.add_argument(f"--fake-{name}", type=float, default=0.0)
    for name in ("die-after", "stall-after"):
        parser.add_argument(f"--fake-{name}", type=int, default=None)
    parser.add_argument("--fake-last-words", default="")
    for name in ("burst", "cache", "gpu"):
        parser.add_argument(f"--fake-{name}", action="store_true")
    fake_launch.add_options(parser)
    arguments, _ = parser.parse_known_args([*shlex.split(os.environ.get("LLORCH_FAKE_ARGS", "")), *argv])
    if arguments.fake_burst:
        arguments.fake_first_token_ms = arguments.fake_token_ms = 0.0
    return arguments


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    pace = Pace(
        first_ns=int(arguments.fake_first_token_ms * 1e6),
        token_ns=int(arguments.fake_token_ms * 1e6),
        die_after=arguments.fake_die_after,
        stall_after=arguments.fake_stall_after,
        last_words=arguments.fake_last_words,
    )
    ctx = (arguments.ctx_size or _CTX_DEFAULT * arguments.parallel) // arguments.parallel
    scheduler = SlotScheduler(arguments.parallel, pace)
    facts = {
        "total_slots": arguments.parallel,
        "default_generation_settings": {"n_ctx": ctx},
        "model_alias": arguments.alias,
        "model_path": arguments.model,
        "build_info": BUILD_INFO,
        "fake": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    pooling = Pooling(arguments.pooling, arguments.ubatch_size, _model_name(arguments.model))
    contexts = SlotContexts(arguments.parallel, arguments.slot_save_path, arguments.fake_context_ms)
    ready_ns = time.monotonic_ns() + int(arguments.fake_load_ms * 1e6)

    def connection() -> HttpProtocol:
        told = arguments.fake_cache
        return HttpProtocol(scheduler, facts, ctx, pooling, contexts, told, arguments.api_key, ready_ns)

    if arguments.host.endswith(".sock"):
        server = await loop.create_unix_server(connection, arguments.host, backlog=1024)
    else:
        server = await loop.create_server(connection, arguments.host, arguments.port, backlog=1024)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    print(f"{BUILD_INFO} listens on {arguments.host}:{arguments.port}", file=sys.stderr, flush=True)
    await stopped.wait()
    server.close()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if arguments.version:
        print(f"version: {BUILD_INFO}")
    elif arguments.list_devices:
        print("\n".join(["Available devices:", *(_devices() if arguments.fake_gpu else ["  (none)"])]))
    else:
        fake_launch.die_if_told(arguments)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments))


def _devices() -> list[str]:
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [f"  CUDA{index}: fake {name} (81920 MiB, 80000 MiB free)" for index, name in enumerate(visible)]


def _model_name(path: str) -> str:
    """The name in a model's file; empty for the usual one, and where the file has none."""
    try:
        name = read_header(Path(path)).name
    except (OSError, GgufError):
        return ""
    return "" if name == NAME_DEFAULT else name


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    return free_ports(1)[0]


def write_fake_binary(directory: Path, *options: str) -> Path:
    """Write an executable that runs this fake, usable as `engine_options.binary`. `options` come first."""
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "adapters.testing.fake_llama_server", *options]
    path = directory / "fake-llama-server"
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+":$PYTHONPATH"}} exec {shlex.join(words)} "$@"\n'
    )
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    main()
