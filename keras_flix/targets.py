"""Which layers of a model get adapters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.equations import split_equation
from keras_flix.layers.checks import layer_equation

ATTENTION_PROJECTIONS = re.compile(
    r"(?!feedforward)(.*[/_])?(query|key|value|query_key_value|attention_output"
    r"|output_dense|[qkvo]_(proj|dense_layer)"
    r"|(query|key|value|output)_(dense|projector|proj)"
    r"|self_attention_(query|key|value|output)|receptance)"
)
"""Names that KerasHub's families give to the projections of attention."""

NEVER_BY_DEFAULT = re.compile(r"(.*[/_])?(router|gate|experts?|.*embeddings?|logits)")
"""Routers, expert gates, embeddings and heads: only when named."""

ATTENTION = re.compile(r".*(attention|attn|time_mix|mixer)[^/]*(/.*)?")


def find_targets(
    model: keras.Model, targets: str | Sequence[str] | None
) -> dict[str, keras.layers.Layer]:
    """The layers that `targets` selects.

    Args:
        model: The model.
        targets: See `enable_flix`.

    Returns:
        The layers by path.
    """
    candidates = linear_layers(model)
    if not candidates:
        raise ValueError(
            "The model must hold built EinsumDense or Dense layers. Received: a "
            f"{type(model).__name__} without any. Build the model first, by "
            "calling it on a batch."
        )
    if targets is not None and not isinstance(targets, (str, list, tuple, set)):
        raise ValueError(
            "`targets` must be None, 'all-linear' or a list of layer names or "
            f"regexes. Received: targets={targets!r}. Pass a list."
        )
    if targets is None:
        chosen = [layer for layer in candidates if is_attention_projection(layer)]
        chosen = within_backbone(model, chosen)
        if not chosen:
            raise ValueError(
                "Without `targets`, the model must have attention projections. "
                f"Received: targets=None for a {type(model).__name__} with the "
                f"linear layers {_some_paths(candidates)}. Pass "
                "targets='all-linear' or a list of layer names."
            )
    elif isinstance(targets, str):
        if targets != "all-linear":
            raise ValueError(
                "`targets` must be None, 'all-linear' or a list of layer names "
                f"or regexes. Received: targets={targets!r}. Write "
                f"[{targets!r}] to name one layer."
            )
        chosen = [
            layer
            for layer in within_backbone(model, candidates)
            if not NEVER_BY_DEFAULT.fullmatch(layer.name)
        ]
    else:
        chosen = _named(model, candidates, list(targets))
    by_path: dict[str, keras.layers.Layer] = {}
    for layer in chosen:
        split_equation(*layer_equation(layer))
        if layer.path in by_path:
            raise ValueError(
                "Every target must have a path of its own, by which its adapters "
                f"are saved. Received: two layers at {layer.path!r}. Give them "
                "different names, or leave them out of `targets`."
            )
        by_path[layer.path] = layer
    return by_path


def linear_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All built stock `EinsumDense` and `Dense` layers of a model."""
    stock = (keras.layers.EinsumDense, keras.layers.Dense)
    return [
        layer
        for layer in _compat.flatten_layers(model)
        if type(layer) in stock and layer.built
    ]


def is_attention_projection(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a projection of an attention layer, by its path."""
    if not ATTENTION_PROJECTIONS.fullmatch(layer.name):
        return False
    parent = layer.path.rpartition("/")[0]
    return bool(ATTENTION.fullmatch(parent)) or not parent


def within_backbone(
    model: keras.Model, layers: list[keras.layers.Layer]
) -> list[keras.layers.Layer]:
    """Leaves out what lies beside a task's backbone: its heads."""
    if not isinstance(model, keras_hub.models.Task):
        return layers
    inside = {id(layer) for layer in _compat.flatten_layers(model.backbone)}
    return [layer for layer in layers if id(layer) in inside]


def _named(
    model: keras.Model, candidates: list[keras.layers.Layer], targets: list[Any]
) -> list[keras.layers.Layer]:
    if not targets:
        raise ValueError(
            "`targets` must name at least one layer. Received: targets=[]. Pass "
            "layer names, or None for the attention projections."
        )
    chosen: dict[int, keras.layers.Layer] = {}
    for target in targets:
        pattern = _compiled(target)
        matches = [
            layer
            for layer in candidates
            if layer.name == target or pattern.fullmatch(layer.path)
        ]
        if not matches:
            raise ValueError(_no_match(model, candidates, target, pattern))
        chosen |= {id(layer): layer for layer in matches}
    return list(chosen.values())


def _compiled(target: Any) -> re.Pattern[str]:
    try:
        return re.compile(target)
    except (re.error, TypeError) as error:
        raise ValueError(
            "A target must be a layer name or a regular expression. Received: "
            f"{target!r}, which does not compile ({error}). Correct it, or "
            "escape it with re.escape."
        ) from error


def _no_match(
    model: keras.Model,
    candidates: list[keras.layers.Layer],
    target: str,
    pattern: re.Pattern[str],
) -> str:
    others = [
        layer
        for layer in _compat.flatten_layers(model)
        if layer.name == target or (layer.path and pattern.fullmatch(layer.path))
    ]
    if others:
        return (
            "A target must be a built, stock EinsumDense or Dense layer. Received: "
            f"{target!r}, which matches {others[0].path!r} of type "
            f"{type(others[0]).__name__}. Name the linear layers instead: "
            f"{_some_paths(candidates)}."
        )
    names = sorted({layer.name for layer in candidates})
    paths = [layer.path for layer in candidates]
    known = list(dict.fromkeys([*names, *paths]))
    near = difflib.get_close_matches(target, known, n=3, cutoff=0.3)
    return (
        "A target must match a layer's name, or its whole path as a regex. "
        f"Received: {target!r}, which matches nothing. The nearest are "
        f"{near or names[:3]}; paths look like {_some_paths(candidates)}."
    )


def _some_paths(layers: list[keras.layers.Layer]) -> list[str]:
    return [layer.path for layer in layers[:3]]
