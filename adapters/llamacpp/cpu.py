"""What this host's CPU can execute, read before any engine is chosen."""

import platform
from pathlib import Path
from typing import Final

#: Instruction sets that the compiler of the prebuilt wheel took for granted.
WHEEL_FLAGS: Final = frozenset(
    {"avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
)

_V3_FLAGS: Final = frozenset({"avx", "avx2", "bmi2", "f16c", "fma", "sse4_2"})


def read_cpuinfo() -> str:
    """The kernel's description of the CPU; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Instruction sets that every CPU of `cpuinfo` has."""
    sets = [
        frozenset(line.partition(":")[2].split())
        for line in cpuinfo.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*sets) if sets else frozenset()


def isa_level(flags: frozenset[str], machine: str | None = None) -> str:
    """The level to compile for: `x86_64_v3`, `x86_64_v2`, or the bare machine name."""
    machine = machine or platform.machine()
    if machine != "x86_64":
        return machine
    if flags >= _V3_FLAGS:
        return "x86_64_v3"
    return "x86_64_v2" if "sse4_2" in flags else "x86_64"


def cmake_isa_options(level: str) -> list[str]:
    """CMake options that keep the build within `level`; the source's own default is x86_64_v3."""
    if level == "x86_64_v3":
        return []
    off = ["AVX", "AVX2", "BMI2", "F16C", "FMA"] + (["SSE42"] if level != "x86_64_v2" else [])
    return [f"-DGGML_{name}=OFF" for name in off]
