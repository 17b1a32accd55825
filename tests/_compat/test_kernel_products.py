"""Layers that multiply by kernels themselves: known uses are adapted, others refused.

`__module__` makes layers of these tests look like KerasHub's own; in a `keras.Model`,
whose rows belong to whom is then found out as for any other.
"""

import copy

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import Bypassing, make_mlp, rows, state
from keras import ops

import keras_flix
from keras_flix import _compat
from keras_flix._compat.kernel_products import CastKernel, Products

pytestmark = pytest.mark.eager
IDS = {"task": np.array([0, 2, -1], "int32"), "language": np.array([1, -1, 2], "int32")}
OPS = ops
"""Another name than KerasHub's code has for it."""


class Block(Bypassing):
    """Multiplies by two kernels, the second one in another dtype."""

    __module__ = "keras_hub.made_up"

    def call(self, inputs):
        x = ops.relu(ops.matmul(inputs, self.gating.kernel))
        return ops.einsum(
            "...d,df->...f", x, ops.cast(self.output_layer.kernel, "float32")
        )


class OtherName(Block):
    __module__ = "keras_hub.made_up"

    def call(self, inputs):
        return OPS.matmul(
            OPS.matmul(inputs, self.gating.kernel), self.output_layer.kernel
        )


class Transposed(Block):
    __module__ = "keras_hub.made_up"

    def call(self, inputs):
        return ops.einsum(
            "bf,df->bd", inputs[:, :6], ops.cast(self.gating.kernel, "float32")
        )


class TwoKernels(Block):
    __module__ = "keras_hub.made_up"

    def call(self, inputs):
        return ops.matmul(
            inputs, ops.matmul(self.gating.kernel, self.output_layer.kernel)
        )


class Twice(Block):
    """Also reads a kernel for something else."""

    __module__ = "keras_hub.made_up"

    def call(self, inputs):
        x = ops.matmul(inputs, self.gating.kernel)
        return ops.matmul(x, self.output_layer.kernel) + ops.sum(self.gating.kernel)


def make(block=Block, **options):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    return keras.Model({"x": x}, block(name="block", **options)(x))


def adapted():
    model = keras_flix.enable_flix(make(), FEATURES, rank=2, targets="all-linear")
    return randomize(model)


def outputs(model, **ids):
    return to_numpy(model({**rows(), **ids}))


def test_a_mixed_batch_is_what_merged_models_make_of_each_example():
    plain = outputs(make())
    model = adapted()
    assert list(model._adaptation.layers) == ["block/gating", "block/linear"]
    mixed = outputs(model, **IDS)
    absent = {name: None for name in IDS}
    np.testing.assert_array_equal(outputs(model, **absent), plain)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_array_equal(outputs(model), plain)
    for i in range(3):
        one = {name: int(ids[i]) for name, ids in IDS.items()}
        merged = keras_flix.merge_features(model, one)
        assert {type(layer) for layer in merged.layers} >= {Block}
        np.testing.assert_allclose(mixed[i], outputs(merged)[i], atol=1e-5)
        assert np.abs(mixed[i] - plain[i]).max() > 1e-2


def test_the_other_class_is_unseen():
    model = adapted()
    block = model.get_layer("block")
    assert isinstance(block, Block) and type(block) is not Block
    assert type(block).__name__ == "Block"
    assert type(block).__module__ == "keras_hub.made_up"
    # Other layers of the class, and KerasHub's module, are as before.
    assert "call" not in vars(block)
    np.testing.assert_array_equal(outputs(make()), outputs(make()))
    assert Block.call.__globals__["ops"] is ops


def test_copies_and_training_go_on_with_it():
    keras.saving.register_keras_serializable("tests")(Block)
    model = adapted()
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(outputs(twin, **IDS), outputs(model, **IDS))
    twin.compile("sgd", loss="mse")
    before = [to_numpy(v) for v in twin.variables]
    twin.train_on_batch({**rows(), **IDS}, np.ones((3, 8)))
    moved = {
        v.path.rpartition("/")[2]
        for v, x in zip(twin.variables, before)
        if not np.array_equal(to_numpy(v), x)
    }
    assert moved == {f"flix_{name}_{part}" for name in FEATURES for part in "ab"}


def test_rematerialized_code_adds_the_same_updates():
    losses = []
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            model = make()
        keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear", seed=0)
        randomize(model).compile(keras.optimizers.SGD(0.1), loss="mse")
        history = model.fit({**rows(), **IDS}, np.ones((3, 8)), epochs=3, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


REPORT = "Leave it out of `targets`, and report this."
FORM = (
    "A kernel that is used without its layer being called must be the right-hand side "
    "of a matmul or an einsum of two. Received: {}, in a layer of a newer KerasHub. "
    + REPORT
)


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "block, target, text",
    [
        (OtherName, "gating", "which the model never calls"),
        (
            Transposed,
            "gating",
            FORM.format("einsum 'bf,df->bd' by a kernel of '...d,df->...f'"),
        ),
        (TwoKernels, "all-linear", FORM.format("matmul of another form")),
        (TwoKernels, "gating", FORM.format("matmul of another form")),
        (Twice, "gating", FORM.format("another use of the kernel 'block/gating'")),
    ],
)
def test_what_a_newer_keras_hub_may_do_is_refused(block, target, text):
    model = make(block)
    before = state(model, rows())
    targets = target if target == "all-linear" else [target]
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, rank=2, targets=targets)
    assert text in str(error.value)
    assert state(model, rows()) == before


@pytest.mark.short("torch")
def test_a_quantized_kernel_is_refused():
    model = make()
    model.quantize("int8")
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, rank=2, targets=["gating"])
    assert str(error.value) == (
        "A target whose kernel another layer multiplies by must not be quantized: that "
        "layer, a Block, does not undo it, so that its own outputs are wrong, too. "
        "Received: layer 'block/gating' with quantization_mode='int8'. Quantize the "
        "model without these layers: `model.quantize(mode, filters=lambda layer: "
        "layer.name not in ['gating'])`."
    )


@pytest.mark.short("torch")
def test_a_cast_kernel_cannot_be_used_unseen():
    class Kernel:
        def add_update(self, product, equation, inputs):
            return product + 1

    variable = keras.Variable(np.ones((2, 3), "float32"))
    _compat.mark_kernel(variable, Kernel())
    own = Products()
    cast = own.cast(variable, "float16")
    assert isinstance(cast, CastKernel)
    assert (
        to_numpy(own.einsum("bd,df->bf", np.ones((1, 2), "float16"), cast)).max() == 3
    )
    with pytest.raises(Exception):  # noqa: B017, each backend has its own
        own.transpose(cast)
    with pytest.raises(_compat.UnknownUse, match="a matmul by 1 axes"):
        flat = keras.Variable(np.ones((2,), "float32"))
        _compat.mark_kernel(flat, Kernel())
        own.matmul(np.ones((1, 2), "float32"), flat)
    # All else is Keras' own.
    assert own.softmax is ops.softmax
    np.testing.assert_array_equal(to_numpy(own.cast([1.5], "int32")), [1])


@pytest.mark.short("torch")
def test_layers_of_users_are_left_alone():
    assert not _compat.multiplies_itself(Bypassing())
    assert not _compat.multiplies_itself(make_mlp().get_layer("hidden"))
    assert _compat.multiplies_itself(Block())
