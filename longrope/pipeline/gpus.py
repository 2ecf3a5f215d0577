"""GPUs by the names that people call them, for plans of runs on machines that are not here."""

from __future__ import annotations

from dataclasses import dataclass

from longrope.exceptions import SettingsError
from longrope.finetune.hardware import Hardware
from longrope.sizes import GIB

HOST_PER_GPU = 128
"""GiB of main memory for each GPU of a host, where nothing is said: the less of what clouds and DGX machines have."""


@dataclass(frozen=True)
class GPU:
    """A kind of GPU.

    Attributes:
        name: what torch calls it, by which its peak is known.
        memory: GiB that torch sees of it.
        bandwidth: of its memory, bytes per second, from the data sheet.
    """

    name: str
    memory: float
    bandwidth: float


GPUS = {
    "a10g": GPU("NVIDIA A10G", 22.1, 0.600e12),
    "a100": GPU("NVIDIA A100-SXM4-80GB", 79.2, 2.039e12),
    "a100-40gb": GPU("NVIDIA A100-SXM4-40GB", 39.4, 1.555e12),
    "a40": GPU("NVIDIA A40", 44.4, 0.696e12),
    "b200": GPU("NVIDIA B200", 178.3, 8.0e12),
    "b300": GPU("NVIDIA B300", 267.7, 8.0e12),
    "gh200": GPU("NVIDIA GH200 480GB", 94.5, 4.0e12),
    "h100": GPU("NVIDIA H100 80GB HBM3", 79.2, 3.35e12),
    "h100-pcie": GPU("NVIDIA H100 PCIe", 79.2, 2.0e12),
    "h200": GPU("NVIDIA H200", 139.8, 4.8e12),
    "l4": GPU("NVIDIA L4", 22.0, 0.300e12),
    "l40s": GPU("NVIDIA L40S", 44.4, 0.864e12),
    "mi250x": GPU("AMD Instinct MI250X", 64.0, 1.638e12),  # one of its two dies, which are devices of their own
    "mi300x": GPU("AMD Instinct MI300X", 191.7, 5.3e12),
    "mi325x": GPU("AMD Instinct MI325X", 255.7, 6.0e12),
    "mi355x": GPU("AMD Instinct MI355X", 287.7, 8.0e12),
    "rtx3090": GPU("NVIDIA GeForce RTX 3090", 23.6, 0.936e12),
    "rtx4090": GPU("NVIDIA GeForce RTX 4090", 23.6, 1.008e12),
    "rtx5090": GPU("NVIDIA GeForce RTX 5090", 31.4, 1.792e12),
    "rtx6000-ada": GPU("NVIDIA RTX 6000 Ada Generation", 47.4, 0.960e12),
    "rtxa6000": GPU("NVIDIA RTX A6000", 47.5, 0.768e12),
}
"""By name; what is called 80GB or 141GB holds a little less."""


def gpu_hardware(name: str, gpus: int = 1, nodes: int = 1, host_memory: float | None = None) -> Hardware:
    """GPUs of a kind, all their memory free.

    Args:
        gpus: of each node.
        host_memory: GiB of main memory of each node; HOST_PER_GPU for each of its GPUs when not given.

    Raises:
        SettingsError: if the kind is not known.
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise SettingsError(f"gpu {name!r} is not known; use {', '.join(GPUS)}")
    return Hardware(
        devices=gpus * nodes,
        devices_per_node=gpus,
        memory=int(found.memory * GIB),
        name=found.name,
        host_memory=int((host_memory or HOST_PER_GPU * gpus) * GIB),
    )


def bandwidth_of(name: str | None) -> float | None:
    """Bytes per second that a GPU reads from its memory; None where it is not known."""
    return next((each.bandwidth for each in GPUS.values() if each.name == name), None)
