"""A log that cannot be written ends nobody: the disk may be the one that the log tells of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from orchestrator.cluster.logs import BestEffort


@pytest.mark.req("ORCH-3051")
def test_lines_for_a_full_disk_are_dropped_and_later_ones_come() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="No space left"):
            os.write(full, b"x")
        logger = structlog.BytesLogger(BestEffort(full))  # type: ignore[arg-type]
        logger.error(b"the disk is full")
        os.dup2(write, full)  # there is room again
        logger.error(b"it is not")
        assert os.read(read, 100) == b"it is not\n"
    finally:
        for descriptor in (full, read, write):
            os.close(descriptor)


@pytest.mark.req("ORCH-3051")
def test_a_process_whose_log_is_full_goes_on() -> None:
    program = "from orchestrator.cluster import logs; import structlog; logs.configure();"
    program += "structlog.get_logger().error('lost'); print('went on')"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"went on\n"
