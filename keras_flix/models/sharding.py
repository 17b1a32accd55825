"""`add_adapter_rules`: shards adapter weights as their kernels are sharded."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_flix.layers.checks import layer_equation
from keras_flix.layers.einsum_split import KernelSplit, split_equation
from keras_flix.models.adapted.adaptation import is_adapted
from keras_flix.models.targets import linear_layers

Axes = tuple[str | None, ...]
"""Names of mesh axes, one per axis of a variable."""


def add_adapter_rules(
    layout_map: keras.distribution.LayoutMap, model: keras.Model
) -> dict[str, Axes]:
    """Adds rules for the adapter weights to a layout map for `ModelParallel`.

    They follow their kernel: the middle axis of `A`, shape `(values, d_in, rank)`,
    is sharded like the kernel's first contracted axis, and the last axis of `B`,
    shape `(values, rank, d_out)`, like its first output axis. Without a rule, they
    are held whole by every device, which is as exact and takes more memory. A rule
    of your own for a layer's adapter weights, whose names are `flix_{feature}_a` and
    `flix_{feature}_b`, is left alone.

    Call it between building the model and `enable_flix`:

    ```python
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map)
    )
    gemma = keras_hub.models.GemmaCausalLM.from_preset("gemma2_2b_en")
    keras_flix.add_adapter_rules(layout_map, gemma)
    keras_flix.enable_flix(gemma, features)
    ```

    Args:
        layout_map: The map of the `ModelParallel` distribution under which the
            model was built. Changed in place.
        model: A built model that is not adapted yet.

    Returns:
        The added rules: mesh axes by a regex of variable paths.

    Raises:
        ValueError: If the model is adapted already, or if the map shards no
            kernel of it.

    Example:

    >>> mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    >>> layout_map = keras.distribution.LayoutMap(mesh)
    >>> layout_map["hidden.*/kernel"] = (None, "model")
    >>> x = keras.Input((16,))
    >>> model = keras.Model(x, keras.layers.Dense(32, name="hidden_0")(x))
    >>> rules = add_adapter_rules(layout_map, model)
    >>> for pattern, axes in rules.items():
    ...     print(pattern, axes)
    hidden_\\d+/flix_.*_b (None, None, 'model')
    """
    if is_adapted(model):
        raise ValueError(
            "Rules for adapters must be added before there are any, since a "
            "variable takes its layout when it is made. Received: a model that "
            "`enable_flix` has adapted already. Call `add_adapter_rules` first."
        )
    layouts = {x.path: _layouts_of(x, layout_map) for x in linear_layers(model)}
    if not any(any(axes) for by_part in layouts.values() for axes in by_part.values()):
        raise ValueError(
            "`layout_map` must shard some kernel of the model, which the adapters "
            f"then follow. Received: the rules {list(layout_map)}, for a model "
            f"with layers such as {list(layouts)[:3]}. Use the layout map of the "
            "model's own family."
        )
    added = {}
    for part in "ab":
        wanted = {
            path: ()
            # A rule of the caller's own.
            if layout_map[f"{path}/flix_x_{part}"] is not None
            else by_part[part]
            for path, by_part in layouts.items()
        }
        for pattern, axes in _by_pattern(wanted).items():
            added[f"{pattern}/flix_.*_{part}"] = axes
    for pattern, axes in added.items():
        layout_map[pattern] = axes
    return added


def table_layouts(split: KernelSplit, kernel_axes: Axes) -> dict[str, Axes]:
    """How a layer's tables follow the layout of its kernel.

    The flattened axis of a table is cut into equal runs, so it can follow the
    outermost of the kernel's axes it is made of, and only that one.

    Args:
        split: The split of the layer's equation.
        kernel_axes: Mesh axes of the kernel; axes left out at the end are
            not sharded.

    Example:

    >>> split = split_equation("btd,ndh->btnh", input_rank=3)
    >>> table_layouts(split, ("model", "batch", None))
    {'a': (None, 'batch', None), 'b': (None, None, 'model')}
    """
    axes = [
        kernel_axes[axis] if axis < len(kernel_axes) else None
        for axis in split.kernel_axes
    ]
    return {
        "a": (None, axes[0], None),
        "b": (None, None, axes[split.num_contracted]),
    }


def _layouts_of(layer: Any, layout_map: Any) -> dict[str, Axes]:
    """The layouts of a layer's tables; empty ones where they stay whole."""
    kernel = layout_map[f"{layer.path}/kernel"]
    try:
        split = split_equation(*layer_equation(layer))
    except ValueError:  # Such a layer cannot be adapted.
        kernel = None
    if kernel is None:
        return {"a": (), "b": ()}
    layouts = table_layouts(split, kernel.axes)
    return {part: axes if any(axes) else () for part, axes in layouts.items()}


def _by_pattern(layouts: dict[str, Axes]) -> dict[str, Axes]:
    """One pattern for layers whose paths differ in numbers only.

    A rule per layer would be hundreds, and Keras tries all of them on every
    variable.
    """
    groups: dict[str, dict[str, Axes]] = {}
    for path, axes in layouts.items():
        groups.setdefault(re.sub(r"\d+", r"\\d+", re.escape(path)), {})[path] = axes
    patterns: dict[str, Axes] = {}
    for pattern, members in groups.items():
        if len(set(members.values())) == 1:
            patterns[pattern] = next(iter(members.values()))
        else:
            patterns |= {re.escape(path): axes for path, axes in members.items()}
    return {pattern: axes for pattern, axes in patterns.items() if axes}
