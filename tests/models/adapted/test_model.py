"""Every entry point of every kind of model answers to the features, and only then.

The reference is always the same: example by example, the plain model that
`merge_features` makes of its combination.
"""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy

import keras_flix

IDS = {
    "task": np.array([0, -1, 2, 1], "int32"),
    "language": np.array([1, 2, -1, 0], "int32"),
}
STRINGS = {"task": ["qa", None, "list", "parse"], "language": ["sw", "yo", None, "en"]}
# Tasks bring accuracies of their own, which need integer targets.
NO_METRICS = {"metrics": None, "weighted_metrics": None}
OTHER_IDS = {name: ids[::-1].copy() for name, ids in IDS.items()}


def token_inputs(batch=4, length=7):
    generator = np.random.default_rng(0)
    return {
        "token_ids": generator.integers(4, 40, (batch, length)).astype("int32"),
        "padding_mask": np.ones((batch, length), "int32"),
    }


def causal_lm():
    # Compiled by default, it would keep its accuracy, which takes token ids.
    model = keras_hub.models.GemmaCausalLM(
        make_backbone(), preprocessor=None, compile=False
    )
    return model, token_inputs(), None


def backbone():
    return make_backbone(), token_inputs(), None


def text_classifier():
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    model = keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            vocabulary_size=40,
            intermediate_dim=32,
            max_sequence_length=16,
            **options,
        ),
        num_classes=3,
        preprocessor=None,
        dropout=0.0,
        compile=False,
    )
    tokens = token_inputs()
    return model, {**tokens, "segment_ids": np.zeros((4, 7), "int32")}, None


def functional():
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(hidden))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    return model, {"x": x}, ["hidden", "head"]


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model whose `call` takes neither `training` nor a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(16, name="hidden")
        self.head = keras.layers.EinsumDense("bd,dnh->bnh", (2, 3), name="head")

    def call(self, inputs):
        return self.head(keras.ops.tanh(self.hidden(inputs)))


def subclassed():
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    model(x)
    return model, {"x": x}, ["hidden", "head"]


MODELS = [
    causal_lm,
    backbone,
    pytest.param(text_classifier, marks=pytest.mark.slow),
    functional,
    subclassed,
]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def adapted(request):
    """An adapted model, its own inputs, and the expected outputs by ids."""
    model, own, targets = request.param()
    plain = [to_numpy(v) for v in model.weights]
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=targets, train=())
    randomize(model)

    def expected(ids):
        rows = []
        for i in range(4):
            example = {k: v[i : i + 1] for k, v in own.items()}
            merged = merged_outputs(model, plain, example, {k: ids[k][i] for k in ids})
            rows.append(merged)
        return np.concatenate(rows)

    return model, own, expected


def merged_outputs(model, plain, example, combination):
    """Outputs of a model whose kernels hold one combination's updates."""
    layers = model._adaptation.layers.values()
    kernels = [layer._kernel for layer in layers]
    before = [to_numpy(kernel) for kernel in kernels]
    for layer, kernel in zip(layers, kernels):
        delta = layer.kernel_delta({k: int(v) for k, v in combination.items()})
        kernel.assign(to_numpy(kernel) + to_numpy(delta))
    try:
        with keras_flix.adapters_disabled(model):
            return to_numpy(model(example))
    finally:
        for kernel, value in zip(kernels, before):
            kernel.assign(value)


def close(found, expected):
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.pairs("entry points")
def test_adapters_change_the_outputs(adapted):
    model, own, expected = adapted
    with keras_flix.adapters_disabled(model):
        base = to_numpy(model(own))
    assert np.abs(base - expected(IDS)).max() > 0.05 * base.std()
    assert np.abs(expected(OTHER_IDS) - expected(IDS)).max() > 0.05 * base.std()


@pytest.mark.pairs("entry points")
def test_call(adapted):
    model, own, expected = adapted
    close(model({**own, **IDS}), expected(IDS))
    close(model({**own, **OTHER_IDS}), expected(OTHER_IDS))
    close(model({**own, **STRINGS}), expected(IDS))
    tensors = {k: keras.ops.convert_to_tensor(v) for k, v in {**own, **IDS}.items()}
    close(model(tensors), expected(IDS))


@pytest.mark.pairs("entry points")
def test_call_does_not_change_its_inputs(adapted):
    model, own, _ = adapted
    inputs = {**own, **STRINGS}
    before = dict(inputs)
    model(inputs)
    assert inputs.keys() == before.keys()
    assert all(inputs[k] is before[k] for k in inputs)


@pytest.mark.pairs("entry points")
def test_predict(adapted):
    model, own, expected = adapted
    # Batches of 3 and 1: a remainder, and ids that change between calls.
    for _ in range(2):
        found = model.predict({**own, **IDS}, batch_size=3, verbose=0)
        close(found, expected(IDS))
        found = model.predict({**own, **OTHER_IDS}, batch_size=3, verbose=0)
        close(found, expected(OTHER_IDS))
    close(model.predict({**own, **STRINGS}, verbose=0), expected(IDS))


@pytest.mark.pairs("entry points")
def test_predict_on_batch(adapted):
    model, own, expected = adapted
    close(model.predict_on_batch({**own, **IDS}), expected(IDS))
    close(model.predict_on_batch({**own, **STRINGS}), expected(IDS))
    close(model.predict_on_batch({**own, **OTHER_IDS}), expected(OTHER_IDS))


@pytest.mark.pairs("entry points")
def test_scalar_for_the_whole_batch(adapted):
    model, own, expected = adapted
    ids = {"task": np.full(4, 1), "language": np.full(4, -1)}
    close(model({**own, "task": "parse", "language": None}), expected(ids))
    found = model.predict({**own, "task": 1, "language": -1}, verbose=0)
    close(found, expected(ids))


@pytest.mark.pairs("entry points")
def test_evaluate_and_test_on_batch(adapted):
    model, own, expected = adapted
    model.compile(optimizer="sgd", loss="mse", **NO_METRICS)
    target = np.zeros_like(expected(IDS))
    for ids in (IDS, OTHER_IDS):
        loss = np.mean(expected(ids) ** 2)
        found = model.evaluate({**own, **ids}, target, verbose=0)
        np.testing.assert_allclose(found, loss, rtol=1e-4)
        found = model.test_on_batch({**own, **ids}, target)
        np.testing.assert_allclose(found, loss, rtol=1e-4)


@pytest.mark.pairs("entry points")
def test_fit_trains_only_the_values_of_the_batch(adapted):
    model, own, _ = adapted
    model.compile(optimizer="adam", loss="mse", **NO_METRICS)
    target = np.zeros_like(to_numpy(model({**own, **IDS})))
    before = {v.path: to_numpy(v) for v in model.weights}
    ids = {"task": np.array([0, 0, 2, -1]), "language": np.array([1, 1, -1, 1])}
    model.fit({**own, **ids}, target, batch_size=2, epochs=2, verbose=0)
    model.train_on_batch({**own, **ids}, target)
    moved = {"task": {0, 2}, "language": {1}}
    for variable in model.weights:
        found = to_numpy(variable)
        name = variable.path.rpartition("/")[2]
        if not name.startswith("flix_"):
            np.testing.assert_array_equal(found, before[variable.path])
            continue
        rows = {
            i
            for i in range(3)
            if not np.array_equal(found[i], before[variable.path][i])
        }
        assert rows == moved[name.split("_")[1]], variable.path


@pytest.mark.pairs("entry points")
def test_fit_with_strings_equals_fit_with_ids(adapted):
    model, own, _ = adapted
    target = np.zeros_like(to_numpy(model({**own, **IDS})))
    start = [to_numpy(v) for v in model.trainable_variables]
    ends = []
    for features in (IDS, STRINGS):
        for variable, value in zip(model.trainable_variables, start):
            variable.assign(value)
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", **NO_METRICS)
        model.fit({**own, **features}, target, epochs=2, shuffle=False, verbose=0)
        ends.append([to_numpy(v) for v in model.trainable_variables])
    for with_ids, with_strings in zip(*ends):
        # Threads add up gradients in no fixed order.
        np.testing.assert_allclose(with_ids, with_strings, atol=1e-6)


@pytest.mark.pairs("entry points")
def test_missing_feature_is_refused_everywhere(adapted):
    model, own, expected = adapted
    model.compile(optimizer="sgd", loss="mse", **NO_METRICS)
    target = np.zeros_like(expected(IDS))
    inputs = {**own, "task": IDS["task"]}
    for run in (
        lambda: model(inputs),
        lambda: model(own),
        lambda: model.predict(inputs, verbose=0),
        lambda: model.predict_on_batch(inputs),
        lambda: model.evaluate(inputs, target, verbose=0),
        lambda: model.fit(inputs, target, verbose=0),
        lambda: model.train_on_batch(inputs, target),
    ):
        with pytest.raises(ValueError, match="no entry '(language|task)'"):
            run()
    close(model({**own, **IDS}), expected(IDS))


def test_inputs_without_a_dict_are_refused():
    model, own, targets = functional()
    keras_flix.enable_flix(model, FEATURES, targets=targets)
    with pytest.raises(ValueError, match="no entry 'task'"):
        model(own["x"])
    with pytest.raises(ValueError, match="no entry 'task'"):
        model.predict(own["x"], verbose=0)


def test_backbone_of_an_adapted_task_routes_too():
    model, own, _ = causal_lm()
    keras_flix.enable_flix(model, FEATURES, rank=2)
    randomize(model)
    logits = to_numpy(model({**own, **IDS}))
    hidden = model.backbone({**own, **IDS})
    found = model.backbone.token_embedding(hidden, reverse=True)
    np.testing.assert_allclose(to_numpy(found), logits, atol=1e-5)
    with pytest.raises(ValueError, match="no entry 'task'"):
        model.backbone(own)


def test_layers_outside_of_a_call_refuse():
    model, own, _ = causal_lm()
    keras_flix.enable_flix(model, FEATURES, rank=2)
    block = model.backbone.transformer_layers[0]
    with pytest.raises(ValueError, match="must know the features"):
        block(np.zeros((1, 3, 16), "float32"))


def test_adapted_model_inside_another_functional_model():
    model, own, expected_model = functional()[0], functional()[1], None
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"])
    randomize(model)
    inputs = {
        "x": keras.Input((6,), name="x"),
        "task": keras.Input((), dtype="int32", name="task"),
        "language": keras.Input((), dtype="int32", name="language"),
    }
    outer = keras.Model(inputs, model(inputs) * 2.0)
    found = outer.predict({**own, **IDS}, verbose=0)
    np.testing.assert_allclose(found, 2 * to_numpy(model({**own, **IDS})), atol=1e-5)
    assert expected_model is None


def test_identity_names_and_paths_survive():
    model, _, _ = causal_lm()
    same, cls, name = model, type(model), model.name
    paths = [v.path for v in model.variables]
    values = [to_numpy(v) for v in model.variables]
    backbone_name = type(model.backbone).__name__
    returned = keras_flix.enable_flix(model, FEATURES, dropout=0.5)
    assert returned is same and isinstance(model, cls)
    assert type(model).__name__ == cls.__name__ and model.name == name
    assert type(model.backbone).__name__ == backbone_name == "GemmaBackbone"
    kept = [v for v in model.variables if v.path in paths]
    assert [v.path for v in kept] == paths
    for variable, value in zip(kept, values):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_starts_as_the_base_model():
    model, own, _ = causal_lm()
    base = to_numpy(model(own))
    keras_flix.enable_flix(model, FEATURES)
    np.testing.assert_array_equal(to_numpy(model({**own, **IDS})), base)


@pytest.mark.short("jax", "tensorflow", "torch")
def test_old_compiled_functions_are_dropped():
    model, own, _ = causal_lm()
    base = model.predict(own, verbose=0)
    keras_flix.enable_flix(model, FEATURES, rank=2)
    randomize(model)
    adapted_outputs = model.predict({**own, **IDS}, verbose=0)
    assert np.abs(adapted_outputs - base).max() > 1e-2
    with keras_flix.adapters_disabled(model):
        found = model.predict(own, verbose=0)
        np.testing.assert_allclose(found, base, atol=1e-6)
        found = model.predict({**own, **IDS}, verbose=0)
        np.testing.assert_allclose(found, base, atol=1e-6)
    found = model.predict({**own, **IDS}, verbose=0)
    np.testing.assert_allclose(found, adapted_outputs, atol=1e-6)
    with pytest.raises(ValueError, match="no entry 'task'"):
        model.predict(own, verbose=0)


@pytest.mark.short("torch", "tensorflow")
def test_old_compiled_functions_are_dropped_where_the_inputs_stay_as_they_are():
    # Only TensorFlow would go on with what it compiled for the plain model.
    model, own, _ = causal_lm()
    model.predict(own, verbose=0)
    keras_flix.enable_flix(model, [keras_flix.Feature("shared", always=True)], rank=2)
    randomize(model)
    found = model.predict(own, verbose=0)
    np.testing.assert_allclose(found, to_numpy(model(own)), atol=1e-5)


def test_always_feature_needs_no_entry():
    model, own, _ = causal_lm()
    base = to_numpy(model(own))
    lora = [keras_flix.Feature("shared", always=True)]
    keras_flix.enable_flix(model, lora, rank=2)
    randomize(model)
    found = to_numpy(model(own))
    assert np.abs(found - base).max() > 1e-2
    merged = keras_flix.merge_features(model, {})
    np.testing.assert_allclose(to_numpy(merged(own)), found, atol=1e-5)
    np.testing.assert_allclose(model.predict(own, verbose=0), found, atol=1e-5)


@pytest.mark.eager
@pytest.mark.slow
def test_feature_dropout_only_in_training_and_reproducible():
    def losses(dropout, seed):
        keras.utils.set_random_seed(0)
        model, own, targets = functional()
        keras_flix.enable_flix(
            model, FEATURES, rank=2, dropout=dropout, seed=seed, targets=targets
        )
        randomize(model)
        model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse", **NO_METRICS)
        target = np.zeros((4, 5), "float32")
        inputs = {**own, **IDS}
        predicted = model.predict(inputs, verbose=0)
        history = model.fit(inputs, target, epochs=3, shuffle=False, verbose=0)
        np.testing.assert_array_equal(model.predict(inputs, verbose=0), predicted)
        return history.history["loss"], predicted

    none, plain = losses(0.0, 1)
    first, with_dropout = losses(0.6, 1)
    again, _ = losses(0.6, 1)
    other, _ = losses(0.6, 2)
    assert first == again != other
    assert len(set(none)) == 1 and len(set(first)) > 1
    np.testing.assert_array_equal(plain, with_dropout)


def test_dropout_in_a_model_whose_call_takes_no_training():
    keras.utils.set_random_seed(0)
    model, own, targets = subclassed()
    keras_flix.enable_flix(model, FEATURES, rank=2, dropout=0.7, targets=targets)
    randomize(model)
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse", **NO_METRICS)
    target = np.zeros((4, 2, 3), "float32")
    history = model.fit({**own, **IDS}, target, epochs=4, shuffle=False, verbose=0)
    evaluated = {model.evaluate({**own, **IDS}, target, verbose=0) for _ in range(3)}
    assert len(set(history.history["loss"])) > 1
    assert len(evaluated) == 1


def test_what_would_lose_the_adapters_is_refused():
    model, own, _ = causal_lm()
    keras_flix.enable_flix(model, FEATURES, rank=2)
    trainable = [v.path for v in model.trainable_variables]
    for part in (model, model.backbone):
        with pytest.raises(ValueError, match="would lose the adapters"):
            part.export_to_transformers("nowhere")
        with pytest.raises(ValueError, match="LoRA of Keras' own"):
            part.enable_lora(4)
        with pytest.raises(ValueError, match="cannot be quantized"):
            part.quantize("int8")
    with pytest.raises(ValueError, match="must be made by `enable_flix`"):
        type(model)(model.backbone)
    with pytest.raises(ValueError, match="by `copy.deepcopy`, not `clone_model`"):
        keras.models.clone_model(functional_model())
    assert [v.path for v in model.trainable_variables] == trainable
    assert model.backbone.trainable_variables == model.trainable_variables


def functional_model():
    model, _, targets = functional()
    return keras_flix.enable_flix(model, FEATURES, targets=targets)


def test_extra_entries_are_refused():
    model, own, _ = causal_lm()
    features = [
        keras_flix.Feature("task", ["qa"]),
        keras_flix.Feature("all", always=True),
    ]
    keras_flix.enable_flix(model, features)
    with pytest.raises(ValueError, match=r"Received: entries \['a_task'\] besides"):
        model({**own, "task": "qa", "a_task": np.zeros(4, "int32")})
    with pytest.raises(ValueError, match="always active and takes no entry"):
        model({**own, "task": "qa", "all": np.zeros(4, "int32")})


def test_disabling_a_part_disables_the_whole():
    model, own, _ = causal_lm()
    base = model.predict(own, verbose=0)
    randomize(keras_flix.enable_flix(model, FEATURES, rank=2))
    model.predict({**own, **IDS}, verbose=0)
    with keras_flix.adapters_disabled(model.backbone):
        found = model.predict(own, verbose=0)
    np.testing.assert_allclose(found, base, atol=1e-6)
    plain, _, _ = causal_lm()
    with pytest.raises(ValueError, match="must have been adapted"):
        with keras_flix.adapters_disabled(plain):
            pass


def test_integer_values_are_merged_by_value():
    model, own, _ = functional()
    years = [keras_flix.Feature("year", [2, 0, 1])]
    randomize(keras_flix.enable_flix(model, years, targets=["hidden"], rank=2))
    for i, year in enumerate([2, 0, 1]):
        expected = to_numpy(model({**own, "year:ids": np.full(4, i, "int32")}))
        merged = keras_flix.merge_features(model, {"year": year})
        np.testing.assert_allclose(to_numpy(merged(own["x"])), expected, atol=1e-5)


def test_training_the_merged_model_leaves_the_adapted_one_alone():
    model, own, _ = functional()
    randomize(keras_flix.enable_flix(model, FEATURES, targets=["hidden"], rank=2))
    before = to_numpy(model({**own, **IDS}))
    merged = keras_flix.merge_features(model, {"task": "qa", "language": None})
    merged.compile(optimizer="adam", loss="mse")
    merged.fit(own["x"], np.zeros((4, 5)), epochs=2, verbose=0)
    np.testing.assert_array_equal(to_numpy(model({**own, **IDS})), before)


def test_several_inputs_and_dropout_on_an_always_axis():
    inputs = [keras.Input((6,), name=name) for name in ("one", "two")]
    summed = keras.layers.Dense(8, name="hidden")(inputs[0] + inputs[1])
    model = keras.Model(inputs, summed)
    shared = keras_flix.Feature("shared", always=True, dropout=0.5)
    keras_flix.enable_flix(model, [shared], targets=["hidden"], rank=2, seed=0)
    randomize(model)
    x = [np.ones((64, 6), "float32")] * 2
    outputs = to_numpy(model(x, training=True))
    kinds = np.unique(np.round(outputs, 4), axis=0)
    dropped = np.isclose(outputs, outputs[0], atol=1e-4).all(axis=1)
    assert len(kinds) == 2 and 12 < dropped.sum() < 52
    pairs = dropped.reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).any()


class OfOwnShapes(keras.Model):
    """Neither its `call` nor its shapes take `training`."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(4, name="head")

    def call(self, inputs):
        return self.head(inputs["x"])

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs["x"].shape[0], 4))


@pytest.mark.short("torch")
def test_what_takes_no_training_is_not_told_of_it():
    model = OfOwnShapes()
    x = np.ones((4, 8), "float32")
    model({"x": x})
    keras_flix.enable_flix(model, FEATURES, targets=["head"], rank=2)
    assert tuple(model({"x": x, **IDS}, training=True).shape) == (4, 4)
    symbols = {name: keras.Input((), dtype="int32") for name in IDS}
    found = model({"x": keras.Input((8,)), **symbols}, training=True)
    assert found.shape == (None, 4)
