"""Which DeepSpeed configuration a run uses, and how a CPU stands in for GPUs."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from typing import Any

from longrope.exceptions import SettingsError
from longrope.finetune.meeting import LONGEST_WAIT
from longrope.finetune.settings import FinetuneSettings
from longrope.shipped import shipped


def deepspeed_config(settings: FinetuneSettings) -> dict[str, Any] | None:
    """The contents of the file of ``configs/deepspeed/`` that the settings name; None without DeepSpeed.

    Trainer fills in what is ``auto``.

    Raises:
        SettingsError: if DeepSpeed is needed and not installed.
    """
    if settings.zero == 0:
        return None
    if find_spec("deepspeed") is None:
        raise SettingsError(f"zero {settings.zero} needs DeepSpeed; pip install 'longrope[finetune]', or use --zero 0")
    offload = "" if settings.offload == "none" else f"-offload-{settings.offload}"
    text = shipped(f"deepspeed/zero{settings.zero}{offload}.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def check_offload(settings: FinetuneSettings, device: str) -> None:
    """Refuse offloading where DeepSpeed could not compile its CPU optimizer, which it does on first use.

    Args:
        device: ``cuda`` or ``cpu``, of this machine.

    Raises:
        SettingsError: if a compiler is missing.
    """
    if settings.offload == "none":
        return
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder.builder import CUDAOpBuilder
    from torch.utils.cpp_extension import CUDA_HOME, get_cxx_compiler, is_ninja_available

    if installed_ops.get("cpu_adam"):  # compiled when DeepSpeed was installed
        return
    of_cuda = issubclass(get_accelerator().get_op_builder("CPUAdamBuilder"), CUDAOpBuilder)  # in older versions
    missing = {
        "a C++ compiler": shutil.which(get_cxx_compiler()) is None,
        "ninja": not is_ninja_available(),
        "the CUDA toolkit (nvcc, or CUDA_HOME)": device == "cuda" and of_cuda and CUDA_HOME is None,
    }
    for name, absent in missing.items():
        if absent:
            raise SettingsError(
                f"offload {settings.offload} needs {name}, with which DeepSpeed compiles its CPU optimizer on first "
                "use; install it, or use --offload none"
            )


def prepare_cpu() -> None:
    """Let DeepSpeed run on the CPU over gloo; call before the process group exists.

    transformers asks for no backend when it starts DeepSpeed, and without one accelerate takes every process for the
    only one. And DeepSpeed would compile an all-reduce that only its inference uses.
    """
    from accelerate import PartialState
    from deepspeed import ops
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        raise SettingsError("DeepSpeed was started for a GPU on a machine without one; set DS_ACCELERATOR=cpu")
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo", timeout=LONGEST_WAIT)
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]


def gradient_scale(settings: FinetuneSettings, processes: int) -> int:
    """What a process multiplies its share of the loss by, so that DeepSpeed or DDP leaves the gradient of the sum.

    Gradients of all processes are added and divided by the number of replicas, where shards of one sequence count as
    one replica. DeepSpeed's ZeRO 3 alone divides by the number of processes (its reduce-scatter knows nothing of
    shards). AdamW hides such a factor; clipping does not.
    """
    return processes if settings.zero == 3 else processes // settings.sp
