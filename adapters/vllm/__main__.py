"""`python -m adapters.vllm`: find or make vLLM for the CPU and a model for it; prints both paths, a line each."""

import sys

from adapters.provisioning.progress import Progress
from adapters.vllm.provision import find_engine, find_model
from contracts.engine import EngineError

_MODEL = "smollm2-135m-instruct"


def _print_progress(progress: Progress) -> None:
    print(f"vllm: {progress.phase}: {progress.detail}", file=sys.stderr)


def main() -> int:
    try:
        python = find_engine(_print_progress)
        print(python)
        print(find_model(python, _MODEL, _print_progress))
    except EngineError as error:
        print(error.info.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
