"""Reads the stored results of costs; imports neither Keras nor a backend."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.shared.places import RESULTS

BACKENDS = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}
OPTIMIZER_TITLES = {
    "none": "forward and backward alone",
    "sgd": "SGD",
    "lazy_sgd": "`LazySGD`",
    "adam": "Adam",
    "lazy_adam": "`LazyAdam`",
}


def load(pattern: str) -> list[dict[str, Any]]:
    """The results whose file's name, without `.json`, matches a glob pattern."""
    paths = sorted(RESULTS.glob(pattern + ".json"))
    return [{"file": path.name, **json.loads(path.read_text())} for path in paths]


def load_one(name: str) -> dict[str, Any] | None:
    """One result, or `None` where it was not measured."""
    found = load(name)
    return found[0] if found else None


def on_cpu(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of these results that were measured on a CPU."""
    return [r for r in results if not r["environment"].get("accelerator")]


def in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of a sweep, in the order of `OPTIMIZER_TITLES`."""
    by_optimizer = {r["optimizer"]: r for r in results}
    return [by_optimizer[name] for name in OPTIMIZER_TITLES if name in by_optimizer]


def clock(result: dict[str, Any]) -> str:
    """Which clock of a result is shown.

    On a CPU that of the process, as other work may share the core; what computes on
    an accelerator does not show in it.
    """
    return "wall" if result["environment"].get("accelerator") else "cpu"
