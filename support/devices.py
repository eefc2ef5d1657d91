"""support/devices.py: which device computes, and how: names, compilation, mixed precision, memory."""

import ctypes
import importlib.util

import torch


def find_device(name):
    """The torch.device of that name; of "" a CUDA GPU if there is one, else the CPU. Apple's GPU is "mps".

    raises  ValueError where torch does not have that device"""
    expected = "expected cpu, cuda, cuda:1 for the second GPU, or mps"
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device is {name!r}; {expected}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {name!r}; {expected}")
    gpus = dict(cuda=torch.cuda, mps=torch.backends.mps)
    if device.type in gpus and not gpus[device.type].is_available():
        raise ValueError(f"device is {device} but torch sees no GPU; pass --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device} but torch sees {torch.cuda.device_count()}, numbered from 0")
    return device


def can_compile(device):
    """Whether torch.compile works there: it needs Triton (not on Windows) and a GPU of capability 7.0.

    (From their documentation: no such GPU was at hand.)"""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def keep_memory():
    """Let glibc keep the memory that it once got. By default it returns large blocks to the system, and to
    get them anew costs a page fault for every 4 KB: a tenth to a quarter of the time of `small` on CPUs."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks apart from the heap,
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: which never shrinks
    except (OSError, AttributeError):
        return  # another system's allocator


def uses_bf16(device, dtype):
    """Whether the setting dtype means bf16 there: "bf16", "float32", or "auto": bf16 on GPUs that have it."""
    if dtype not in ("auto", "bf16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; expected auto, bf16 or float32")
    if dtype == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype == "bf16"


def autocast_for(device, dtype):
    """Mixed precision context, as `uses_bf16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, dtype))
