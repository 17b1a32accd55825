"""Where the time of a training step goes, by the framework's own profiler."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from benchmarks.cost.arm import Arm

STEPS = 3
TOP = 12


def profile(arms: Mapping[str, Arm], folder: pathlib.Path) -> dict[str, Any]:
    """Writes a trace of a few steps of each arm.

    Returns:
        By arm, where its trace is, and on PyTorch the operations that take longest,
        in milliseconds per step.
    """
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        arm.step()
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        with tracing(path) as operations:
            for _ in range(STEPS):
                arm.step()
        found[name] = {"trace": str(path), **operations}
    return found


@contextlib.contextmanager
def tracing(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Traces the block; what can be told without a viewer goes to the dict."""
    operations: dict[str, Any] = {}
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        with jax.profiler.trace(str(path)):
            yield operations
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.profiler.experimental.Profile(str(path)):
            yield operations
    else:
        import torch

        activities = torch.profiler.supported_activities()
        with torch.profiler.profile(activities=activities) as profiler:
            yield operations
        profiler.export_chrome_trace(str(path / "trace.json"))
        device = torch.cuda.is_available()
        field = "self_device_time_total" if device else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, field))
        operations["launches"] = launches(profiler.events())
        operations["milliseconds"] = {
            event.key: round(getattr(event, field) / 1e3 / STEPS, 3)
            for event in events[:TOP]
        }


def launches(events: Iterable[Any]) -> dict[str, float]:
    """Per step: kernels started, and milliseconds that the device was at work."""
    started = sum("LaunchKernel" in event.name for event in events)
    busy = sum(getattr(event, "self_device_time_total", 0.0) for event in events)
    return {
        "kernels": round(started / STEPS, 1),
        "device_milliseconds": round(busy / 1e3 / STEPS, 3),
    }
