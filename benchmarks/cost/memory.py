"""Peak memory of one training step, in a process of its own per arm."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pathlib
import statistics
import subprocess
from typing import Any

import keras

from benchmarks.shared.environment import accelerator

MIB = 1024**2
ALLOCATOR = {
    # glibc: freed memory leaves the process, so resident memory is memory in use.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    # TensorFlow: the allocator that keeps statistics.
    "TF_CPU_ALLOCATOR_USE_BFC": "true",
    "TF_CPU_BFC_MEM_LIMIT_IN_MB": "12000",
}
RESIDENT = (
    "Each arm in a process of its own; MiB. `step`: highest resident memory during "
    "a warm step (VmHWM, reset through /proc/self/clear_refs) minus the resident "
    "memory just before it; glibc gives freed blocks of 64 KiB and more back at "
    "once. `over_first`: the same minus the resident memory before the first step, "
    "so compiled code and the optimizer's state count too."
)
METHODS = {
    "torch": RESIDENT,
    "jax": RESIDENT,
    "tensorflow": "Each arm in a process of its own; MiB. `step`: peak of "
    "TensorFlow's CPU allocator (BFC) during a warm step minus what was allocated "
    "just before it. `over_first`: the same minus what was allocated before the "
    "first step, so the optimizer's state counts too. Resident memory tells "
    "nothing here: the allocator keeps what it has.",
}
GPU = (
    "Each arm in a process of its own; MiB of the device's memory, by the framework's "
    "own statistics, `step` and `over_first` as on a CPU."
)


class ResidentMeter:
    """Resident memory of this process."""

    def current(self) -> float:
        """MiB in use, after everything that can be freed is freed."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return status("VmRSS")

    def reset(self) -> None:
        """Makes the peak start again from the present."""
        pathlib.Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """Highest MiB since `reset`."""
        return status("VmHWM")


class TensorFlowMeter:
    """What TensorFlow's allocator has handed out."""

    def __init__(self, device: str = "CPU:0") -> None:
        import tensorflow as tf

        self.stats, self.device = tf.config.experimental, device

    def current(self) -> float:
        gc.collect()
        return self.stats.get_memory_info(self.device)["current"] / MIB

    def reset(self) -> None:
        self.stats.reset_memory_stats(self.device)

    def peak(self) -> float:
        return self.stats.get_memory_info(self.device)["peak"] / MIB


class TorchDeviceMeter:
    """What PyTorch has taken of a GPU."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda

    def current(self) -> float:
        gc.collect()
        return self.cuda.memory_allocated() / MIB

    def reset(self) -> None:
        self.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        return self.cuda.max_memory_allocated() / MIB


class JaxDeviceMeter:
    """What JAX has taken of a GPU; its peak is that of the whole process."""

    def __init__(self) -> None:
        import jax

        self.device = jax.devices()[0]

    def current(self) -> float:
        gc.collect()
        return self.device.memory_stats()["bytes_in_use"] / MIB

    def reset(self) -> None:
        """JAX has no way to."""

    def peak(self) -> float:
        return self.device.memory_stats()["peak_bytes_in_use"] / MIB


def meter() -> Any:
    """The meter of this process' backend and device, and what it measures."""
    backend = keras.config.backend()
    if accelerator() is None:
        on_cpu = TensorFlowMeter if backend == "tensorflow" else ResidentMeter
        return on_cpu()
    if backend == "tensorflow":
        return TensorFlowMeter("GPU:0")
    return TorchDeviceMeter() if backend == "torch" else JaxDeviceMeter()


def method() -> str:
    """How memory is measured here."""
    return METHODS[keras.config.backend()] if accelerator() is None else GPU


def measure_memory(arm: Any, warm_up: int) -> dict[str, float]:
    """Peak memory of a step of `arm`, in this process."""
    memory = meter()
    first = memory.current()
    for _ in range(warm_up):
        arm.step()
    peaks = []
    for _ in range(3):
        before = memory.current()
        memory.reset()
        arm.step()
        peak = memory.peak()
        peaks.append((peak - before, peak - first))
    step, over_first = (statistics.median(column) for column in zip(*peaks))
    return {"step": round(step, 1), "over_first": round(over_first, 1)}


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise LookupError(field)


def last_line_of(command: list[str]) -> dict[str, Any]:
    """What a command prints last, as JSON, with an allocator that gives back."""
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ALLOCATOR},
    )
    return json.loads(done.stdout.splitlines()[-1])
