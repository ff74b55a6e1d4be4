"""What the driver's error codes mean to a replica: XIDs of the GPU and return codes of NVML (ORCH-3038, ORCH-3053).

XIDs follow NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors): ones whose immediate action is to restart
the application are `xid` and not fatal, because the engine that made them ends by itself; ones that ask for a
reset of the GPU, of the bus or of the driver are fatal.
"""

from typing import Final, NamedTuple

from contracts.pools import FaultKind


class Verdict(NamedTuple):
    """A fault's kind, whether an engine on the GPU can be of use any more, and what happened in words."""

    kind: FaultKind
    fatal: bool
    text: str


#: By XID. What is not listed is `xid` and not fatal.
XIDS: Final[dict[int, Verdict]] = {
    13: Verdict("xid", False, "graphics engine exception"),
    31: Verdict("xid", False, "GPU memory page fault"),
    43: Verdict("xid", False, "GPU stopped processing"),
    46: Verdict("driver", True, "GPU stopped processing, reset required"),
    48: Verdict("ecc", True, "double-bit ECC error"),
    62: Verdict("driver", True, "internal micro-controller halt"),
    63: Verdict("ecc", False, "row remapping or page retirement recorded"),
    64: Verdict("ecc", False, "row remapping or page retirement could not be recorded"),
    74: Verdict("driver", True, "NVLink error"),
    79: Verdict("gpu_lost", True, "GPU has fallen off the bus"),
    92: Verdict("ecc", False, "high rate of single-bit ECC errors"),
    94: Verdict("ecc", False, "contained ECC error"),
    95: Verdict("ecc", True, "uncontained ECC error"),
    110: Verdict("driver", True, "security fault"),
    119: Verdict("driver", True, "GSP RPC timeout"),
    120: Verdict("driver", True, "GSP error"),
    136: Verdict("driver", True, "link training failed"),
    140: Verdict("ecc", True, "unrecovered ECC error"),
    143: Verdict("driver", True, "GPU initialization failed"),
    155: Verdict("driver", True, "NVLink error defined by software"),
    156: Verdict("driver", True, "resource retirement"),
    158: Verdict("driver", True, "GPU fatal timeout"),
}

#: Channels torn down because their process was killed, as a replica kills its engine: counted, and no fault.
XID_OF_ENDED_PROCESS: Final = 45


def xid_verdict(xid: int) -> Verdict:
    """What an XID means."""
    return XIDS.get(xid, Verdict("xid", False, "see NVIDIA's Xid catalogue"))


# Return codes of NVML (nvmlReturn_t).
UNINITIALIZED: Final = 1
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
VERSION_MISMATCH: Final = 18
NO_DATA: Final = 21
NOT_READY: Final = 27

#: Codes by which a driver says that it has no such fact to tell; anything else is an error.
UNTOLD: Final = frozenset({NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, NO_DATA, NOT_READY})
#: Codes after which NVML must be opened anew.
DRIVER_GONE: Final = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, VERSION_MISMATCH})

_NVML_CODES: Final[dict[int, Verdict]] = {
    UNINITIALIZED: Verdict("driver", True, "the driver was reset under NVML"),
    DRIVER_NOT_LOADED: Verdict("driver", True, "the NVIDIA driver is not loaded; load it, as in `modprobe nvidia`"),
    LIBRARY_NOT_FOUND: Verdict("driver", True, "libnvidia-ml.so.1 was not found; install the NVIDIA driver"),
    GPU_IS_LOST: Verdict("gpu_lost", True, "GPU is lost: it fell off the bus or its power is off"),
    RESET_REQUIRED: Verdict("driver", True, "GPU needs a reset; run `nvidia-smi --gpu-reset`, or reboot the node"),
    VERSION_MISMATCH: Verdict(
        "driver", True, "NVML and the kernel's driver are of different versions; reboot or reload the driver"
    ),
}


def nvml_verdict(code: int, text: str) -> Verdict:
    """What a failed NVML call means; `text` is NVML's own."""
    return _NVML_CODES.get(code, Verdict("driver", False, f"NVML error {code}: {text}"))
