"""How the fake engine fails to come up: what it says last, and with which status it ends."""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

#: What an engine in trouble may blurt out; nobody must ever read it again.
PLANTED_SECRET: Final = "hf_Fake0Planted1Secret2"

_OOM_LINES: Final = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 4294967296
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
srv    load_model: failed to load model"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fake-die-at-launch", metavar="TEXT")
    parser.add_argument("--fake-exit-status", type=int, default=1)
    parser.add_argument("--fake-broken-while", type=Path, metavar="FILE")
    parser.add_argument("--fake-oom", type=int, nargs="?", const=0, metavar="SLOTS")
    parser.add_argument("--fake-launches", type=Path, metavar="FILE")
    parser.add_argument("--fake-fail-first", type=int, default=0)
    parser.add_argument("--fake-fail-after", type=int)


def die_if_told(arguments: argparse.Namespace) -> None:
    """Count this launch, and end the process where the options say that it fails."""
    last_words = _last_words(arguments, _count(arguments.fake_launches))
    if last_words is not None:
        sys.stderr.write(f"{last_words}\n")
        sys.exit(arguments.fake_exit_status)


def _last_words(arguments: argparse.Namespace, launches: int) -> str | None:
    if arguments.fake_die_at_launch is not None:
        return str(arguments.fake_die_at_launch)
    if arguments.fake_broken_while is not None and arguments.fake_broken_while.exists():
        key = os.environ.get("LLAMA_API_KEY", "")
        return f"fake engine: broken, HF_TOKEN={PLANTED_SECRET} --api-key {key} token {PLANTED_SECRET}"
    if arguments.fake_oom is not None and arguments.parallel > arguments.fake_oom:
        return _OOM_LINES
    if launches <= arguments.fake_fail_first:
        return f"fake engine: launch {launches} of {arguments.fake_fail_first} that fail"
    if arguments.fake_fail_after is not None and launches > arguments.fake_fail_after:
        return f"fake engine: launch {launches} fails, as all do after {arguments.fake_fail_after}"
    return None


def _count(file: Path | None) -> int:
    """The number of this launch: each adds a line with its process id to the file; 1 without a file."""
    if file is None:
        return 1
    with file.open("a") as log:
        log.write(f"{os.getpid()}\n")
    return len(file.read_text().splitlines())
