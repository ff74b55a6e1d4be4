"""`python -m adapters.llamacpp`: find or make a llama-server now, and print its path."""

import sys

from adapters.llamacpp.provision import find_engine
from adapters.provisioning.progress import Progress
from contracts.engine import EngineError


def _print_progress(progress: Progress) -> None:
    """One line a phase; counted phases overwrite their line on a terminal and print every 20th step elsewhere."""
    if progress.total <= 1:
        print(f"llama-server: {progress.phase}: {progress.detail}", file=sys.stderr)
        return
    text = f"llama-server: {progress.phase} {progress.done}/{progress.total} {progress.detail[:40]:<40}"
    last = progress.done == progress.total
    if sys.stderr.isatty():
        print(text, end="\n" if last else "\r", file=sys.stderr, flush=True)
    elif last or progress.done % 20 == 0:
        print(text.rstrip(), file=sys.stderr, flush=True)


def main() -> int:
    try:
        print(find_engine(report=_print_progress))
    except EngineError as error:
        print(error.info.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
