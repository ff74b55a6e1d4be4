"""`python -m adapters.triton`: find or make a tritonserver now, and print its path."""

import sys

from adapters.provisioning.progress import Progress
from adapters.triton.provision import find_engine
from contracts.engine import EngineError


def _tell(progress: Progress) -> None:
    sys.stderr.write(f"tritonserver: {progress.phase}: {progress.detail}\n")


def main() -> int:
    try:
        sys.stdout.write(f"{find_engine(report=_tell)}\n")
    except EngineError as error:
        sys.stderr.write(f"{error.info.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
