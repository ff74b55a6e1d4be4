"""What an engine's last words mean, with lines as the engines write them."""

import signal

import pytest

from adapters.faults import classify
from contracts.pools import FaultKind

GGML_CUDA_OOM = (
    "0.01.204 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9866.00 MiB on device 1: "
    "cudaMalloc failed: out of memory",
    "0.01.204 E alloc_tensor_range: failed to allocate CUDA1 buffer of size 10345253120",
    "0.01.220 E llama_model_load: error loading model: unable to allocate CUDA1 buffer",
    "0.01.230 E srv    load_model: failed to load model, 'm.gguf'",
    "0.01.301 E srv  llama_server: exiting due to model loading error",
)


@pytest.mark.req("ORCH-3039", "ORCH-3053", "OC-POOL-3010")
@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        # llama.cpp
        ("vram_oom", GGML_CUDA_OOM),
        ("vram_oom", ("CUDA error: out of memory", "  current device: 0, in function alloc at ggml-cuda.cu:503")),
        ("vram_oom", ("ggml_gallocr_reserve_n: failed to allocate ROCm0 buffer of size 14822711296",)),
        ("vram_oom", ("ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",)),
        ("vram_oom", ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED",)),
        ("host_oom", ("terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc")),
        ("host_oom", ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate CPU buffer of size 99",)),
        ("host_oom", ("llama_model_load: error loading model: unable to allocate CUDA_Host buffer",)),
        ("host_oom", ("llama_model_load: error loading model: mmap failed: Cannot allocate memory",)),
        ("driver", ("ggml_cuda.cu:75: CUDA error", "CUDA error: an illegal memory access was encountered")),
        ("driver", ("CUDA error: unspecified launch failure",)),
        ("driver", ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected",)),
        ("driver", ("CUDA driver version is insufficient for CUDA runtime version",)),
        ("driver", ("terminate called after throwing an instance of 'vk::DeviceLostError'",)),
        ("ecc", ("CUDA error: uncorrectable ECC error encountered",)),
        ("gpu_lost", ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",)),
        ("xid", ("NVRM: Xid (PCI:0000:3b:00): 31, pid=99, MMU Fault",)),
        ("model", ("gguf_init_from_reader: invalid magic characters: 'a fa', expected 'GGUF'",)),
        ("model", ("tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete",)),
        ("model", ("llama_model_load: error loading model: unknown model architecture: 'x'",)),
        ("exit", ('error while handling argument "--draft-max": the argument has been removed',)),
        # vLLM on torch
        ("vram_oom", ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...",)),
        ("vram_oom", ("ValueError: No available memory for the cache blocks. Try increasing the utilization",)),
        ("vram_oom", ("torch.OutOfMemoryError: HIP out of memory.", "RuntimeError: Engine core initialization failed")),
        ("host_oom", ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...",)),
        ("host_oom", ("    raise MemoryError", "MemoryError")),
        ("ecc", ("RuntimeError: CUDA error: uncorrectable ECC error encountered",)),
        (
            "driver",
            (
                "(EngineCore pid=128) ERROR 03-16 08:31:22 torch.AcceleratorError: CUDA error: device-side assert "
                "triggered",
                "CUDA kernel errors might be asynchronously reported at some other API call",
            ),
        ),
        ("driver", ("RuntimeError: Found no NVIDIA driver on your system.",)),
        ("model", ("OSError: /models/x does not appear to have a file named config.json.",)),
        ("model", ("ValueError: Model architectures ['X'] are not supported for now.",)),
        # TensorRT-LLM
        (
            "vram_oom",
            ("[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n): out of memory (x.h:112)",),
        ),
        ("vram_oom", ("[TRT] Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)",)),
        ("driver", ("[TensorRT-LLM][ERROR] CUDA runtime error in cudaEventSynchronize(e): an error (x.h:1)",)),
        ("model", ("[TRT] Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.",)),
        # Nothing that tells
        ("exit", ()),
        ("exit", ("main: server is listening", "srv update_slots: n_tokens = 512, memory ok")),
    ],
)
def test_last_words_tell_the_kind(kind: FaultKind, lines: tuple[str, ...]) -> None:
    assert classify(1, lines) == kind
    # Wherever they stand among other lines, and whatever follows from them.
    assert classify(-signal.SIGABRT, ("build 11434", *lines, "cleaning up before exit...")) == kind


@pytest.mark.req("ORCH-3039")
def test_a_kill_for_want_of_memory_needs_the_kernels_word() -> None:
    assert classify(-signal.SIGKILL, (), oom_killed=True) == "host_oom"
    assert classify(137, (), oom_killed=True) == "host_oom"
    assert classify(-signal.SIGKILL, ()) == "exit"
    assert classify(1, GGML_CUDA_OOM, oom_killed=True) == "vram_oom"
    assert classify(-signal.SIGKILL, GGML_CUDA_OOM, oom_killed=True) == "host_oom"


@pytest.mark.req("ORCH-3039")
def test_an_allocation_that_was_made_up_for_is_no_cause() -> None:
    recovered = (
        *GGML_CUDA_OOM[:2],
        "sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism",
    )
    assert classify(-signal.SIGSEGV, recovered) == "exit"
    assert classify(1, (*recovered, "CUDA error: unspecified launch failure")) == "driver"
    assert classify(1, (*recovered, *GGML_CUDA_OOM)) == "vram_oom"
    assert classify(1, ("warning: failed to mlock 8-byte buffer: Cannot allocate memory",)) == "exit"


def test_on_a_cpu_no_driver_is_to_blame() -> None:
    lines = ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "failed to load model")
    assert classify(1, lines) == "driver"
    assert classify(1, lines, gpu=False) == "model"
