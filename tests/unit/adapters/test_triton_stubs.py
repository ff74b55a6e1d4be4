"""Watching the processes of models, and tidying up the memory that servers leave."""

import asyncio
import os
import sys
from pathlib import Path

from adapters.triton.stubs import ModelProcesses, free_abandoned_memory, free_memory, memory_prefix


async def test_the_end_of_a_model_process_is_told_once(tmp_path: Path) -> None:
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to("/bin/sleep")
    script = f"import subprocess; subprocess.run(['true']); subprocess.run([{str(stub)!r}, '600'])"
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    ended = asyncio.Event()
    try:
        async with asyncio.timeout(20):
            while (processes := ModelProcesses(server.pid, ended.set)).count == 0:
                await asyncio.sleep(0.02)
        unwatched = ModelProcesses(server.pid, lambda: ended.set())
        unwatched.release()
        unwatched.release()
        (pid,) = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
        assert not ended.is_set()
        os.kill(pid, 9)
        await asyncio.wait_for(ended.wait(), 5)
        assert processes.count == 0
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


def test_memory_of_servers_that_are_gone_is_freed_and_no_other(tmp_path: Path) -> None:
    temporary, memory = tmp_path / "tmp", tmp_path / "shm"
    own, other = temporary / "engine-abcdefgh", temporary / "engine-ijklmnop"
    own.mkdir(parents=True)
    other.mkdir()
    memory.mkdir()
    elsewhere = tmp_path / "elsewhere" / "engine-qrstuvwx"
    regions = [f"{memory_prefix(folder)}-1" for folder in (own, other, own.with_name("engine-qrstuvwx"), elsewhere)]
    for name in (*regions, "psm_1"):
        (memory / name).touch()
    free_abandoned_memory(own, memory)
    assert {region.name for region in memory.iterdir()} == {regions[0], regions[1], regions[3], "psm_1"}
    free_memory(own, memory)
    assert {region.name for region in memory.iterdir()} == {regions[1], regions[3], "psm_1"}
