"""Models: their layers, inputs, copies."""

from __future__ import annotations

import itertools
import operator
import re
import zipfile
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import keras
from keras import tree
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.saving import object_registration
from keras.src.utils import io_utils
from keras.src.utils.naming import to_snake_case


def flatten_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers below a model, each once, itself excluded, in their order.

    `Layer._flatten_layers` gives the same ones, the inner ones backwards.
    """
    return list(map(operator.itemgetter(0), layers_with_parents(model)))


def variables_of(
    layers: Iterable[keras.layers.Layer],
) -> list[tuple[keras.layers.Layer, keras.Variable]]:
    """The variables of layers without those of their sublayers, each with its layer."""
    found: list[tuple[keras.layers.Layer, keras.Variable]] = []
    for layer in layers:
        own = layer._trainable_variables + layer._non_trainable_variables
        found.extend(zip(itertools.repeat(layer), own))
    return found


def layers_with_parents(
    model: keras.layers.Layer,
) -> list[tuple[keras.layers.Layer, tuple[keras.layers.Layer, ...]]]:
    """`flatten_layers`, each with the layers that hold it, the model first."""
    found: dict[int, tuple[keras.layers.Layer, tuple[keras.layers.Layer, ...]]] = {}
    # Those that are still to be looked at, the next one last.
    around: tuple[keras.layers.Layer, ...] = (model,)
    waiting = list(zip(reversed(model._layers), itertools.repeat(around)))
    while waiting:
        layer, parents = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = layer, parents
            around = (*parents, layer)
            waiting.extend(zip(reversed(layer._layers), itertools.repeat(around)))
    return list(found.values())


def attribute_of(holder: keras.layers.Layer, part: keras.layers.Layer) -> str | None:
    """The attribute that holds a part of a layer, if any does.

    On torch, layers are modules, which keep others apart from their attributes.
    """
    attributes = vars(holder) | vars(holder).get("_modules", {})
    return next((name for name, value in attributes.items() if value is part), None)


def name_without_count(layer: keras.layers.Layer) -> str:
    """The name of a layer; of one that was given none, without Keras' count."""
    stem = to_snake_case(type(layer).__name__)
    return stem if re.fullmatch(rf"{stem}_\d+", layer.name) else layer.name


def stems_of_counts(model: keras.Model) -> set[str]:
    """What the names begin with that Keras may have counted up in a model."""
    # That of variables without a name.
    found = {"variable"}
    for layer in flatten_layers(model):
        # Adapted ones had another class when they were named.
        for cls in type(layer).__mro__:
            stem = to_snake_case(cls.__name__)
            if re.fullmatch(rf"{stem}(_\d+)?", layer.name):
                found.add(stem)
    return found


def without_count(name: str, stems: Container[str]) -> tuple[str, int]:
    """A name of one of these stems as that and its count; any other as it is, and 0."""
    stem, _, count = name.rpartition("_")
    return (stem, int(count)) if count.isdecimal() and stem in stems else (name, 0)


def heeds_training(model: keras.Model) -> bool:
    """Whether a layer may do with the rows of a batch in training what it does not do
    elsewhere. Keras' own do not, but those that change images.

    `False`, too, where modules of PyTorch would change state that Keras does not know.
    """
    found = False
    for layer in [model, *flatten_layers(model)]:
        room = type(layer).__module__
        if room.startswith("keras.src.utils.torch_utils"):
            return False
        own = ("keras.src.layers.", "keras.src.models.", "keras_hub.", "keras_flix.")
        is_own = room.startswith(own) and ".preprocessing." not in room
        is_own = is_own and not isinstance(layer, keras.layers.Lambda)
        found = found or (not is_own and layer._call_has_training_arg)
    return found


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of all seed generators of a model, which Keras' files leave out."""
    generators = {
        id(generator): generator
        for layer in [model, *flatten_layers(model)]
        for generator in layer._seed_generators
    }
    return [generator.state for generator in generators.values()]


def clone(model: keras.Model) -> keras.Model:
    """A copy of a plain functional or Sequential model, with fresh weights."""
    if not is_functional(model) and not isinstance(model, keras.Sequential):
        raise ValueError(
            "Only KerasHub models, functional and Sequential ones can be copied. "
            f"Received: a subclassed {type(model).__name__}. Add "
            "`layer.kernel_delta(...)` to the kernels of a model of your own."
        )
    return keras.models.clone_model(model)


def input_keys(model: keras.Model) -> list[str] | None:
    """The keys of a functional model's input dict; `None` if it takes no dict."""
    struct = getattr(model, "_inputs_struct", None)
    return list(struct) if isinstance(struct, dict) else None


def is_functional(model: keras.Model) -> bool:
    """Whether the model is a graph of layers that tells its inputs."""
    return hasattr(model, "_inputs_struct")


def asks_for_shapes() -> bool:
    """Whether Keras runs a call for the shapes of its outputs alone.

    On torch, its tensors may then be of ones: in half precision, the `meta` device
    cannot run the stock layers.
    """
    return bool(in_symbolic_scope())


def symbolic_inputs(model: keras.Model) -> Any | None:
    """Stand-ins for a model's inputs, or `None` if it does not tell them.

    Axes of unknown length get a small one, since layers such as position
    embeddings compare it with a limit.
    """

    def sized(shape: Any) -> tuple[int, ...]:
        return tuple(8 if size is None else size for size in shape)

    if is_functional(model):
        return tree.map_structure(
            lambda x: keras.KerasTensor(sized(x.shape), dtype=x.dtype),
            model._inputs_struct,
        )
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes or len(shapes) != 1:
        return None
    (shape,) = shapes.values()
    return tree.map_shape_structure(
        lambda s: keras.KerasTensor(sized(s), dtype="float32"), shape
    )


def example_inputs(model: keras.Model, lengths: Sequence[int]) -> Any | None:
    """Stand-ins for a batch of a model's inputs, with leading axes that tell it.

    Args:
        model: A built model.
        lengths: Those to choose the batch's from, if it may have any.

    Returns:
        The inputs, the batch's length, and whether that and the dtypes are known to
        be the model's; `None` where it does not tell which axes are the batch's. An
        input without a batch axis has another length.
    """
    functional = is_functional(model)
    if functional:
        struct = model._inputs_struct
    else:
        shapes = getattr(model, "_build_shapes_dict", None)
        if not shapes or len(shapes) != 1:
            return None
        struct = tree.map_shape_structure(
            lambda s: keras.KerasTensor(s, dtype="float32"), next(iter(shapes.values()))
        )
    leaves = tree.flatten(struct)
    if not all(isinstance(x, keras.KerasTensor) and len(x.shape) for x in leaves):
        return None
    leading = {x.shape[0] for x in leaves}
    if None not in leading and len(leading) > 1:
        return None
    fixed = functional and None not in leading
    length = next(n for n in lengths if n not in leading)
    # What is built on data has the length of that data, and takes any other.
    of_batch = (leading - {None}) if len(leading) == 1 else set()
    if fixed:
        (length,) = leading

    def sized(x: keras.KerasTensor) -> keras.KerasTensor:
        first, *rest = x.shape
        first = length if first is None or first in of_batch else first
        shape = (first, *(8 if size is None else size for size in rest))
        return keras.KerasTensor(shape, dtype=x.dtype)

    return tree.map_structure(sized, struct), length, functional


def takes_dict(model: keras.Model) -> bool:
    """Whether the model's own input is a dict."""
    if is_functional(model):
        return isinstance(model._inputs_struct, dict)
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    return len(shapes) != 1 or isinstance(next(iter(shapes.values())), dict)


def input_names(model: keras.Model) -> list[str]:
    """Names of a functional model's inputs; empty for others."""
    names = list(getattr(model, "input_names", None) or [])
    struct = getattr(model, "_inputs_struct", None)
    return [*names, *struct] if isinstance(struct, dict) else names


def may_overwrite(path: str) -> bool:
    """Asks the user whether a file may be replaced, as Keras' own savers do."""
    return bool(io_utils.ask_to_proceed_with_overwrite(path))


def archive_read_without_checksums(store: Any) -> zipfile.ZipFile | None:
    """The `.keras` file that a store of weights reads in, place by place.

    Keras reads the weights in such a file as a whole, with their checksum, and goes
    on in this way if that fails for any reason. Newer Pythons compare no checksum
    then.
    """
    archive = getattr(store, "archive", None)
    return archive if isinstance(archive, zipfile.ZipFile) else None


def register_class_name(cls: type, name: str) -> None:
    """Makes Keras' files name a class that has no place of its own to import.

    `register_keras_serializable` would also prefix the class' own name.
    """
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = name


def unpickle_function() -> Callable[..., keras.Model]:
    """What Keras' pickles call. It is found by name, so not on a made class."""
    return keras.Model._unpickle_model
