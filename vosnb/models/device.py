"""Which device, which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import InputError

__all__ = ["inference", "pick", "precision"]


def pick(device: str | torch.device = "auto") -> torch.device:
    """CUDA, else Apple's MPS, else the CPU; or the device asked for. `InputError` where it is unknown or absent."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError("a device: auto, cpu, cuda, cuda:1, mps", repr(device), "choose one of these") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device.type, False)
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise InputError("a device that is present", str(device), "use auto or cpu")
    return device


def precision(device: torch.device) -> torch.dtype:
    """What an image encoder computes in: bfloat16 on CUDA from compute capability 8 on, float16 before, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


@contextmanager
def inference(device: torch.device, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """No gradients; autocast to `dtype` unless float32. Torch keeps both per thread: enter it in the thread that computes."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield
