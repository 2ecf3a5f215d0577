"""What a run computes on: GPUs, their memory and peak speed, and the memory of the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longrope.host_memory import free_host_memory

# Dense bfloat16 TFLOP/s with float32 accumulation, from the vendors' data sheets (those of NVIDIA print twice as much,
# with sparsity). A name is found by the first entry that it contains, so longer names stand before shorter ones.
_PEAKS = (
    ("GB200", 2500.0),
    ("B300", 2250.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A30", 165.0),
    ("A40", 149.7),
    ("RTX 6000 Ada", 364.0),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI355X", 2500.0),
    ("MI325X", 1307.4),
    ("MI300X", 1307.4),
    ("MI250X", 191.5),  # of one of its two dies, which are devices of their own
)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The devices of a run.

    Attributes:
        devices: GPUs, or processes where there is none.
        devices_per_node: how many of them share the memory of a host.
        memory: bytes of a GPU that the run may take; None on a CPU.
        name: what torch calls the GPU; None on a CPU.
        host_memory: bytes of a host that the run may take.
    """

    devices: int = 1
    devices_per_node: int = 1
    memory: int | None = None
    name: str | None = None
    host_memory: int

    @classmethod
    def here(cls, devices: int = 1, devices_per_node: int | None = None, device: str = "cuda") -> Hardware:
        """Devices like those of this machine, with the memory that is free now.

        Args:
            devices: how many the run has.
            devices_per_node: how many of them share a host; all when None.
            device: ``cpu`` leaves GPUs that are here unused.
        """
        host = free_host_memory()
        per_node = min(devices, devices_per_node or devices)
        if device == "cpu" or not torch.cuda.is_available():
            return cls(devices=devices, devices_per_node=per_node, host_memory=host)
        index = torch.cuda.current_device()
        return cls(
            devices=devices,
            devices_per_node=per_node,
            memory=int(torch.cuda.mem_get_info(index)[0]) + torch.cuda.memory_reserved(index),
            name=torch.cuda.get_device_name(index),
            host_memory=host,
        )


def peak_flops(name: str | None, precision: str) -> float | None:
    """Peak FLOP/s of a GPU in half precision; None where it is not known, on a CPU, and in float32.

    Args:
        name: what ``torch.cuda.get_device_name`` says.
        precision: ``bf16``, ``fp16``, ``auto`` or ``fp32``.
    """
    if name is None or precision == "fp32":
        return None
    return next((peak * 1e12 for part, peak in _PEAKS if part.lower() in name.lower()), None)
