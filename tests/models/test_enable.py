"""A refused `enable_flix` says why and leaves the model exactly as it was."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, to_numpy
from helpers.models import (
    Subclassed,
    make_bypassing,
    make_gemma4,
    make_mlp,
    rows,
    state,
)
from keras import ops

import keras_flix
from keras_flix import Feature, _compat
from keras_flix.layers import low_rank_layer
from keras_flix.models import enable

pytestmark = pytest.mark.eager

TARGETS = {"targets": "all-linear", "rank": 2}

REFUSALS = {
    "empty schema": (
        {},
        TARGETS,
        "A feature schema must have at least one feature. Received: features=[]. Name "
        'the features of the mixture, such as {"task": ["qa", "parse"]}.',
    ),
    "duplicate values": (
        {"task": ["qa", "qa"]},
        TARGETS,
        "The values of feature 'task' must be unique. Received: values=['qa', 'qa'], "
        "where ['qa'] occur more than once. Remove the repeated ones.",
    ),
    "rank 0": (
        FEATURES,
        {**TARGETS, "rank": 0},
        "The rank of feature 'task' must be at least 1. Received: rank=0. To leave a "
        "feature out, remove it from the schema.",
    ),
    "rank above the dims of the second layer": (
        [Feature("task", ["qa", "parse"], rank={"qa": 5, "*": 1})],
        TARGETS,
        "The rank of feature 'task' must be at most 4, the smaller dim of layer "
        "'head' (6 in, 4 out). Received: rank=5. Lower the rank, or leave the layer "
        "out of the targets.",
    ),
    "rank of no feature": (
        FEATURES,
        {**TARGETS, "rank": {"tsk": 2}},
        "`rank` by feature must name features of the schema. Received: "
        "rank={'tsk': 2}, where 'tsk' is none of ['task', 'language']. Correct the "
        "name.",
    ),
    "dropout 1": (
        FEATURES,
        {**TARGETS, "dropout": 1.0},
        "The dropout of feature 'task' must be a number in [0, 1). Received: "
        "dropout=1.0. Pass 0.0 for none.",
    ),
    "alpha 0": (
        FEATURES,
        {**TARGETS, "alpha": 0},
        "`alpha` must be a positive number or None. Received: alpha=0. None means a "
        "scale of 1.",
    ),
    "another scale": (
        FEATURES,
        {**TARGETS, "alpha": 8, "scale": "log"},
        "`scale` must be 'rank' (alpha / rank) or 'sqrt' (alpha / sqrt(rank)). "
        "Received: scale='log'. Pass one of these.",
    ),
    "a scale of nothing": (
        FEATURES,
        {**TARGETS, "scale": "sqrt"},
        "scale='sqrt' must come with an alpha, which it divides by the square root of "
        "the rank. Received: alpha=None for feature 'task'. Pass alpha=, such as 16.",
    ),
    "a target that matches nothing": (
        FEATURES,
        {"targets": ["head", "hiden"]},
        "A target must match a layer's name, or its whole path as a regex. Received: "
        "'hiden', which matches nothing. The nearest are ['hidden', 'head']; paths "
        "look like ['hidden', 'head'].",
    ),
    "no attention": (
        FEATURES,
        {},
        "Without `targets`, the model must have attention projections. Received: "
        "targets=None for a Functional with the linear layers ['hidden', 'head']. "
        "Pass targets='all-linear' or a list of layer names.",
    ),
    "a feature called like an input": (
        {"x": ["qa"]},
        TARGETS,
        "A feature must not be called like one of the model's own inputs "
        "['x']. Received: feature 'x'. Rename the feature.",
    ),
}


@pytest.mark.short("torch")
@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_changes_nothing(case):
    features, options, text = REFUSALS[case]
    model = make_mlp()
    before = state(model, rows())
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, features, **options)
    assert str(error.value) == text
    assert state(model, rows()) == before
    check_that_enabling_works(model, before)


def check_that_enabling_works(model, before):
    """As if nothing had happened: the base outputs, and values that matter."""
    keras_flix.enable_flix(model, FEATURES, **TARGETS)
    inputs = {**rows(), "task": ["qa", "parse", None], "language": "sw"}
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model(inputs)), before["outputs"]
    )
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 0.3))
    changed = ops.convert_to_numpy(model(inputs)) != before["outputs"]
    assert changed.any(axis=-1).all()


def test_a_target_that_never_runs():
    model = make_bypassing()
    before = state(model, rows())
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, **TARGETS)
    assert str(error.value) == (
        "Every target must be a layer that runs in the model's forward pass. "
        "Received: ['block/gating'], which the model never calls (it may read their "
        "kernels directly). Leave them out of `targets`, as in targets=['linear']."
    )
    assert state(model, rows()) == before
    keras_flix.enable_flix(model, FEATURES, targets=["block/linear"], rank=2)
    inputs = {**rows(), "task": "qa", "language": None}
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model(inputs)), before["outputs"]
    )


def test_a_target_that_never_runs_in_a_subclassed_model():
    """At the latest, the first call tells."""
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(rows())
    with pytest.raises(ValueError, match=r"Received: \['.*block/gating'\], which the"):
        keras_flix.enable_flix(model, FEATURES, **TARGETS)
        model({**rows(), "task": "qa", "language": "sw"})


@pytest.mark.slow
@pytest.mark.short("torch")
def test_gemma4_is_left_as_it_was():
    model = make_gemma4()
    inputs = {
        "token_ids": np.ones((2, 3), "int32"),
        "padding_mask": np.ones((2, 3), "int32"),
        "position_ids": np.arange(3, dtype="int32")[None].repeat(2, axis=0),
    }
    model.quantize("int8", filters=lambda layer: "ffw" in layer.name)
    before = state(model, inputs)
    with pytest.raises(ValueError, match="must not be quantized: that layer"):
        keras_flix.enable_flix(model, FEATURES, rank=2, targets=[".*ffw_gating"])
    assert state(model, inputs) == before


def test_enabling_twice():
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, **TARGETS)
    inputs = {**rows(), "task": "qa", "language": None}
    before = state(model, inputs)
    text = (
        "A model can be adapted once. Received: a model that `enable_flix` has "
        "adapted already, or one over layers of such a model. Start from a fresh "
        "model, or use `merge_features(model, ...)`, which returns a plain one; "
        "another model over adapted layers takes their features by "
        "`share_features(model, other)`."
    )
    for features in (FEATURES, {"style": ["news"]}):
        with pytest.raises(ValueError) as error:
            keras_flix.enable_flix(model, features, **TARGETS)
        assert str(error.value) == text
    assert state(model, inputs) == before


def test_enabling_a_task_and_its_backbone(make_gemma):
    model = make_gemma()
    keras_flix.enable_flix(model.backbone, FEATURES, rank=2)
    with pytest.raises(ValueError, match="A model can be adapted once"):
        keras_flix.enable_flix(model, FEATURES, rank=2)
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    with pytest.raises(ValueError, match="A model can be adapted once"):
        keras_flix.enable_flix(model.backbone, FEATURES, rank=2)


@pytest.mark.parametrize("name", ["token_ids", "padding_mask"])
def test_a_feature_called_like_an_input_of_gemma(make_gemma, name):
    model = make_gemma()
    for part in (model, model.backbone):
        with pytest.raises(ValueError, match=f"Received: feature {name!r}. Rename"):
            keras_flix.enable_flix(part, {name: ["qa"]}, rank=2)


def test_what_is_no_built_model():
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(keras.layers.Dense(4), FEATURES)
    assert str(error.value) == (
        "`model` must be a keras.Model. Received: an object of type Dense. For a "
        "single layer, use FlixEinsumDense or FlixDense."
    )
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(Subclassed(), FEATURES)
    assert str(error.value) == (
        "`model` must be built, since adapters take their shapes from its kernels. "
        "Received: an unbuilt Subclassed. Call it on a batch first."
    )


def test_a_model_with_a_lora_of_keras_own():
    model = make_mlp()
    model.get_layer("hidden").enable_lora(2)
    before = state(model, rows())
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, **TARGETS)
    assert str(error.value) == (
        "A target must not have a LoRA of Keras' own. Received: layer 'hidden', on "
        "which `enable_lora` was called. Start from a model without it; FLix with one "
        "always-on feature is a LoRA."
    )
    assert state(model, rows()) == before


def test_a_lora_of_keras_own_on_an_adapted_layer():
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **TARGETS)
    with pytest.raises(ValueError) as error:
        model.get_layer("hidden").enable_lora(2)
    assert str(error.value) == (
        "A layer with feature adapters must not have a LoRA of Keras' own. Received: "
        "a LoRA rank for layer 'hidden'. Add a feature with always=True, which is a "
        "LoRA, to `features`."
    )


@pytest.mark.parametrize("targets", [None, "all-linear", ["query"]])
def test_one_or_two_walks_and_one_look_at_each_layers_ranks(
    make_gemma, monkeypatch, targets
):
    walks, checked = [], []
    walk, check = _compat.models.layers_with_parents, enable.check_ranks

    def counted_walk(model):
        walks.append(model)
        return walk(model)

    def counted_check(layer, schema):
        checked.append(layer)
        return check(layer, schema)

    for place in (_compat, _compat.models):
        monkeypatch.setattr(place, "layers_with_parents", counted_walk)
    for place in (enable, low_rank_layer):
        monkeypatch.setattr(place, "check_ranks", counted_check)
    model = keras_flix.enable_flix(make_gemma(), FEATURES, targets=targets)
    assert 1 <= len(walks) <= 2
    assert checked == list(model._adaptation.layers.values())


@pytest.mark.short("torch")
def test_a_base_in_float64_is_merged_in_float64():
    x = keras.Input((8,), name="x", dtype="float64")
    layer = keras.layers.Dense(4, name="head", dtype="float64")
    model = keras.Model({"x": x}, layer(x))
    kernel = to_numpy(layer.kernel).copy()
    if kernel.dtype != "float64":
        pytest.skip("JAX computes in 32 bits.")
    keras_flix.enable_flix(model, FEATURES, targets=["head"])
    merged = keras_flix.merge_features(model, {"task": None, "language": None})
    np.testing.assert_array_equal(to_numpy(merged.get_layer("head").kernel), kernel)
