"""`flix_summary`: what was adapted, and how much of it trains."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.displayed import Displayed, Rows, count
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.adapted.frozen_values import frozen_rows
from keras_flix.models.adapted.learning_rates import rates_of
from keras_flix.models.adapted.optimizer_advice import added_values, large_adapters
from keras_flix.models.adapted.trained_base import heads, trained_base
from keras_flix.models.multiplied import expert_kernels

MB = 1e6
BLOCK = re.compile(r"(?:[^/]+/)*?[^/]*\d(?=/)")
"""The start of a layer's path, up to the first folder whose name ends in a number."""


@dataclasses.dataclass(frozen=True, repr=False)
class FlixSummary(Displayed):
    """What `flix_summary` returns.

    Attributes:
        layers: Path of each adapted layer, with its kernel's shape.
        parameters: Number of adapter parameters by feature.
        trainable: Number of trainable parameters, without those of frozen values.
        total: Number of all parameters, the adapters included, as Keras counts
            them: two 4-bit ones are one.
        base_bytes: Memory of the base's weights, which quantization lowers.
        adapter_bytes: Memory of the adapters.
        trained: Paths of the variables that train, or have trained, besides the
            adapters.
    """

    layers: dict[str, tuple[int, ...]]
    parameters: dict[str, int]
    trainable: int
    total: int
    base_bytes: int
    adapter_bytes: int
    trained: list[str] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Trainable parameters over all parameters."""
        return self.trainable / self.total

    def _line(self) -> str:
        return (
            f"FlixSummary({count(len(self.layers), 'layer')}, {self.trainable:,} of "
            f"{self.total:,} parameters train, {self.share:.2%})"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        layers = [
            [block, path, shape]
            for block, inside in by_block(self.layers).items()
            for path, shape in inside.items()
        ]
        features = [[name, f"{n:,}"] for name, n in self.parameters.items()]
        return [
            ("", [["feature", "parameters"], *features]),
            ("", [["block", "layer", "kernel"], *layers]),
        ]


def flix_summary(
    model: keras.Model, print_fn: Callable[[str], Any] | None = print
) -> FlixSummary:
    """Prints and returns what `enable_flix` adapted.

    Also what trains besides the adapters, a task's head that does not, and
    `set_trainable` and `LazyAdam` where they serve.

    Args:
        model: An adapted model.
        print_fn: Takes the text line by line; `None` prints nothing.

    Returns:
        A `FlixSummary`.
    """
    adaptation = adaptation_of(model)
    parameters = {feature.name: 0 for feature in adaptation.schema}
    for table in adaptation.tables():
        parameters[table.feature] += math.prod(table.variable.shape)
    tables = [table.variable for table in adaptation.tables()]
    adapter_bytes = _compat.memory_of(tables)
    frozen = frozen_rows(adaptation, rates_of(adaptation))
    idle = sum(
        int(frozen[id(v)].sum()) * math.prod(v.shape[1:])
        for v in tables
        if id(v) in frozen
    )
    summary = FlixSummary(
        layers={p: lyr.whole_shape for p, lyr in adaptation.layers.items()},
        parameters=parameters,
        trainable=sum(math.prod(v.shape) for v in model.trainable_variables) - idle,
        total=sum(math.prod(v.shape) for v in model.weights),
        base_bytes=_compat.memory_of(model.weights) - adapter_bytes,
        adapter_bytes=adapter_bytes,
        trained=list(trained_base(model)),
    )
    if print_fn is not None:
        for line in [*_lines(adaptation, summary), *_advice(model, summary)]:
            print_fn(line)
    return summary


def by_block(
    layers: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layers by the numbered block that they are in; equal ones in a row are one.

    >>> by_block({f"block_{i}/query": (8, 4) for i in range(3)} | {"head": (8, 2)})
    {'block_0 to block_2 (3 blocks)': {'query': (8, 4)}, '': {'head': (8, 2)}}
    """
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in layers.items():
        block = BLOCK.match(path)
        name = block.group() if block else ""
        blocks.setdefault(name, {})[path[len(name) :].lstrip("/")] = shape
    # Where they come one after another, or in turn.
    runs: list[tuple[list[str], dict[str, tuple[int, ...]]]] = []
    for name, inside in blocks.items():
        if runs and name and runs[-1][0][-1] and runs[-1][1] == inside:
            runs[-1][0].append(name)
        else:
            runs.append(([name], inside))
    return {
        names[0]
        if len(names) == 1
        else f"{names[0]} to {names[-1]} ({len(names)} blocks)": inside
        for names, inside in runs
    }


def _lines(adaptation: Any, summary: FlixSummary) -> list[str]:
    lines = [f"FLix adapters in {len(summary.layers)} layers:"]
    for block, inside in by_block(summary.layers).items():
        lines += [f"  {block}:"] if block else []
        indent = "    " if block else "  "
        lines += [f"{indent}{path} {shape}" for path, shape in inside.items()]
    for feature in adaptation.schema:
        rank = shown_ranks(
            adaptation.feature_in(path, feature.name)
            for path in adaptation.layers_of(feature.name)
        )
        always = ", always active" if feature.always else ""
        count = summary.parameters[feature.name]
        lines.append(
            f"  {feature.name}: {len(feature.values)} values of rank {rank}{always}, "
            f"dropout {feature.dropout}{_scale(feature)}"
            f"{_places(adaptation, feature.name)}: {count:,} parameters"
        )
    lines.append(
        f"Trainable: {summary.trainable:,} of {summary.total:,} parameters "
        f"({summary.share:.2%})."
    )
    if adaptation.experts:
        count = sum(adaptation.experts.values())
        kernels = len(adaptation.experts)
        lines.append(
            f"Each expert has adapters of its own: {count} in {kernels} kernels."
        )
    for layer in adaptation.token_rows:
        size = sum(math.prod(v.shape) for v in layer.adapter_variables().values())
        lines.append(
            f"Rows of {len(layer.token_ids)} tokens in {layer.path} train whole: "
            f"{size:,} parameters."
        )
    if adaptation.trainable is not None:
        chosen = [f"{name} {list(v)}" for name, v in adaptation.trainable.items()]
        lines.append(f"Only these values train: {', '.join(chosen)}.")
    if adaptation.rates is not None:
        lines.append(f"Learning rates, as factors: {adaptation.rates}.")
    base, adapters = summary.base_bytes / MB, summary.adapter_bytes / MB
    lines.append(
        f"Memory: {base:,.1f} MB of base weights, {adapters:,.1f} MB of adapters."
    )
    return lines


def shown_ranks(features: Iterable[Any]) -> str:
    """The ranks of a feature's values, over those that it has in its layers.

    >>> task = Feature("task", ["qa", "parse"], rank={"qa": 2, "*": 4})
    >>> shown_ranks([task, task.with_rank(8)])
    '2 to 8'
    """
    ranks = sorted({rank for feature in features for rank in feature.ranks})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _scale(feature: Any) -> str:
    return "" if feature.alpha is None else f", scale {feature.scaling}"


def _places(adaptation: Any, feature: str) -> str:
    own, total = len(adaptation.layers_of(feature)), len(adaptation.layers)
    return "" if own == total else f", in {own} of {total} layers"


def _advice(model: Any, summary: FlixSummary) -> list[str]:
    lines = []
    if summary.trained:
        some = ", ".join(summary.trained[:4]) + ", ..." * (len(summary.trained) > 4)
        lines.append(f"Besides the adapters, these train or have trained: {some}.")
    frozen = [layer.name for layer in heads(model) if not layer.trainable_variables]
    if frozen:
        lines.append(
            f"The task's head is frozen: {', '.join(frozen)}. To let it train, "
            f"`model.get_layer({frozen[0]!r}).trainable = True`, then compile."
        )
    adaptation = model._adaptation
    experts = dict(expert_kernels(_compat.layers_with_parents(model)))
    if experts and not experts.keys() & adaptation.layers.keys():
        lines.append(
            'The experts are left as they are: `enable_flix(..., experts="shared")` '
            "adapts them, too."
        )
    if adaptation.trainable is None:
        lines += [
            f"Added later: {feature.name} {added}. `set_trainable` trains them alone; "
            "with `LazyAdam`, values that do not occur stay as they are."
            for feature, added in added_values(adaptation)
        ]
    return [*lines, *filter(None, [large_adapters(model)])]
