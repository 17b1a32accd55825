"""The header of every result file: where and with what it was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

import keras

from benchmarks.shared.places import REPOSITORY, RESULTS

PACKAGES = ["keras", "keras-hub", "keras-flix", "numpy"]
BACKEND_PACKAGES = {
    "jax": ["jax", "jaxlib"],
    "tensorflow": ["tensorflow"],
    "torch": ["torch"],
}
PEERS = ["transformers", "peft", "adapters"]
THREAD_VARIABLES = ["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "XLA_FLAGS"]


def environment() -> dict[str, Any]:
    """The environment of the running process."""
    backend = keras.config.backend()
    names = [*PACKAGES, *BACKEND_PACKAGES[backend]]
    names += [name for name in PEERS if name in sys.modules]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "command": command_line(),
        "commit": git_commit(),
        "python": platform.python_version(),
        "backend": backend,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "accelerator": accelerator(),
        "cores": os.cpu_count(),
        "cores_used": sorted(os.sched_getaffinity(0)),
        "threads": {
            name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ
        },
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def command_line() -> str:
    """The command, with `-m` where the script was run as a module.

    Without where the result goes: that is no part of how it was measured.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    script = f"-m {module.name}" if module is not None else sys.argv[0]
    backend = keras.config.backend()
    options = " ".join(sys.argv[1:])
    options = re.sub(r"--output[ =]\S+", "", options).strip()
    return " ".join([f"KERAS_BACKEND={backend}", "python", script, options]).strip()


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def accelerator() -> str | None:
    """The name of the device that the backend computes on, `None` for a CPU."""
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


def git_commit() -> str | None:
    """The commit, marked `+changes` where the library's files differ from it."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = _output([*git, "rev-parse", "--short=12", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--", "keras_flix"])
    except (OSError, subprocess.CalledProcessError):
        # A copy of the files alone, as on another machine, may be told.
        return os.environ.get("GIT_COMMIT")
    return f"{commit}+changes" if changes else commit


def _output(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()


def result_path(name: str, *labels: Any) -> pathlib.Path:
    """`results/<name>_<backend>_<labels>.json`, without labels that are `None`."""
    parts = [name, keras.config.backend(), *labels]
    return RESULTS / ("_".join(str(p) for p in parts if p is not None) + ".json")


def write_result(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes a result file, environment first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), **result}, indent=2)
    # Whole or not at all: an interrupted run leaves no half of a result.
    temporary = path.with_suffix(".partial")
    temporary.write_text(text + "\n")
    temporary.replace(path)
