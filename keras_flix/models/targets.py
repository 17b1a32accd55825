"""Which layers of a model get adapters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix._utils.near_names import hint, the_nearest
from keras_flix.layers.checks import layer_equation
from keras_flix.layers.einsum_split import split_equation
from keras_flix.layers.token_rows import EMBEDDINGS
from keras_flix.models.family_names import (
    ATTENTION,
    ATTENTION_PROJECTIONS,
    EXPERTS,
    HEADS,
    NEVER_BY_DEFAULT,
    OTHER_MEDIA,
    SCALED_EMBEDDINGS,
    UNTRAINED,
)

Placed = tuple[Any, tuple[Any, ...]]
"""A layer with those that hold it, the model first."""


def find_targets(
    model: keras.Model,
    targets: str | Sequence[str] | None,
    walk: Sequence[Placed] | None = None,
) -> dict[str, keras.layers.Layer]:
    """The layers that `targets` selects.

    Args:
        model: The model.
        targets: See `enable_flix`.
        walk: All layers of the model, if they are at hand.

    Returns:
        The layers by path (see `keyed_layers`).
    """
    walk = _compat.layers_with_parents(model) if walk is None else walk
    linear = _linear(walk)
    candidates, embeddings = _keyed(linear), _keyed(_embeddings(walk))
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
        chosen = _attention_projections(model, linear)
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
                f"or regexes. Received: targets={targets!r}."
                f"{hint(targets, ['all-linear'])} Write [{targets!r}] to name one "
                "layer."
            )
        chosen = _all_linear(model, linear)
    else:
        chosen = _named(walk, candidates, embeddings, list(targets))
    keys = {id(layer): key for key, layer in [*candidates, *embeddings]}
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
    return [layer for layer, _ in _linear(_compat.layers_with_parents(model))]


def keyed_layers(model: keras.Model) -> list[tuple[str, keras.layers.Layer]]:
    """All built stock linear layers and embeddings, each with its name in files.

    That is a layer's path, where no other layer has the same. Otherwise it is
    its place: SmolLM3 builds all its `o_proj` outside of their blocks, and the
    two towers of CLIP have the same paths inside.
    """
    walk = _compat.layers_with_parents(model)
    return [*_keyed(_linear(walk)), *_keyed(_embeddings(walk))]


def _embeddings(walk: Sequence[Placed]) -> list[Placed]:
    return [
        (layer, parents)
        for layer, parents in walk
        if type(layer) in EMBEDDINGS
        and layer.built
        and type(parents[-1]).__name__ != SCALED_EMBEDDINGS
    ]


def _linear(walk: Sequence[Placed]) -> list[Placed]:
    stock = (keras.layers.EinsumDense, keras.layers.Dense)
    return [pair for pair in walk if type(pair[0]) in stock and pair[0].built]


def _keyed(linear: Sequence[Placed]) -> list[tuple[str, keras.layers.Layer]]:
    keys = [layer.path or below_parent(layer, parents) for layer, parents in linear]
    for place in (below_parent, _below_tower):
        shared = {key for key, count in Counter(keys).items() if count > 1}
        keys = [
            place(layer, parents) if key in shared else key
            for key, (layer, parents) in zip(keys, linear)
        ]
    return [(key, layer) for key, (layer, _) in zip(keys, linear)]


def below_parent(layer: Any, parents: tuple[Any, ...]) -> str:
    """A layer's place by the layer right around it, in which paths may be short."""
    parent = parents[-1]
    inside = not isinstance(parent, keras.Model) and parent.path
    # Keras gives no path to a layer whose weights were put in instead of built.
    return f"{parent.path}/{layer.name}" if inside else layer.path or layer.name


def _below_tower(layer: Any, parents: tuple[Any, ...]) -> str:
    """The place inside of the innermost model that is part of another model."""
    path = below_parent(layer, parents)
    for holder, tower in zip(parents[-2::-1], parents[:0:-1]):
        is_task = isinstance(holder, keras_hub.models.Task)
        if isinstance(tower, keras.Model) and not is_task:
            # Not by its name, which Keras counts up.
            name = _compat.attribute_of(holder, tower) or tower.name
            return f"{name}/{path}"
    return path


def _attention_projections(
    model: keras.Model, linear: Sequence[Placed]
) -> list[keras.layers.Layer]:
    """The projections of the attention layers of a model.

    Of a language model that also reads images or sound, those of its text
    decoder; of a task, those of its backbone.
    """
    chosen: list[Placed] = []
    for layer, parents in linear:
        parent = parents[-1]
        around = f"{parent.name} {type(parent).__name__}"
        inside = isinstance(parent, keras.Model) or ATTENTION.fullmatch(around)
        if inside and ATTENTION_PROJECTIONS.fullmatch(layer.name):
            if not _borrows(layer, parent):
                chosen.append((layer, parents))
    return _of_language_model(model, chosen)


def _all_linear(
    model: keras.Model, linear: Sequence[Placed]
) -> list[keras.layers.Layer]:
    """What `targets="all-linear"` selects."""
    is_hub = isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone))
    chosen: list[Placed] = []
    for layer, parents in linear:
        # Its layers are called as the model's own, so by their paths.
        untrained = UNTRAINED in layer.path.split("/")
        routes = any("router" in parent.name for parent in parents[1:])
        is_head = is_hub and HEADS.fullmatch(layer.name)
        never = untrained or routes or is_head or NEVER_BY_DEFAULT.fullmatch(layer.name)
        if not never and not _borrows(layer, parents[-1]):
            chosen.append((layer, parents))
    return _of_language_model(model, chosen)


def _borrows(layer: Any, attention: Any) -> bool:
    """Whether it is a projection that Gemma3n has but never uses.

    Its last attention layers take the keys and values of an earlier one.
    """
    borrows = getattr(attention, "is_kv_shared_layer", False)
    return bool(borrows) and layer.name in ("k_proj", "v_proj")


def _of_language_model(
    model: keras.Model, chosen: Sequence[Placed]
) -> list[keras.layers.Layer]:
    """Leaves out heads of a task, and what reads images and sound beside text."""
    backbone = model
    if isinstance(model, keras_hub.models.Task):
        backbone = model.backbone
        inside = {id(layer) for layer in _compat.flatten_layers(backbone)}
        chosen = [pair for pair in chosen if id(pair[0]) in inside]
    reading: set[int] = set()
    if not hasattr(backbone, "text_encoder"):
        # Otherwise as in CLIP, where both towers are the model.
        others = [getattr(backbone, name, None) for name in OTHER_MEDIA]
        reading = {id(x) for x in others if isinstance(x, keras.layers.Layer)}
    return [
        layer
        for layer, parents in chosen
        if not reading.intersection(map(id, (*parents, layer)))
    ]


def _named(
    walk: Sequence[Placed],
    candidates: list[tuple[str, keras.layers.Layer]],
    embeddings: list[tuple[str, keras.layers.Layer]],
    targets: list[Any],
) -> list[keras.layers.Layer]:
    if not targets:
        raise ValueError(
            "`targets` must name at least one layer. Received: targets=[]. Pass "
            "layer names, or None for the attention projections."
        )
    chosen: dict[int, keras.layers.Layer] = {}
    for target in targets:
        found = [layer for key, layer in candidates if matches(target, key, layer)]
        found += [
            layer
            for key, layer in embeddings
            if matches(target, key, layer)
            and (not found or not _matches_any(target, key, layer))
        ]
        if not found:
            raise ValueError(_no_match(walk, candidates, target, compiled(target)))
        chosen |= {id(layer): layer for layer in found}
    return list(chosen.values())


def paths_matching(target: Any, layers: Mapping[str, Any], error: str) -> list[str]:
    """The paths of the layers that a target matches; raises `error` if there are none.

    Args:
        target: A layer's name, or a regex of its whole path.
        layers: Those that it may match, by path.
        error: To which the nearest names are added.
    """
    found = [path for path, layer in layers.items() if matches(target, path, layer)]
    if not found:
        names = sorted({layer.name for layer in layers.values()})
        raise ValueError(f"{error}{the_nearest(target, names)}.")
    return found


def matches(target: Any, key: str, layer: keras.layers.Layer) -> bool:
    """Whether a target is a layer's name, or a regex of its whole path or key."""
    pattern = compiled(target)
    return layer.name == target or any(
        pattern.fullmatch(path) for path in (key, layer.path or key)
    )


def _matches_any(target: Any, key: str, layer: keras.layers.Layer) -> bool:
    """Whether a target would match a layer of any name in that place, as `".*"` does.

    Such a one names linear layers, not the embeddings among them.
    """
    places = {path.rpartition(layer.name)[0] for path in (key, layer.path or key)}
    return any(compiled(target).fullmatch(f"{place}\0") for place in places)


def compiled(target: Any) -> re.Pattern[str]:
    """A target as a regex that its whole path is to match."""
    try:
        return re.compile(target)
    except (re.error, TypeError) as error:
        raise ValueError(
            "A target must be a layer name or a regular expression. Received: "
            f"{target!r}, which does not compile ({error}). Correct it, or "
            "escape it with re.escape."
        ) from error


def _no_match(
    walk: Sequence[Placed],
    candidates: list[tuple[str, keras.layers.Layer]],
    target: str,
    pattern: re.Pattern[str],
) -> str:
    others = [
        layer
        for layer, _ in walk
        if layer.name == target or (layer.path and pattern.fullmatch(layer.path))
    ]
    if others:
        kind = type(others[0]).__name__
        remedy = f"Name the linear layers instead: {_some_paths(candidates)}."
        if EXPERTS.fullmatch(kind):
            remedy = 'Pass `experts="shared"` to adapt experts.'
        if type(others[0]) in EMBEDDINGS:
            remedy = (
                "KerasHub's Gemma3n reads its rows without a call, so that they "
                "cannot differ by example."
            )
        return (
            "A target must be a built, stock EinsumDense or Dense layer, or an "
            f"Embedding or ReversibleEmbedding. Received: {target!r}, which matches "
            f"{others[0].path!r} of type {kind}. {remedy}"
        )
    names = sorted({layer.name for _, layer in candidates})
    paths = [key for key, _ in candidates]
    known = dict.fromkeys([*names, *paths])
    return (
        "A target must match a layer's name, or its whole path as a regex. "
        f"Received: {target!r}, which matches nothing.{the_nearest(target, known)}; "
        f"paths look like {_some_paths(candidates)}."
    )


def _some_paths(candidates: list[tuple[str, keras.layers.Layer]]) -> list[str]:
    return [key for key, _ in candidates[:3]]
