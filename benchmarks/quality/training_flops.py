"""FLOPs of training, counted from the shapes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality import cldr_mix, plan
from benchmarks.quality.evidence_arms import Arm

Kernels = dict[str, tuple[int, int]]


def kernels_of(config: Mapping[str, Any]) -> Kernels:
    """`(d_in, d_out)` of the linear layers of a Gemma, one of each kind.

    Args:
        config: As of a `GemmaBackbone`.
    """
    width, head = config["hidden_dim"], config["head_dim"]
    queries = config["num_query_heads"] * head
    keys = config["num_key_value_heads"] * head
    inner = config["intermediate_dim"] // 2
    return {
        "query": (width, queries),
        "key": (width, keys),
        "value": (width, keys),
        "output": (queries, width),
        "gate": (width, inner),
        "up": (width, inner),
        "down": (inner, width),
        "layers": (config["num_layers"], 0),
        "logits": (width, config["vocabulary_size"]),
    }


@functools.cache
def kernels(base: str) -> Kernels:
    """`kernels_of` a base."""
    file = Path(cldr_mix.base_folder(base), "config.json")
    return kernels_of(json.loads(file.read_text())["config"])


def of_training(size: plan.Size, arm: Arm, steps: int | None = None, **_: Any) -> float:
    """FLOPs of training an arm."""
    return count(kernels(size.base), size, arm, steps)


def count(
    kernels: Kernels, size: plan.Size, arm: Arm, steps: int | None = None
) -> float:
    """FLOPs of training an arm, without attention scores, norms and Adam.

    A product of an activation with a kernel counts 2 FLOPs per parameter and token.
    A frozen kernel takes part forwards and in the gradient of its input (x 2), a
    table also in the gradient of itself (x 3).
    """
    shapes = dict(kernels)
    (layers, _), logits = shapes.pop("layers"), shapes.pop("logits")
    adapted = ("query", "key", "value", "output") if arm.targets is None else shapes
    frozen = layers * sum(map(math.prod, shapes.values())) + math.prod(logits)
    tables = layers * sum(sum(shapes[name]) * arm.active_rank for name in adapted)
    tokens = (steps or size.steps) * size.batch_size * cldr_mix.LENGTH
    # Trained apart, every feature has a model of its own.
    models = len(arm.ranks) if arm.apart else 1
    return 2.0 * tokens * (2 * frozen * models + 3 * tables)
