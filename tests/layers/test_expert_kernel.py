"""Kernels of experts: one update for all experts of a layer, wherever adapters go.

All families with experts are compared with merged models in tests/families.
"""

import copy

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from keras import ops

import keras_flix
from keras_flix import _compat
from keras_flix.layers.expert_kernel import ExpertKernel, has_experts

pytestmark = pytest.mark.eager
ONE = {"task": "qa", "language": "sw"}
IDS = {"task": np.array([0, 2, -1], "int32"), "language": np.array([1, -1, 2], "int32")}
KERNELS = [
    "transformer_layer_0/mixtral_sparse_moe_block/experts/expert_feedforward_" + name
    for name in ("gate_dense", "intermediate_dense", "output_dense")
]


def make(layers=1):
    keras.utils.set_random_seed(0)
    return keras_hub.models.MixtralBackbone(
        vocabulary_size=20,
        num_layers=layers,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=12,
        num_experts=3,
        top_k=2,
    )


def adapted(targets=("query",), seed=0, **options):
    options = {"rank": 2, "experts": "shared", "seed": 0, **options}
    model = keras_flix.enable_flix(make(), FEATURES, targets=list(targets), **options)
    return randomize(model, seed=seed)


def inputs(**ids):
    tokens = np.random.default_rng(0).integers(1, 20, (3, 4)).astype("int32")
    return {"token_ids": tokens, "padding_mask": np.ones((3, 4), "int32"), **ids}


def outputs(model, ids=IDS):
    return to_numpy(model(inputs(**ids)))


@pytest.fixture(scope="module")
def model():
    return adapted()


def test_products_of_experts():
    assert not has_experts("th,ehm->etm")
    assert has_experts("eti, eih -> eth")
    for equation in ("te,ehm->tm", "teh,ehm->etm", "th,ehm->tem", "th,hm->tm"):
        with pytest.raises(_compat.UnknownUse, match="by the kernels of experts"):
            has_experts(equation)


@pytest.mark.parametrize("equation", ["th,ehm->etm", "eth,ehm->etm"])
def test_the_formula(model, equation):
    """In float64, for tokens of all examples in one axis."""
    kernel = model._adaptation.layers[KERNELS[0]]
    shape = (3, 12, 8) if equation.startswith("e") else (12, 8)
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    product = np.zeros((3, 12, 12), "float32")
    found = []
    # The layer alone, within a routing of three examples.
    layer = kernel.holder()
    plain = layer.call
    object.__setattr__(
        layer,
        "call",
        lambda h: (
            found.append(kernel.add_update(ops.array(product), equation, x)) or plain(h)
        ),
    )
    try:
        outputs(model)
    finally:
        del layer.__dict__["call"]
    for i in range(3):
        delta = np.zeros((8, 12))
        for name, ids in IDS.items():
            if ids[i] >= 0:
                a, b = (to_numpy(v)[ids[i]] for v in kernel._tables.variables[name])
                delta += a.astype("float64") @ b.astype("float64")
        rows = slice(4 * i, 4 * i + 4)
        expected = np.broadcast_to(x[..., rows, :] @ delta, (3, 4, 12))
        np.testing.assert_allclose(to_numpy(found[0])[:, rows], expected, atol=1e-5)


def test_what_is_adapted(model):
    assert [path for path in model._adaptation.layers if "expert" in path] == KERNELS
    kernel = model._adaptation.layers[KERNELS[2]]
    assert (kernel.name, kernel.whole_shape) == (
        "expert_feedforward_output_dense",
        (3, 12, 8),
    )
    delta = to_numpy(kernel.kernel_delta(ONE))
    assert delta.shape == (3, 12, 8)
    np.testing.assert_array_equal(delta[0], delta[2])
    layer = kernel.holder()
    assert type(layer).__name__ == "MixtralMoeExperts"
    tables = {v.path for v in layer.trainable_variables}
    # As many parameters as one expert has, whatever the number of experts.
    assert f"{KERNELS[2]}/flix_task_a" in tables and len(tables) == 3 * 4
    summary = keras_flix.flix_summary(model, print_fn=None)
    assert summary.layers[KERNELS[2]] == (3, 12, 8)
    per_value = 2 * (2 * (8 + 12) + (12 + 8)) + 2 * (8 + 8)
    assert summary.parameters == {"task": 3 * per_value, "language": 3 * per_value}


@pytest.mark.short("torch")
def test_the_summary_tells_of_experts_that_are_left_out():
    lines = []
    keras_flix.flix_summary(adapted(experts=None), print_fn=lines.append)
    assert lines[-1] == (
        'The experts are left as they are: `enable_flix(..., experts="shared")` adapts '
        "them, too."
    )
    keras_flix.flix_summary(adapted(), print_fn=lines.append)
    assert lines.count(lines[0]) == 1 and "experts are" not in lines[-1]


@pytest.mark.short("torch")
def test_norms_are_those_of_one_expert(model):
    kernel = model._adaptation.layers[KERNELS[0]]
    base = to_numpy(kernel.kernel)
    assert kernel.kernel_norm() == pytest.approx(np.linalg.norm(base) / 3**0.5)
    norms = kernel._tables.factors("task").norms
    delta = to_numpy(kernel.kernel_delta({"task": "qa", "language": None}))
    assert norms[0] == pytest.approx(np.linalg.norm(delta[0]), rel=1e-5)


@pytest.mark.parametrize("suffix", [".flix.safetensors", ".weights.h5", ".keras", None])
def test_files_and_copies(model, suffix, tmp_path):
    """Also where Keras counts up the name of the layer around the experts."""
    path = str(tmp_path / f"x{suffix}")
    if suffix is None:
        loaded = copy.deepcopy(model)
    elif suffix == ".flix.safetensors":
        keras_flix.save_adapters(model, path)
        loaded = keras_flix.load_adapters(make(), path)
    elif suffix == ".weights.h5":
        model.save_weights(path)
        loaded = adapted(seed=1)
        loaded.load_weights(path)
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
    assert list(loaded._adaptation.layers) == list(model._adaptation.layers)
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


@pytest.mark.short("torch")
def test_weights_of_the_plain_model_leave_the_adapters(model, tmp_path):
    plain, path = make(), str(tmp_path / "plain.weights.h5")
    plain.set_weights([x * 2 for x in plain.get_weights()])
    plain.save_weights(path)
    loaded = adapted()
    loaded.load_weights(path)
    absent = {name: None for name in FEATURES}
    np.testing.assert_array_equal(outputs(loaded, absent), outputs(plain, {}))
    for ours, theirs in zip(loaded._adaptation.tables(), model._adaptation.tables()):
        np.testing.assert_array_equal(
            to_numpy(ours.variable), to_numpy(theirs.variable)
        )


@pytest.mark.short("torch")
def test_values_come_and_go(model):
    grown = copy.deepcopy(model)
    keras_flix.add_values(
        grown, "language", ["rw"], init={"sw": 0.5, "yo": 0.5}, rank=4
    )
    keras_flix.add_values(grown, "language", ["lg"], init="yo")
    half = [
        to_numpy(k.kernel_delta({"task": None, "language": "rw"}))
        for k in kernels(grown)
    ]
    for delta, kernel in zip(half, kernels(model)):
        both = [
            kernel.kernel_delta({"task": None, "language": x}) for x in ("sw", "yo")
        ]
        np.testing.assert_allclose(delta, sum(map(to_numpy, both)) / 2, atol=1e-5)
    keras_flix.remove_values(grown, "language", ["rw"])
    copied = {**IDS, "language": np.array([1, -1, 3], "int32")}
    np.testing.assert_allclose(outputs(grown, copied), outputs(model), atol=1e-5)


def kernels(model):
    layers = model._adaptation.layers.values()
    return [layer for layer in layers if isinstance(layer, ExpertKernel)]


@pytest.mark.short("torch")
def test_errors_change_nothing():
    class OtherExperts(keras.layers.Layer):
        __module__ = "keras_hub.made_up"

        def build(self, shape):
            self.kernels = self.add_weight(shape=(2, 8, 8), name="kernels")
            self.names = ["kernels"]

        def call(self, x):
            return ops.einsum("bd,edf->ebf", x, getattr(self, self.names[0]))[0]

    x = keras.Input((8,))
    hidden = keras.layers.Dense(8, name="hidden")(x)
    plain = keras.Model(x, hidden)
    other = keras.Model(x, OtherExperts(name="experts")(hidden))
    cases = [
        (
            make(),
            "all",
            "`experts` must be 'shared' (one adapter for all experts of a layer), "
            "'each' (one for each of them) or None. Received: experts='all'. Pass one "
            "of these.",
        ),
        (plain, "shared", "the model must have experts whose kernels are known"),
        (
            other,
            "shared",
            "Received: experts of type OtherExperts that do otherwise with "
            "'experts/kernels', in a layer of a newer KerasHub.",
        ),
    ]
    for model, experts, text in cases:
        kinds = [type(layer) for layer in _compat.flatten_layers(model)]
        with pytest.raises(ValueError) as error:
            keras_flix.enable_flix(
                model, FEATURES, rank=2, targets="all-linear", experts=experts
            )
        assert text in str(error.value)
        assert [type(layer) for layer in _compat.flatten_layers(model)] == kinds
        assert not any("flix" in v.path for v in model.variables)


@pytest.mark.short("torch")
def test_targets_that_name_experts():
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(make(), FEATURES, targets=["experts"])
    assert str(error.value).endswith(
        ' of type MixtralMoeExperts. Pass `experts="shared"` to adapt experts.'
    )


@pytest.mark.support("Paths", "int8 base: experts")
@pytest.mark.short("torch")
def test_a_quantized_model_keeps_its_experts_in_floats():
    model = make()
    model.quantize("int8", filters=lambda x: not isinstance(x, keras.layers.Embedding))
    base = outputs(model, {})
    keras_flix.enable_flix(
        model, FEATURES, rank=2, targets="all-linear", experts="shared"
    )
    absent = {name: None for name in FEATURES}
    np.testing.assert_array_equal(outputs(model, absent), base)
    randomize(model)
    mixed = outputs(model)
    for i in range(3):
        one = {name: np.full(3, ids[i], "int32") for name, ids in IDS.items()}
        np.testing.assert_allclose(outputs(model, one)[i], mixed[i], atol=1e-5)


def test_rematerialized_experts_train_alike():
    found = []
    for mode in (None, "list_of_layers"):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode=mode, layer_names=["experts"]):
            model = make()
        task = keras_hub.models.MixtralCausalLM(backbone=model, preprocessor=None)
        keras_flix.enable_flix(task, FEATURES, rank=2, experts="shared", seed=0)
        randomize(task).compile(keras.optimizers.SGD(0.5))
        task.train_on_batch(inputs(**IDS), np.ones((3, 4), "int32"))
        found.append([to_numpy(v) for v in task.trainable_variables])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, plain, atol=1e-5)


def test_beams_keep_their_examples():
    model = keras_hub.models.MixtralCausalLM(backbone=make(), preprocessor=None)
    keras_flix.enable_flix(model, FEATURES, rank=2, experts="shared")
    randomize(model, scale=0.8)
    model.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=2), run_eagerly=True)
    own = inputs()
    own["padding_mask"][:, 2:] = 0

    def generate(ids):
        return to_numpy(
            model.generate({**own, **ids}, stop_token_ids=None)["token_ids"]
        )

    mixed = generate(IDS)
    alone = [
        generate({name: np.full(3, ids[i], "int32") for name, ids in IDS.items()})[i]
        for i in range(3)
    ]
    np.testing.assert_array_equal(mixed, alone)


def test_experts_belong_to_the_features_that_state_no_targets(tmp_path):
    language = keras_flix.Feature("language", FEATURES["language"], targets=["query"])
    task = keras_flix.Feature("task", FEATURES["task"], alpha=4.0, scale="sqrt")
    model = keras_flix.enable_flix(
        make(), [task, language], rank=2, targets=["key"], experts="shared", seed=0
    )
    randomize(model)
    layers = model._adaptation.layers
    found = {f: list(model._adaptation.layers_of(f)) for f in ("task", "language")}
    assert found["language"] == [p for p in layers if p.endswith("/query")]
    assert found["task"] == [p for p in layers if not p.endswith("/query")]
    assert set(KERNELS) < set(found["task"])
    expected = outputs(model)
    for i in range(3):
        example = {k: v[i : i + 1] for k, v in inputs().items()}
        ids = {name: int(entry[i]) for name, entry in IDS.items()}
        merged = keras_flix.merge_features(model, ids)
        np.testing.assert_allclose(to_numpy(merged(example))[0], expected[i], atol=1e-5)
    keras_flix.save_adapters(model, tmp_path / "a.flix.safetensors")
    loaded = keras_flix.load_adapters(make(), tmp_path / "a.flix.safetensors")
    np.testing.assert_array_equal(outputs(loaded), expected)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(again), expected, atol=1e-6)


def test_experts_of_no_feature_are_refused():
    features = [
        keras_flix.Feature(name, values, targets=["query"])
        for name, values in FEATURES.items()
    ]
    with pytest.raises(ValueError, match="for the features that state no targets"):
        keras_flix.enable_flix(make(), features, experts="shared")
