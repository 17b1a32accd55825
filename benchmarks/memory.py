"""Peak memory of one training step, in a process of its own per arm."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import keras

from benchmarks.workload import Arm, Workload

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
    "jax": f"{RESIDENT} `xla_temporary`: the temporaries that XLA plans for the "
    "compiled step (`memory_analysis()`).",
    "tensorflow": "Each arm in a process of its own; MiB. `step`: peak of "
    "TensorFlow's CPU allocator (BFC) during a warm step minus what was allocated "
    "just before it. `over_first`: the same minus what was allocated before the "
    "first step, so the optimizer's state counts too. Resident memory tells "
    "nothing here: the allocator keeps what it has.",
}


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
    """What TensorFlow's CPU allocator has handed out."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.stats = tf.config.experimental

    def current(self) -> float:
        gc.collect()
        return self.stats.get_memory_info("CPU:0")["current"] / MIB

    def reset(self) -> None:
        self.stats.reset_memory_stats("CPU:0")

    def peak(self) -> float:
        return self.stats.get_memory_info("CPU:0")["peak"] / MIB


def measure_memory(arm: Arm, warm_up: int) -> dict[str, float]:
    """Peak memory of a step of `arm`, in this process."""
    backend = keras.config.backend()
    meter = TensorFlowMeter() if backend == "tensorflow" else ResidentMeter()
    first = meter.current()
    for _ in range(warm_up):
        arm.step()
    peaks = []
    for _ in range(3):
        before = meter.current()
        meter.reset()
        arm.step()
        peak = meter.peak()
        peaks.append((peak - before, peak - first))
    step, over_first = (statistics.median(column) for column in zip(*peaks))
    result = {"step": step, "over_first": over_first}
    if backend == "jax":
        result["xla_temporary"] = xla_temporary(arm)
    return {name: round(value, 1) for name, value in result.items()}


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise LookupError(field)


def xla_temporary(arm: Arm) -> float:
    """Temporary memory of the training step as XLA plans it, in MiB."""
    import jax

    state = arm.model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    step = jax.jit(arm.model.train_step, donate_argnums=0)
    compiled = step.lower(state, (arm.x, arm.y, None)).compile()
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes / MIB


def measure_in_process(name: str, workload: Workload, warm_up: int) -> dict[str, float]:
    """`measure_memory` in a fresh process."""
    command = [
        *(sys.executable, "-m", "benchmarks.train_step"),
        *("--memory-arm", name, "--warm-up", str(warm_up)),
        *workload.as_arguments(),
    ]
    return last_line_of(command)


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


def compare_memory(workload: Workload, warm_up: int) -> dict[str, Any]:
    """Peak memory of both arms, and FLix over LoRA."""
    arms = {
        name: measure_in_process(name, workload, warm_up) for name in ("lora", "flix")
    }
    ratios = {
        name: round(arms["flix"][name] / arms["lora"][name], 4) for name in arms["lora"]
    }
    return {
        "method": METHODS[keras.config.backend()],
        "mib": arms,
        "flix_over_lora": ratios,
    }
