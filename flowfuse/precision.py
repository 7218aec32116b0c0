"""Where bfloat16 pays: on GPUs, and on CPUs with instructions for it."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}  # of --precision
# As torch.cpu names them; AMX comes with the first, the last is that of ARM.
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
NO_INSTRUCTIONS = "this CPU has no bfloat16 instructions: float32 is faster"


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself; a CPU that does not is faster in float32.

    Args:
        device: a CPU, or a GPU, which is not asked.
    """
    return device.type != "cpu" or cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has the instructions, and torch's convolutions may use them.

    ONEDNN_MAX_CPU_ISA=AVX2 takes them away, as on a CPU without AVX-512.
    """
    capabilities = torch.cpu.get_capabilities()
    # Builds of torch without oneDNN do not have the question.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return (
        any(capabilities.get(name, False) for name in INSTRUCTIONS)
        and supported is not None
        and supported()
    )
