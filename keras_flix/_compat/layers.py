"""Single layers: their classes, variables, kernels."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras.src.backend.common import masking
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.layers.core import einsum_dense
from keras.src.random.seed_generator import make_default_seed
from keras.src.utils.summary_utils import weight_memory_size

if TYPE_CHECKING:
    Mixin: Any
else:
    Mixin = object
"""Base of the mixins, whose Keras class comes later in the order of bases."""


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

    Optimizers that update rows know it by its attribute `has_rows_of_values`.
    It is not cast as layers read it: they cast what they look up, and gradients of
    examples with the same value are added up in float32.

    Where other layers have that path too, the variable is at `key` instead:
    `model.parameters()` on torch, for one, is a dict by path.
    """
    table = layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype="float32",
        autocast=False,
    )
    table.has_rows_of_values = True
    if key != layer.path:
        table._path = f"{key}/{name}"
    return table


def kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Logical shape of a kernel; below 8 bits it is stored packed, or flat."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.input_dim, layer.output_dim
    if layer.quantization_mode in (None, "int8", "float8"):
        return tuple(layer._kernel.shape)
    input_shape = layer._build_shapes_dict["input_shape"]
    if isinstance(layer, keras.layers.Dense):
        return (input_shape[-1], layer.units)
    kernel, *_ = einsum_dense._analyze_einsum_string(
        layer.equation, layer.bias_axes, input_shape, layer.partial_output_shape
    )
    return tuple(kernel)


def kernel_variable(layer: Any) -> keras.Variable:
    """The variable that an update of a layer is of: an embedding has another name."""
    embeds = isinstance(layer, keras.layers.Embedding)
    return layer._embeddings if embeds else layer.kernel


def quantized_output(
    layer: keras.layers.Layer, plain_class: Any, inputs: Any, training: bool | None
) -> Any:
    """What a quantized layer computes before its activation.

    Keras has no such call, so a twin that shares the layer's variables but has
    no activation runs it. Switching the layer's own activation off meanwhile
    would reach other threads.
    """
    twin = plain_twin(layer, plain_class, activation=None)
    return plain_class.quantized_call(twin, inputs, training=training)


def plain_twin(layer: keras.layers.Layer, plain_class: type, **changes: Any) -> Any:
    """An object of the class that shares a layer's variables, with other settings."""
    twin: Any = object.__new__(plain_class)
    twin.__dict__.update(layer.__dict__)
    twin.__dict__.update(changes)
    return twin


def mask_of(x: Any) -> Any | None:
    """The mask that a layer's output carries, if any."""
    return masking.get_keras_mask(x)


def set_mask(x: Any, mask: Any) -> None:
    """Makes a tensor carry a mask to the layers after it."""
    masking.set_keras_mask(x, mask)


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
        expected = len(self._base_variables())
        if len(store.keys()) != expected:
            raise ValueError(
                f"The weights of layer {self.path!r} must be {expected} base "
                f"variables. Received: {len(store.keys())} variables. Load a "
                "file saved from the same architecture."
            )

    def _base_variables(self) -> list[keras.Variable]:
        tables = {id(v) for v in self.adapter_variables().values()}
        return [v for v in own_variables(self) if id(v) not in tables]


class NumberedVariables(Mixin):
    """Saves a layer of `BaseVariablesCheck` as Keras does by default, its tables apart.

    Keras numbers all variables of a layer that says nothing else.
    """

    def save_own_variables(self, store: Any) -> None:
        for i, variable in enumerate(self._base_variables()):
            store[f"{i}"] = variable

    def load_own_variables(self, store: Any) -> None:
        self._check_load_own_variables(store)
        for i, variable in enumerate(self._base_variables()):
            variable.assign(store[f"{i}"])


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables of a layer without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables


def has_untrained_variables(layer: keras.layers.Layer) -> bool:
    """Whether a layer has variables that were made not to be trained.

    Freezing a layer does not move its variables to that list.
    """
    return bool(layer._non_trainable_variables)


def torch_value(x: Any) -> Any | None:
    """The value of a tensor of torch, also of one that `torch.func.grad` wraps.

    `None` inside of `torch.vmap`, where it stands for several, and where Keras runs a
    call for shapes alone, see `asks_for_shapes`.
    """
    if in_symbolic_scope():
        return None
    import torch
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    wrappers = torch._C._functorch
    if not wrappers.is_functorch_wrapped_tensor(x):
        return x.detach().cpu().numpy()
    while wrappers.is_functorch_wrapped_tensor(x):
        if wrappers.is_batchedtensor(x):
            return None
        x = wrappers.get_unwrapped(x)
    with temporarily_clear_interpreter_stack():
        return x.detach().cpu().numpy()
