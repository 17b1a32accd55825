"""Ranks that differ by layer: the formula, and wherever adapters go."""

import copy
import json

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import Feature
from keras_flix.analysis import effective_rank, update_norms
from keras_flix.files import read_adapters

RANKS = {"hidden": 3, ".*head": {"task": 1}}
LANGUAGE = Feature("language", FEATURES["language"], rank={"en": 4, "*": 2}, alpha=6.0)
TASK = Feature("task", FEATURES["task"], alpha=4.0, scale="sqrt")
INPUTS = {**rows(), "task": ["qa", None, "list"], "language": ["sw", "en", None]}


def adapted(features=(TASK, LANGUAGE), seed=0, **options):
    options = {"rank": 2, "layer_ranks": RANKS, "seed": 0, **options}
    model = keras_flix.enable_flix(
        make_mlp(), list(features), targets="all-linear", **options
    )
    return cut(randomize(model, seed=seed))


def cut(model):
    """Zero beyond the values' ranks, as in training."""
    for layer in model._adaptation.layers.values():
        for name, (a, b) in layer._tables.variables.items():
            ranks = np.asarray(layer._tables.feature(name).ranks)
            beyond = np.arange(a.shape[-1]) >= ranks[:, None]
            a.assign(np.where(beyond[:, None], 0.0, to_numpy(a)))
            b.assign(np.where(beyond[..., None], 0.0, to_numpy(b)))
    return model


def outputs(model, inputs=INPUTS):
    return to_numpy(model(inputs))


def widths(model):
    return {
        (path, name): pair[0].shape[-1]
        for path, layer in model._adaptation.layers.items()
        for name, pair in layer._tables.variables.items()
    }


@pytest.mark.support("Paths", "`layer_ranks` and `scale='sqrt'`")
def test_each_layer_has_its_ranks_and_scales():
    """By the formula in float64: mixed, alone, and merged."""
    always = Feature("always", always=True, alpha=2.0)
    model = adapted([TASK, LANGUAGE, always])
    assert widths(model) == {
        ("hidden", "task"): 3,
        ("hidden", "language"): 3,
        ("hidden", "always"): 3,
        ("head", "task"): 1,
        ("head", "language"): 4,
        ("head", "always"): 2,
    }
    scales = {
        ("hidden", "task"): [4 / 3**0.5] * 3,
        ("hidden", "language"): [2.0] * 3,
        ("hidden", "always"): [2 / 3],
        ("head", "task"): [4.0] * 3,
        ("head", "language"): [1.5, 3.0, 3.0],
        ("head", "always"): [1.0],
    }
    mixed = outputs(model)
    for i in range(3):
        chosen = {name: INPUTS[name][i] for name in ("task", "language")}
        x = INPUTS["x"][i : i + 1]
        merged = keras_flix.merge_features(model, chosen)
        alone = outputs(model, {"x": x, **{k: [v] for k, v in chosen.items()}})
        np.testing.assert_allclose(alone[0], mixed[i], atol=1e-6)
        np.testing.assert_allclose(
            to_numpy(merged({"x": x}))[0], mixed[i], rtol=1e-5, atol=1e-5
        )
        for path, layer in model._adaptation.layers.items():
            kernel = to_numpy(make_mlp().get_layer(path).kernel).astype("float64")
            for feature in model._adaptation.schema:
                value = "always" if feature.always else chosen[feature.name]
                if value is None:
                    continue
                row = feature.id_of(value)
                pair = layer._tables.variables[feature.name]
                a, b = (to_numpy(t)[row].astype("float64") for t in pair)
                kernel += scales[path, feature.name][row] * a @ b
            found = to_numpy(merged.get_layer(path).kernel)
            np.testing.assert_allclose(found, kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".flix.safetensors", ".weights.h5", ".keras", None])
def test_files_and_copies(suffix, tmp_path):
    model, path = adapted(), str(tmp_path / f"x{suffix}")
    if suffix is None:
        loaded = copy.deepcopy(model)
    elif suffix == ".flix.safetensors":
        keras_flix.save_adapters(model, path)
        loaded = keras_flix.load_adapters(make_mlp(), path)
        again = keras_flix.load_adapters(adapted(seed=1), path)
        np.testing.assert_array_equal(outputs(again), outputs(model))
    elif suffix == ".weights.h5":
        model.save_weights(path)
        loaded = adapted(seed=1)
        loaded.load_weights(path)
        with pytest.raises(ValueError, match="The features in a weights file must"):
            adapted(layer_ranks={"hidden": 3}).load_weights(path)
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
    assert loaded._adaptation.ranks == {
        "task": {"hidden": 3, "head": 1},
        "language": {"hidden": 3},
    }
    np.testing.assert_allclose(outputs(loaded), outputs(model), rtol=1e-6)


def test_only_files_with_own_ranks_are_of_a_new_version(tmp_path):
    path = tmp_path / "a.flix.safetensors"
    for options, version in (({"layer_ranks": None}, 1), ({}, 4)):
        keras_flix.save_adapters(adapted(**options), path)
        with safetensors.safe_open(path, "numpy") as file:
            header = json.loads(file.metadata()["keras_flix"])
        assert header["version"] == version
        assert ("ranks" in header) == (version == 4) and "experts" not in header
    found = read_adapters(path)
    assert found.feature_in("head", "task").ranks == (1, 1, 1)
    np.testing.assert_allclose(
        found.factors("head", "task").norms,
        adapted().get_layer("head")._tables.factors("task").norms,
    )
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(adapted(layer_ranks={"hidden": 3}), path)
    assert str(error.value) == (
        "The ranks of feature 'task' must be the same in each layer. Expected: that of "
        f"the feature in 'head'. Received: 1 in {str(path)!r}. Load it into a plain "
        "model, or adapt the model with the same `layer_ranks` and `expert_rank`."
    )


@pytest.mark.parametrize(
    "entry, error",
    [
        ({"ranks": {"task": {"hidden": 0}}}, "positive integers"),
        ({"ranks": {"task": {"other": 1}}}, "of a feature's layers"),
        ({"ranks": {"place": {}}}, "by feature"),
        ({"ranks": {"task": {"hidden": 2, "head": 1}}}, "Adapter weights must be of"),
        ({"experts": {"other": 2}}, "by layer"),
        ({"experts": {"head": "2"}}, "positive integers"),
        ({"experts": {"head": 2}}, "Adapter weights must be of shape"),
    ],
)
def test_files_that_say_what_cannot_be(entry, error, tmp_path):
    path = tmp_path / "a.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    with safetensors.safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["keras_flix"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del header["digest"]
    text = json.dumps({**header, **entry})
    safetensors.numpy.save_file(tensors, path, {"keras_flix": text})
    with pytest.raises(ValueError, match=error):
        read_adapters(path)


def test_values_come_and_go():
    model = adapted()
    before, start = outputs(model), copy.deepcopy(model)
    keras_flix.add_values(model, "language", ["rw"], init={"sw": 1, "yo": 1}, rank=4)
    keras_flix.add_values(model, "language", ["lg"], init="sw")
    assert widths(model)["hidden", "language"] == 3
    assert widths(model)["head", "language"] == 4
    np.testing.assert_allclose(outputs(model), before, rtol=1e-6)

    def delta(path, value):
        combination = {"task": None, "language": value}
        return to_numpy(model.get_layer(path).kernel_delta(combination))

    # Of rank 4 in one layer, and in the other the nearest one of rank 3.
    both = delta("head", "sw") + delta("head", "yo")
    np.testing.assert_allclose(delta("head", "rw"), both, atol=1e-4)
    both = delta("hidden", "sw") + delta("hidden", "yo")
    left, spectrum, right = np.linalg.svd(both)
    nearest = (left[:, :3] * spectrum[:3]) @ right[:3]
    np.testing.assert_allclose(delta("hidden", "rw"), nearest, atol=1e-4)
    for path in ("hidden", "head"):
        np.testing.assert_allclose(delta(path, "lg"), delta(path, "sw"), atol=1e-6)
    keras_flix.remove_values(model, "language", ["rw", "lg"])
    np.testing.assert_allclose(outputs(model), before, rtol=1e-6)
    for table, old in zip(model._adaptation.tables(), start._adaptation.tables()):
        np.testing.assert_array_equal(to_numpy(table.variable), to_numpy(old.variable))


def test_a_feature_that_is_added_has_its_own():
    model = adapted()
    domain = Feature("domain", ["news"], alpha=2.0)
    keras_flix.add_feature(model, domain, rank=2, layer_ranks={"head": 1})
    found = widths(model)
    assert (found["hidden", "domain"], found["head", "domain"]) == (2, 1)
    assert model._adaptation.ranks["domain"] == {"head": 1}
    with pytest.raises(ValueError, match="must be at most 4"):
        other = Feature("other", ["a"])
        keras_flix.add_feature(model, other, layer_ranks={"head": 5})
    assert model._adaptation.schema.names == ["task", "language", "domain"]


def test_values_of_other_models_come_over(tmp_path):
    model, other = adapted(), adapted(seed=3)
    keras_flix.add_values(other, "language", ["rw"], init="yo")
    keras_flix.update_from(model, other, {"language": ["rw", "en"]})
    combination = {"task": None, "language": "rw"}
    for path in ("hidden", "head"):
        one, two = (m.get_layer(path).kernel_delta(combination) for m in (model, other))
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))
    unlike = adapted(layer_ranks={"hidden": 3})
    with pytest.raises(ValueError, match="must be the same in each layer"):
        keras_flix.update_from(unlike, other, {"task": ["qa"]})
    keras_flix.update_from(unlike, other, {"language": ["rw"]})


def test_several_weighted_values_have_the_scales_of_each_layer():
    many = Feature(
        "language", LANGUAGE.values, rank=LANGUAGE.rank, alpha=6.0, multiple=True
    )
    model = adapted([TASK, many])
    blends = [{"sw": 0.5, "en": 2.0}, ["yo"], {"en": -1.0}]
    found = outputs(model, {**INPUTS, "task": None, "language": blends})
    for i, blend in enumerate(blends):
        merged = keras_flix.merge_features(model, {"task": None, "language": blend})
        expected = to_numpy(merged({"x": INPUTS["x"][i : i + 1]}))[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def gemma(**options):
    keras.utils.set_random_seed(0)
    task = keras_hub.models.GemmaCausalLM(
        backbone=make_backbone(num_layers=1), preprocessor=None
    )
    return cut(randomize(keras_flix.enable_flix(task, FEATURES, **options)))


@pytest.mark.short("torch")
def test_loras_hold_each_layer_at_its_rank(tmp_path):
    model = gemma(rank=2, alpha=3.0, layer_ranks={"query": 3, "value": {"task": 1}})
    combination = {"task": "qa", "language": "sw"}
    merged = keras_flix.merge_features(model, combination)
    keras_flix.export_lora(model, combination, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    used = {}
    for name, module in (("query", "q_proj"), ("value", "v_proj")):
        key = f"base_model.model.model.layers.0.self_attn.{module}.lora_"
        a, b = (tensors[f"{key}{part}.weight"] for part in "AB")
        used[name] = int(np.any(a, 1).sum())
        path = f"decoder_block_0/attention/{name}"
        layer = model._adaptation.layers[path]
        delta = np.swapaxes(to_numpy(layer.kernel_delta(combination)), 1, 2)
        np.testing.assert_allclose(b @ a, delta.reshape(b.shape[0], -1), atol=1e-5)
    assert used == {"query": 6, "value": 3}
    assert merged is not model
    keras_flix.export_values(model, tmp_path / "values", format="peft")
    index = json.loads((tmp_path / "values" / "index.json").read_text())
    assert {one["rank"] for one in index["adapters"]} == {3}


@pytest.mark.short("torch")
def test_an_rslora_is_one_rank_in_all_layers(tmp_path):
    ids = {"task": "qa", "language": None}
    for number, (query, is_one) in enumerate([({"query": 4}, False), (None, True)]):
        options = {"rank": 8, "alpha": 3.0, "scale": "sqrt", "layer_ranks": query}
        model = gemma(targets=["query", "ffw_linear"], **options)
        keras_flix.export_lora(model, ids, tmp_path / str(number))
        text = (tmp_path / str(number) / "adapter_config.json").read_text()
        assert json.loads(text)["use_rslora"] is is_one


@pytest.mark.short("torch")
def test_reports_take_the_ranks_of_layers():
    model = adapted()
    ranks = effective_rank(model)
    np.testing.assert_array_equal(ranks.layer_ranks["task"], [[3, 1]] * 3)
    np.testing.assert_array_equal(
        ranks.layer_ranks["language"], [[3, 4], [3, 2], [3, 2]]
    )
    assert (ranks.used["task"] <= 1).all() and (ranks.used["task"][:, 1] == 1).all()
    delta = model.get_layer("head").kernel_delta({"task": "qa", "language": None})
    norm = update_norms(model).norms["task"][0, 1]
    assert norm == pytest.approx(np.linalg.norm(to_numpy(delta)), rel=1e-5)
    lines = []
    keras_flix.flix_summary(model, print_fn=lines.append)
    assert any("language: 3 values of rank 2 to 4" in line for line in lines)


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "ranks, error",
    [
        ({"hiden": 2}, "which matches none of them. The nearest"),
        ({"hidden": 7}, "must be at most 6"),
        ({"hidden": 1, "hid.*": 2}, "Received: 1 and 2, by layer_ranks"),
        ({"hidden": {"tsk": 2}}, "The nearest is 'task'"),
        ({"hidden": {"task": {"qa": 2}}}, "must be one number for all values"),
        ({"hidden": 1.5}, "must be an integer"),
        (3, "must be a dict from a layer's name"),
    ],
)
def test_wrong_ranks_change_nothing(ranks, error):
    model = make_mlp()
    paths = [v.path for v in model.variables]
    with pytest.raises(ValueError, match=error):
        keras_flix.enable_flix(
            model, [TASK, LANGUAGE], rank=2, targets="all-linear", layer_ranks=ranks
        )
    assert [v.path for v in model.variables] == paths


@pytest.mark.short("torch")
def test_a_rank_of_a_feature_that_a_layer_lacks():
    task = Feature("task", FEATURES["task"], targets=["head"])
    with pytest.raises(ValueError, match="of a feature that has adapter weights there"):
        keras_flix.enable_flix(
            make_mlp(),
            [task, LANGUAGE],
            targets="all-linear",
            layer_ranks={"hidden": {"task": 2}},
        )
    model = keras_flix.enable_flix(
        make_mlp(), [task, LANGUAGE], targets=["hidden"], layer_ranks={"hidden": 3}
    )
    assert model._adaptation.ranks == {"language": {"hidden": 3}}
