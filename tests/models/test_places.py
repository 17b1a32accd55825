"""Features that have adapter weights in some of the adapted layers only."""

import copy

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows, state

import keras_flix
from keras_flix import Feature

FEATURES = [
    Feature("language", ["en", "sw", "yo"], rank=2, targets=["hidden"]),
    Feature("task", ["qa", "parse"], rank=3, targets=["head"], alpha=6),
    Feature("shared", always=True, rank=1, targets="all-linear"),
]
SHARED_IN_ONE = [FEATURES[0], Feature("shared", always=True, rank=2, targets=["head"])]
INPUTS = {**rows(), "language": ["en", None, "yo"], "task": ["qa", "parse", None]}
Y = np.zeros((3, 4), "float32")


def adapted(features=FEATURES, seed=0, **options):
    model = keras_flix.enable_flix(make_mlp(), features, **options)
    return randomize(model, seed=seed)


def inputs_of(model, inputs=INPUTS):
    names = model._adaptation.schema.names
    return {k: v for k, v in inputs.items() if k == "x" or k in names}


def outputs(model, inputs=INPUTS):
    return to_numpy(model(inputs_of(model, inputs)))


def tables(model):
    return [table.name for table in model._adaptation.tables()]


@pytest.mark.support("Paths", "`Feature(targets=...)`: features in some layers")
@pytest.mark.parametrize("features", [FEATURES, SHARED_IN_ONE])
def test_a_mixed_batch_is_each_alone_is_merged(features):
    model = adapted(features)
    mixed = outputs(model)
    base = make_mlp()
    for i in range(3):
        one = {k: v[i : i + 1] for k, v in INPUTS.items()}
        np.testing.assert_allclose(outputs(model, one)[0], mixed[i], atol=1e-6)
        chosen = {k: v[0] for k, v in inputs_of(model, one).items() if k != "x"}
        merged = keras_flix.merge_features(model, chosen)
        np.testing.assert_allclose(
            to_numpy(merged({"x": one["x"]}))[0], mixed[i], atol=1e-5
        )
        # By the formula, with the features that each layer has.
        for name in ("hidden", "head"):
            kernel = to_numpy(base.get_layer(name).kernel).astype("float64")
            for feature in model._adaptation.schema:
                pair = model.get_layer(name)._tables.variables.get(feature.name)
                value = "shared" if feature.always else chosen[feature.name]
                if pair is not None and value is not None:
                    row = feature.id_of(value)
                    a, b = (to_numpy(t)[row].astype("float64") for t in pair)
                    kernel += feature.scales[row] * a @ b
            np.testing.assert_allclose(
                to_numpy(merged.get_layer(name).kernel), kernel, atol=1e-5
            )
    with keras_flix.adapters_disabled(model):
        plain = to_numpy(model({"x": INPUTS["x"]}))
    np.testing.assert_array_equal(plain, to_numpy(base({"x": INPUTS["x"]})))


def test_there_are_weights_where_a_feature_is_and_nowhere_else():
    model = adapted()
    assert tables(model) == [
        *(f"hidden/flix_{n}_{p}" for n in ("language", "shared") for p in "ab"),
        *(f"head/flix_{n}_{p}" for n in ("task", "shared") for p in "ab"),
    ]
    lines = []
    found = keras_flix.flix_summary(model, print_fn=lines.append)
    assert found.parameters == {
        "language": 3 * 2 * (8 + 6),
        "task": 2 * 3 * (6 + 4),
        "shared": 8 + 6 + 6 + 4,
    }
    assert found.trainable == sum(found.parameters.values())
    assert "dropout 0.0, in 1 of 2 layers: 84 parameters" in lines[3]
    assert "layers" not in lines[5]
    # The same numbers at the start, wherever else it might be.
    fresh = keras_flix.enable_flix(make_mlp(), FEATURES, seed=3)
    names = {"language": ["en", "sw", "yo"]}
    everywhere = keras_flix.enable_flix(
        make_mlp(), names, rank=2, seed=3, targets="all-linear"
    )
    one, two = (m.get_layer("hidden")._tables.variables for m in (fresh, everywhere))
    np.testing.assert_array_equal(*(to_numpy(x["language"][0]) for x in (one, two)))


def test_targets_of_the_model_are_those_of_features_without_any():
    features = [FEATURES[0], Feature("task", ["qa", "parse"])]
    model = adapted(features, targets=["head"])
    assert model._adaptation.places == {"language": ["hidden"], "task": ["head"]}
    assert list(model._adaptation.layers) == ["hidden", "head"]
    # Named the other way round, the layers stay in the model's order.
    other = [Feature("task", ["qa"], targets=["head", "hid.*"]), FEATURES[0]]
    assert list(adapted(other)._adaptation.layers) == ["hidden", "head"]


@pytest.mark.parametrize("kind", ["file", "file onto another", "keras", "copy", "h5"])
def test_it_is_saved(kind, tmp_path):
    model = adapted()
    if kind == "copy":
        found = copy.deepcopy(model)
    elif kind == "keras":
        model.save(tmp_path / "model.keras")
        found = keras.models.load_model(tmp_path / "model.keras")
    elif kind == "h5":
        model.save_weights(tmp_path / "model.weights.h5")
        found = adapted(seed=5)
        found.load_weights(tmp_path / "model.weights.h5")
    else:
        path = tmp_path / "one.flix.safetensors"
        keras_flix.save_adapters(model, path)
        into = make_mlp() if kind == "file" else adapted(seed=5)
        found = keras_flix.load_adapters(into, path)
    assert tables(found) == tables(model)
    assert found._adaptation.schema == model._adaptation.schema
    np.testing.assert_array_equal(outputs(found), outputs(model))


def test_a_file_for_other_places_is_refused(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    names = [Feature("language", ["en", "sw", "yo"], rank=2), *FEATURES[1:]]
    model = adapted(names, targets="all-linear")
    before = state(model, INPUTS)
    with pytest.raises(ValueError, match="At 'head/flix_language_a', expected: shape"):
        keras_flix.load_adapters(model, path)
    with pytest.raises(ValueError, match="'head' has adapter weights of it in the mod"):
        keras_flix.update_from(model, path, {"language": ["sw"]})
    assert state(model, INPUTS) == before


def test_it_grows():
    model = adapted()
    before = outputs(model)
    half = {"sw": 0.5, "yo": 0.5}
    keras_flix.add_values(model, "language", ["rw"], init=half, rank=4)
    keras_flix.add_values(model, "task", ["list"], init="qa")
    np.testing.assert_allclose(outputs(model), before, atol=1e-6)
    found = outputs(model, {**INPUTS, "task": ["list", "parse", None]})
    np.testing.assert_allclose(found, before, atol=1e-6)
    merged = keras_flix.merge_features(model, {"language": "rw", "task": None})
    one = outputs(model, {**INPUTS, "language": ["rw"] * 3, "task": [None] * 3})
    np.testing.assert_allclose(to_numpy(merged(rows())), one, atol=1e-5)
    keras_flix.remove_values(model, "task", ["parse"])
    other = adapted([f for f in FEATURES if f.name != "task"], seed=9)
    keras_flix.add_values(other, "language", ["lg"], init="en")
    elsewhere = Feature("language", ["en"], rank=2, targets=["head"])
    with pytest.raises(ValueError, match="'language' must be in the same layers"):
        keras_flix.update_from(model, adapted([elsewhere]), {"language": ["en"]})
    keras_flix.update_from(model, other, {"language": ["lg"]})
    one, two = (
        to_numpy(m.get_layer("hidden").kernel_delta(chosen))
        for m, chosen in (
            (model, {"language": "lg", "task": None}),
            (other, {"language": "lg"}),
        )
    )
    shared = [
        to_numpy(m.get_layer("hidden").kernel_delta(chosen))
        for m, chosen in (
            (model, {"language": None, "task": None}),
            (other, {"language": None}),
        )
    ]
    np.testing.assert_allclose(one - shared[0], two - shared[1], atol=1e-6)
    keras_flix.add_feature(model, Feature("domain", ["web"], targets=["hea."]))
    assert model._adaptation.places["domain"] == ["head"]
    for targets, text in (("all-linear", "are adapted already"), (["haed"], "nearest")):
        added = Feature("more", ["x"], targets=targets)
        with pytest.raises(ValueError, match=text):
            keras_flix.add_feature(model, added)
    assert "more" not in model._adaptation.schema


@pytest.mark.parametrize("optimizer", ["sgd", keras_flix.LazyAdam])
def test_training_moves_what_is_there(optimizer):
    model = adapted()
    keras_flix.set_trainable(model, {"language": ["en"], "task": ["parse"]})
    model.compile(optimizer if optimizer == "sgd" else optimizer(0.1), "mse")
    before = {t.name: to_numpy(t.variable).copy() for t in model._adaptation.tables()}
    model.fit(inputs_of(model), Y, verbose=0)
    for table in model._adaptation.tables():
        moved = np.any(to_numpy(table.variable) != before[table.name], axis=(1, 2))
        trained = {"language": [1, 0, 0], "task": [0, 1], "shared": [0]}[table.feature]
        assert moved.tolist() == [bool(one) for one in trained], table.name


def test_a_blend_of_values_that_are_in_some_layers():
    model = adapted()
    model.compile("adam", "mse")
    data = {k: v for k, v in INPUTS.items() if k != "language"}
    blend = keras_flix.fit_blend(model, "language", "rw", (data, Y), epochs=1, rank=6)
    assert blend.kept == pytest.approx(1.0)


def test_what_is_read_without_a_model(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = adapted()
    keras_flix.save_adapters(model, path)
    read = keras_flix.files.read_adapters(path)
    assert read.places == {"language": ["hidden"], "task": ["head"]}
    for source in (model, read):
        norms = keras_flix.analysis.update_norms(source).norms["language"]
        assert (norms[:, 0] > 0.1).all() and not norms[:, 1].any()
        ranks = keras_flix.analysis.effective_rank(source)
        assert not ranks.energy_ranks["task"][:, 0].any()
        assert (ranks.energy_ranks["task"][:, 1] > 1).all()
        similarity = keras_flix.analysis.value_similarity(source, "task", ["hidden"])
        assert np.isnan(similarity.matrix).all()


@pytest.mark.short("torch")
def test_languages_in_the_first_block_and_tasks_in_the_last(make_gemma):
    features = [
        Feature("language", ["en", "sw"], targets=["decoder_block_0/.*(query|value)"]),
        Feature("task", ["qa", "parse"], targets=["decoder_block_1/.*query"]),
        Feature("shared", always=True, targets=["decoder_block_1/.*value"]),
    ]
    model = randomize(keras_flix.enable_flix(make_gemma(), features, rank=2), scale=0.8)
    inputs = {"prompts": ["the quick", "dog"], "language": ["sw", "en"]}
    found = model.generate({**inputs, "task": ["parse", None]}, max_length=14)
    for i, task in enumerate(["parse", None]):
        one = {"language": inputs["language"][i], "task": task}
        merged = keras_flix.merge_features(model, one)
        assert merged.generate(inputs["prompts"], max_length=14)[i] == found[i]
    with keras_flix.adapters_disabled(model):
        assert model.generate(inputs["prompts"], max_length=14) != found


def test_a_layer_is_copied_as_one_of_its_own():
    layer = adapted().get_layer("head")
    assert [f["name"] for f in layer.get_config()["features"]["features"]] == [
        "task",
        "shared",
    ]
    again = type(layer).from_config(layer.get_config())
    assert all(feature.targets is None for feature in again.features)
    with pytest.raises(ValueError, match="Targets choose among the layers of a model"):
        keras_flix.FlixDense(4, features=FEATURES)


@pytest.mark.parametrize(
    "targets, text",
    [
        ("query", "Received: targets='query'. Write ['query'] to name one layer."),
        ("all_linear", "Received: targets='all_linear'. The nearest is 'all-linear'."),
        ([], "Received: targets=[]. Pass a list of layer names or regexes."),
        ([3], "Received: 3, which does not compile"),
        (["("], "Received: '(', which does not compile"),
        (["haed"], "Received: 'haed', which matches nothing. The nearest are ['head'"),
    ],
)
def test_other_targets_are_refused(targets, text):
    model = make_mlp()
    before = state(model, rows())
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, [Feature("task", ["qa"], targets=targets)])
    assert text in str(error.value)
    assert state(model, rows()) == before


def test_targets_that_no_feature_takes_are_refused():
    with pytest.raises(ValueError, match="where each of .* states its own"):
        keras_flix.enable_flix(make_mlp(), FEATURES, targets=["head"])


def test_ranks_count_where_a_feature_is():
    wide = Feature("language", ["en"], rank=6, targets=["hidden"])
    adapted([wide, FEATURES[1]])
    with pytest.raises(ValueError, match="smaller dim of layer 'head'"):
        adapted([Feature("language", ["en"], rank=6, targets=["head"])])
