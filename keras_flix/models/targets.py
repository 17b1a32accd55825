"""Which layers of a model get adapters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix._utils.near_names import most_alike
from keras_flix.layers.checks import layer_equation
from keras_flix.layers.einsum_split import split_equation

ATTENTION_PROJECTIONS = re.compile(
    r"(query|key|value|output)(_(dense|projector|proj|layer))?|receptance"
    r"|attention_(output|qkv|projection)|query_key_value"
    r"|[qkvo]_(proj|dense_layer)|out_proj|in_proj_(qkv|z)"
)
"""Names that KerasHub's families give to the projections of attention."""

ATTENTION = re.compile(r".*(attention|attn|mha|time_?mix|mixer).*", re.IGNORECASE)
"""Names, or classes, of the layers right around them."""

NEVER_BY_DEFAULT = re.compile(
    r"(?!per_layer_input_gate)(.*[/_])?(logits|gate|experts?|embeddings?)|.*router.*"
    r"|(.*expert|sparse_feedforward)_gate_dense|(prediction|correction)_coefs"
)
"""Routers, expert gates and embeddings, and the coefficients by which Gemma3n
mixes its streams: only when named."""

HEADS = re.compile(r"(.*_)?head")
"""Heads inside of KerasHub's backbones, such as RWKV7's."""

OTHER_MEDIA = (
    "vision_encoder",
    "vit_encoder",
    "audio_encoder",
    "qformer",
    "embed_vision",
    "embed_audio",
)
"""Where backbones of language models keep what reads images and sound."""


def find_targets(
    model: keras.Model, targets: str | Sequence[str] | None
) -> dict[str, keras.layers.Layer]:
    """The layers that `targets` selects.

    Args:
        model: The model.
        targets: See `enable_flix`.

    Returns:
        The layers by path (see `keyed_layers`).
    """
    candidates = keyed_layers(model)
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
        chosen = attention_projections(model)
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
        chosen = all_linear(model)
    else:
        chosen = _named(model, candidates, list(targets))
    keys = {id(layer): key for key, layer in candidates}
    by_key: dict[str, keras.layers.Layer] = {}
    for layer in chosen:
        split_equation(*layer_equation(layer))
        key = keys[id(layer)]
        if key in by_key:
            raise ValueError(
                "Every target must have a path of its own, by which its adapters "
                f"are saved. Received: two layers at {key!r}. Give them "
                "different names, or leave them out of `targets`."
            )
        by_key[key] = layer
    return by_key


def linear_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All built stock `EinsumDense` and `Dense` layers of a model."""
    return [layer for layer, _ in _linear_with_parents(model)]


def keyed_layers(model: keras.Model) -> list[tuple[str, keras.layers.Layer]]:
    """All built stock linear layers, each with what names it in adapter files.

    That is a layer's path, where no other layer has the same. Otherwise it is
    its place: SmolLM3 builds all its `o_proj` outside of their blocks, and the
    two towers of CLIP have the same paths inside.
    """
    pairs = _linear_with_parents(model)
    keys = [layer.path for layer, _ in pairs]
    for place in (_below_parent, _below_tower):
        shared = {key for key, count in Counter(keys).items() if count > 1}
        keys = [
            place(layer, parents) if key in shared else key
            for key, (layer, parents) in zip(keys, pairs)
        ]
    return [(key, layer) for key, (layer, _) in zip(keys, pairs)]


def _linear_with_parents(model: keras.Model) -> list[tuple[Any, tuple[Any, ...]]]:
    stock = (keras.layers.EinsumDense, keras.layers.Dense)
    return [
        (layer, parents)
        for layer, parents in _compat.layers_with_parents(model)
        if type(layer) in stock and layer.built
    ]


def _below_parent(layer: Any, parents: tuple[Any, ...]) -> str:
    parent = parents[-1]
    inside = not isinstance(parent, keras.Model) and parent.path
    return f"{parent.path}/{layer.name}" if inside else layer.path


def _below_tower(layer: Any, parents: tuple[Any, ...]) -> str:
    """The place inside of the innermost model that is part of another model."""
    path = _below_parent(layer, parents)
    for holder, tower in zip(parents[-2::-1], parents[:0:-1]):
        is_task = isinstance(holder, keras_hub.models.Task)
        if isinstance(tower, keras.Model) and not is_task:
            # Not by its name, which Keras counts up.
            names = [name for name, value in vars(holder).items() if value is tower]
            return f"{names[0] if names else tower.name}/{path}"
    return path


def attention_projections(model: keras.Model) -> list[keras.layers.Layer]:
    """The projections of the attention layers of a model.

    Of a language model that also reads images or sound, those of its text
    decoder; of a task, those of its backbone.
    """
    chosen = []
    for layer, parents in _linear_with_parents(model):
        parent = parents[-1]
        around = f"{parent.name} {type(parent).__name__}"
        inside = isinstance(parent, keras.Model) or ATTENTION.fullmatch(around)
        if inside and ATTENTION_PROJECTIONS.fullmatch(layer.name):
            if not _borrows(layer, parent):
                chosen.append(layer)
    return _of_language_model(model, chosen)


def all_linear(model: keras.Model) -> list[keras.layers.Layer]:
    """What `targets="all-linear"` selects."""
    is_hub = isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone))
    chosen = []
    for layer, parents in _linear_with_parents(model):
        routes = any("router" in parent.name for parent in parents[1:])
        is_head = is_hub and HEADS.fullmatch(layer.name)
        never = routes or is_head or NEVER_BY_DEFAULT.fullmatch(layer.name)
        if not never and not _borrows(layer, parents[-1]):
            chosen.append(layer)
    return _of_language_model(model, chosen)


def _borrows(layer: Any, attention: Any) -> bool:
    """Whether it is a projection that Gemma3n has but never uses.

    Its last attention layers take the keys and values of an earlier one.
    """
    borrows = getattr(attention, "is_kv_shared_layer", False)
    return bool(borrows) and layer.name in ("k_proj", "v_proj")


def _of_language_model(
    model: keras.Model, layers: list[keras.layers.Layer]
) -> list[keras.layers.Layer]:
    """Leaves out heads of a task, and what reads images and sound beside text."""
    backbone = model
    if isinstance(model, keras_hub.models.Task):
        backbone = model.backbone
        inside = {id(layer) for layer in _compat.flatten_layers(backbone)}
        layers = [layer for layer in layers if id(layer) in inside]
    if hasattr(backbone, "text_encoder"):
        # As in CLIP, where both towers are the model.
        return layers
    others = [getattr(backbone, name, None) for name in OTHER_MEDIA]
    reading = {
        id(layer)
        for other in others
        if isinstance(other, keras.layers.Layer)
        for layer in [other, *_compat.flatten_layers(other)]
    }
    return [layer for layer in layers if id(layer) not in reading]


def _named(
    model: keras.Model,
    candidates: list[tuple[str, keras.layers.Layer]],
    targets: list[Any],
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
            for key, layer in candidates
            if layer.name == target
            or pattern.fullmatch(key)
            or pattern.fullmatch(layer.path)
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
    candidates: list[tuple[str, keras.layers.Layer]],
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
    names = sorted({layer.name for _, layer in candidates})
    paths = [key for key, _ in candidates]
    known = list(dict.fromkeys([*names, *paths]))
    near = most_alike(target, known, 3, cutoff=0.3)
    return (
        "A target must match a layer's name, or its whole path as a regex. "
        f"Received: {target!r}, which matches nothing. The nearest are "
        f"{near or names[:3]}; paths look like {_some_paths(candidates)}."
    )


def _some_paths(candidates: list[tuple[str, keras.layers.Layer]]) -> list[str]:
    return [key for key, _ in candidates[:3]]
