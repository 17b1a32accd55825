"""All access to what Keras and KerasHub do not document, in one place.

Written against Keras 3.15 and KerasHub 0.32. Each function says what it relies
on, so that a new release can be checked function by function.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import tree
from keras.src import backend
from keras.src.random.seed_generator import make_default_seed
from keras.src.saving import object_registration
from keras.src.trainers import data_adapters
from keras.src.utils.summary_utils import weight_memory_size

if TYPE_CHECKING:
    Mixin: Any
else:
    Mixin = object
"""Base of the mixins, whose Keras class comes later in the order of bases."""

DATA_FUNCTIONS = ("train_function", "test_function", "predict_function")


def change_class(instance: Any, cls: type) -> None:
    """Gives a built layer or model another class, keeping the object.

    `Layer.__init__` of the new class never runs, and Keras froze what it knows
    of `call` when the object was made: that is brought up to date here.
    """
    instance.__class__ = cls
    if isinstance(instance, keras.Model):
        # Made with the object, it would hide that of the new class.
        instance.__dict__.pop("quantize", None)
        return
    instance._call_signature = inspect.signature(instance.call)
    instance.call_signature_parameters = list(instance._call_signature.parameters)


def register_class_name(cls: type, name: str) -> None:
    """Makes Keras' files name a class that has no place of its own to import.

    `register_keras_serializable` would also prefix the class' own name.
    """
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = name


def accept_training(model: keras.Model) -> bool:
    """Makes trainers pass `training` to a model whose `call` does not take it.

    Returns:
        Whether the model's own `call` takes it.
    """
    if model._call_has_training_arg:
        return True
    parameters = list(model._call_signature.parameters.values())
    training = inspect.Parameter(
        "training", inspect.Parameter.KEYWORD_ONLY, default=None
    )
    last = parameters[-1] if parameters else None
    at = len(parameters)
    if last is not None and last.kind is inspect.Parameter.VAR_KEYWORD:
        at -= 1
    parameters.insert(at, training)
    model._call_signature = model._call_signature.replace(parameters=parameters)
    model.call_signature_parameters = [p.name for p in parameters]
    model._call_has_training_arg = True
    model._call_has_context_arg["training"] = True
    return False


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Lets a built layer take new variables and attributes within the block."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def add_table(
    layer: keras.layers.Layer,
    name: str,
    shape: tuple[int, ...],
    initializer: Any,
    key: str,
) -> keras.Variable:
    """Adds a float32 variable under the layer's own path, whatever its policy.

    Where other layers have that path too, the variable is at `key` instead:
    `model.parameters()` on torch, for one, is a dict by path.
    """
    table = layer.add_weight(
        name=name, shape=shape, initializer=initializer, dtype="float32"
    )
    if key != layer.path:
        table._path = f"{key}/{name}"
    return table


def kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Logical shape of a kernel; below 8 bits it is stored packed and flat."""
    if layer.quantization_mode in ("int4", "gptq", "awq"):
        if isinstance(layer, keras.layers.Dense):
            return (layer._build_shapes_dict["input_shape"][-1], layer.units)
        return tuple(layer.original_kernel_shape)
    return tuple(layer._kernel.shape)


def quantized_output(
    layer: keras.layers.Layer, plain_class: type, inputs: Any, training: bool | None
) -> Any:
    """What a quantized layer computes before its activation.

    Keras has no such call, so a twin that shares the layer's variables but has
    no activation runs it. Switching the layer's own activation off meanwhile
    would reach other threads.
    """
    twin = object.__new__(plain_class)
    twin.__dict__.update(layer.__dict__)
    twin.__dict__["activation"] = None
    return plain_class.quantized_call(twin, inputs, training=training)


def rounds_logits(layer: keras.layers.Layer) -> bool:
    """Whether a layer projects to logits with inputs rounded to integers."""
    return (
        isinstance(layer, keras.layers.ReversibleEmbedding)
        and layer.quantization_mode is not None
        and getattr(layer, "inputs_quantizer", None) is not None
    )


def memory_of(variables: Sequence[keras.Variable]) -> int:
    """Bytes that variables take, as `Model.summary` counts them."""
    return int(weight_memory_size(variables))


def fresh_seed() -> int:
    """A new seed that follows `keras.utils.set_random_seed`."""
    return int(make_default_seed())


class BaseVariablesCheck(Mixin):
    """Replaces the count of variables that stock layers make when loading.

    Stock layers compare a file with *all* their variables. Adapted layers keep
    their tables apart, so only the others are counted.
    """

    def _check_load_own_variables(self, store: Any) -> None:
        own = self._trainable_variables + self._non_trainable_variables
        tables = {id(v) for v in self._adapter.named_variables.values()}
        expected = sum(id(v) not in tables for v in own)
        if len(store.keys()) != expected:
            raise ValueError(
                f"The weights of layer {self.path!r} must be {expected} base "
                f"variables. Received: {len(store.keys())} variables. Load a "
                "file saved from the same architecture."
            )


def flatten_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers below a model, each once, itself excluded, in their order.

    `Layer._flatten_layers` gives the same ones, the inner ones backwards.
    """
    return [layer for layer, _ in layers_with_parents(model)]


def layers_with_parents(
    model: keras.layers.Layer,
) -> list[tuple[keras.layers.Layer, tuple[keras.layers.Layer, ...]]]:
    """`flatten_layers`, each with the layers that hold it, the model first."""
    found: dict[int, tuple[keras.layers.Layer, tuple[keras.layers.Layer, ...]]] = {}

    def visit(parents: tuple[keras.layers.Layer, ...]) -> None:
        for layer in parents[-1]._layers:
            if id(layer) not in found:
                found[id(layer)] = layer, parents
                visit((*parents, layer))

    visit((model,))
    return list(found.values())


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of all seed generators of a model, which Keras' files leave out."""
    generators = {
        id(generator): generator
        for layer in [model, *flatten_layers(model)]
        for generator in layer._seed_generators
    }
    return [generator.state for generator in generators.values()]


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables of a layer without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables


def clone(model: keras.Model) -> keras.Model:
    """A copy of a plain functional or Sequential model, with fresh weights."""
    if not is_functional(model) and not isinstance(model, keras.Sequential):
        raise ValueError(
            "Only KerasHub models, functional and Sequential ones can be copied. "
            f"Received: a subclassed {type(model).__name__}. Add "
            "`layer.kernel_delta(...)` to the kernels of a model of your own."
        )
    return keras.models.clone_model(model)


def freeze(
    model: keras.Model,
    trained: Sequence[keras.layers.Layer],
    tables: Sequence[keras.Variable],
) -> None:
    """Leaves only the tables trainable.

    The setter of `Layer.trainable` reaches all sublayers, so the flags of the
    given layers and models are set past it.
    """
    model.trainable = False
    for layer in trained:
        layer._trainable = True
    for variable in tables:
        variable.trainable = True


def reset_functions(model: keras.Model) -> dict[str, Any]:
    """Drops the compiled functions, which know nothing of a change.

    Returns:
        The functions that were there, by attribute.
    """
    names = [*DATA_FUNCTIONS, "generate_function"]
    old = {name: getattr(model, name, None) for name in names if hasattr(model, name)}
    for name in old:
        setattr(model, name, None)
    return old


def track_torch_parameters(model: keras.Model) -> None:
    """Lists new variables among `model.parameters()`, before the first `fit`."""
    if keras.config.backend() != "torch":
        return
    for layer in [*flatten_layers(model), model]:
        if hasattr(layer, "_torch_params"):
            layer._track_variables()


@contextlib.contextmanager
def variables_survive(model: keras.Model) -> Iterator[None]:
    """Puts variables back if a data source raises while Keras loops over it.

    Keras' JAX trainer takes the values out of the variables for the loop, and an
    exception, such as that of an unknown feature value, would lose them.
    """
    if keras.config.backend() != "jax":
        yield
        return
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *model.metrics_variables]
    variables += optimizer.variables if optimizer is not None else []
    before = [(variable, variable._value) for variable in variables]
    try:
        yield
    except BaseException:
        if getattr(model, "_jax_state", None):
            model.jax_state_sync()
        for variable, value in before:
            if variable._value is None:
                variable._value = value
        raise


def optimizer_knows(model: keras.Model, variables: Sequence[keras.Variable]) -> bool:
    """Whether a model's optimizer, if it is built, was built with these variables."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return True
    known = {id(v) for v in optimizer._trainable_variables}
    return all(id(v) in known for v in variables)


def unpickle_function() -> Callable[..., keras.Model]:
    """What Keras' pickles call. It is found by name, so not on a made class."""
    return keras.Model._unpickle_model


def dry_run(model: keras.Model, inputs: Any) -> None:
    """Runs `call` of every layer on shapes only.

    `Functional.compute_output_spec` asks layers for shapes and skips `call`;
    the backend's own tracing does not.
    """
    backend.compute_output_spec(lambda x: model(x, training=False), inputs)


def input_keys(model: keras.Model) -> list[str] | None:
    """The keys of a functional model's input dict; `None` if it takes no dict."""
    struct = getattr(model, "_inputs_struct", None)
    return list(struct) if isinstance(struct, dict) else None


def is_functional(model: keras.Model) -> bool:
    """Whether the model is a graph of layers that tells its inputs."""
    return hasattr(model, "_inputs_struct")


def wrap_rematerialization(
    model: keras.Model, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Passes what rematerialized layers run, and run again, through `wrapper`."""

    def wrap(layer: keras.layers.Layer) -> None:
        original = layer.rematerialized_call

        def rematerialized_call(call: Any, *args: Any, **kwargs: Any) -> Any:
            return original(wrapper(call), *args, **kwargs)

        object.__setattr__(layer, "rematerialized_call", rematerialized_call)

    for layer in flatten_layers(model):
        if layer._remat_mode is not None:
            wrap(layer)


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


def source_kind(x: Any) -> str:
    """Which kind of data source `x` is, by Keras' own criteria."""
    if isinstance(x, keras.utils.PyDataset):
        return "py_dataset"
    if data_adapters.is_tf_dataset(x):
        return "tf"
    if data_adapters.is_torch_dataloader(x):
        return "torch"
    if data_adapters.is_grain_dataset(x):
        return "grain_dataset" if hasattr(x, "map") else "grain_loader"
    if inspect.isgenerator(x) or (hasattr(x, "__next__") and hasattr(x, "__iter__")):
        return "generator"
    return "arrays"
