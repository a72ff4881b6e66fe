"""What the processor is that teachers run on, and which precisions it has instructions for."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

_INSTRUCTIONS = {  # names of torch.cpu.get_capabilities, of x86 and ARM
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16"),
}


def has_instructions(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies in a type of half precision, and does not only convert to and from it.

    Args:
        device: A CPU, a GPU; any other is taken to have them, since a trial tells in any case.
        dtype: ``bfloat16`` or ``float16``.
    """
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    capabilities = _capabilities()
    return any(bool(capabilities.get(name)) for name in _INSTRUCTIONS[dtype])


def describe_processor(device: torch.device) -> list[Any]:
    """What the time of a forward pass depends on beside network and data, as plain JSON."""
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(device)]
    known = _capabilities()
    name = known.get("cpu_name") or platform.processor() or platform.machine()
    flags = sorted(key for key, value in known.items() if value is True)
    sizes = [known.get(key) for key in ("num_sockets", "num_physical_cores", "l1d_cache_size", "l2_cache_size")]
    return [device.type, str(name), flags, sizes, os.cpu_count(), torch.get_num_threads()]


def _capabilities() -> dict[str, Any]:
    """What torch says of the CPU; nothing where this version does not say it."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return dict(tell()) if callable(tell) else {}
