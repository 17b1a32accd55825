"""One adapter per expert, `experts="each"`, and ranks of experts, wherever these go."""

import copy

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.layers.expert_product import expert_product

pytestmark = pytest.mark.eager
ONE = {"task": "qa", "language": "sw"}
IDS = {"task": np.array([0, 2, -1], "int32"), "language": np.array([1, -1, 2], "int32")}
ABSENT = {name: None for name in FEATURES}
EXPERTS = 3
BLOCK = "transformer_layer_0/mixtral_sparse_moe_block/"
GATE = BLOCK + "experts/expert_feedforward_gate_dense"


def make(num_experts=EXPERTS):
    keras.utils.set_random_seed(0)
    return keras_hub.models.MixtralBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=12,
        num_experts=num_experts,
        top_k=2,
    )


def adapted(features=FEATURES, seed=0, **options):
    defaults = {"rank": 2, "targets": ["query"], "experts": "each", "seed": 0}
    model = keras_flix.enable_flix(make(), features, **{**defaults, **options})
    return randomize(model, seed=seed)


def inputs(**ids):
    tokens = np.random.default_rng(0).integers(1, 20, (3, 4)).astype("int32")
    return {"token_ids": tokens, "padding_mask": np.ones((3, 4), "int32"), **ids}


def outputs(model, ids=IDS):
    return to_numpy(model(inputs(**ids)))


def expert_kernels(model):
    return {p: x for p, x in model._adaptation.layers.items() if "/experts/" in p}


@pytest.fixture(scope="module")
def model():
    return adapted()


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("times", [None, 4])
def test_products_of_each_expert(own_inputs, batch, times):
    """In float64; rows of a batch that is there several times lie around it."""
    generator = np.random.default_rng(0)
    lead = (() if times is None else (times,)) + (2, 5)
    shape = (*((EXPERTS,) if own_inputs else ()), *lead, 6)
    x = generator.normal(size=shape)
    a = generator.normal(size=(2, 6, 4, EXPERTS))
    b = generator.normal(size=(2, 4, EXPERTS, 7))
    if batch is None:
        a[1], b[1] = a[0], b[0]
    given = (t.astype("float32") for t in (a.reshape(2, 6, -1), b.reshape(2, -1, 7)))
    given = [t if batch else t[0] for t in given]
    found = expert_product(x.astype("float32"), *given, EXPERTS, own_inputs)
    equation = ("e" if own_inputs else "") + "...bsd,bdre,brem->e...bsm"
    expected = np.einsum(equation, x, a, b)
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_mixed_batch_alone_and_merged():
    """With a feature for all examples and one that may have several values, too."""
    features = [
        keras_flix.Feature("task", FEATURES["task"], alpha=4.0),
        keras_flix.Feature("language", FEATURES["language"], multiple=True),
        keras_flix.Feature("always", always=True, rank=1),
    ]
    base = outputs(make(), {})
    model = keras_flix.enable_flix(
        make(), features, rank=2, targets=["query"], experts="each", expert_rank=3
    )
    ids = {
        "task": IDS["task"],
        "language": np.array([[1, 2], [-1, -1], [2, -1]], "int32"),
    }
    np.testing.assert_array_equal(outputs(model, ids), base)
    randomize(model)
    mixed = outputs(model, ids)
    assert (np.abs(mixed - base).max((1, 2)) > 0.05).all()
    combinations = [
        {"task": "qa", "language": ["sw", "yo"]},
        {"task": "list", "language": None},
        {"task": None, "language": ["yo"]},
    ]
    for i, combination in enumerate(combinations):
        example = {k: v[i : i + 1] for k, v in inputs().items()}
        own = {name: entry[i : i + 1] for name, entry in ids.items()}
        alone = to_numpy(model({**example, **own}))
        np.testing.assert_allclose(alone[0], mixed[i], atol=1e-5)
        merged = keras_flix.merge_features(model, combination)
        np.testing.assert_allclose(to_numpy(merged(example))[0], mixed[i], atol=1e-5)
    delta = to_numpy(expert_kernels(model)[GATE].kernel_delta(combinations[0]))
    assert delta.shape == (EXPERTS, 8, 12)
    assert (np.abs(delta[0] - delta[1:]) > 1e-3).any((1, 2)).all()
    assert (np.linalg.matrix_rank(delta, tol=1e-4) == 8).all()


def test_experts_start_at_the_base_with_different_numbers():
    model = keras_flix.enable_flix(make(), FEATURES, rank=2, experts="each", seed=0)
    a, b = map(to_numpy, expert_kernels(model)[GATE]._tables.variables["task"])
    assert (a.shape, b.shape) == ((3, 8, 2 * EXPERTS), (3, 2 * EXPERTS, 12))
    assert len(np.unique(a)) == a.size and not b.any()
    assert 0.2 < a.std() < 0.5


def test_ranks_of_experts():
    model = adapted(
        experts="shared", expert_rank={"task": 1}, rank={"task": 4, "language": 2}
    )
    shapes = {
        (path.rpartition("/")[2], name): pair[0].shape[-1]
        for path, layer in model._adaptation.layers.items()
        for name, pair in layer._tables.variables.items()
    }
    gate = GATE.rpartition("/")[2]
    assert shapes[gate, "task"] == 1 and shapes[gate, "language"] == 2
    assert shapes["query", "task"] == 4


@pytest.mark.parametrize("suffix", [".flix.safetensors", ".weights.h5", ".keras", None])
def test_files_and_copies(suffix, tmp_path):
    options = {"expert_rank": {"task": 1}, "alpha": 3.0}
    model = adapted(**options)
    path = str(tmp_path / f"x{suffix}")
    if suffix is None:
        loaded = copy.deepcopy(model)
    elif suffix == ".flix.safetensors":
        keras_flix.save_adapters(model, path)
        loaded = keras_flix.load_adapters(make(), path)
        again = keras_flix.load_adapters(adapted(seed=1, **options), path)
        np.testing.assert_array_equal(outputs(again), outputs(model))
    elif suffix == ".weights.h5":
        model.save_weights(path)
        loaded = adapted(seed=1, **options)
        loaded.load_weights(path)
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
    assert loaded._adaptation.ranks == model._adaptation.ranks
    assert loaded._adaptation.experts == model._adaptation.experts
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


@pytest.mark.short("torch")
def test_adapters_of_experts_of_another_kind_are_refused(tmp_path):
    """Also where all shapes are the same."""
    each, shared = adapted(rank=1), adapted(experts="shared", rank=1, expert_rank=3)
    path = tmp_path / "a.flix.safetensors"
    keras_flix.save_adapters(each, path)
    text = "Expected: 3 in .* Received: that of the feature in"
    for function in (keras_flix.load_adapters, keras_flix.update_from):
        options = {"values": {"task": ["qa"]}} if "update" in function.__name__ else {}
        with pytest.raises(ValueError, match=text):
            function(shared, path, **options)
    shared = adapted(experts="shared", rank=1)
    with pytest.raises(ValueError, match="experts='shared' in .* experts='each' in"):
        keras_flix.load_adapters(shared, path)
    with pytest.raises(ValueError, match="3 with adapters of their own at"):
        keras_flix.load_adapters(make(num_experts=4), path, check_base=False)
    other = adapted(experts="shared", rank=1, expert_rank=3)
    each.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="The features in a weights file must match"):
        other.load_weights(tmp_path / "a.weights.h5")


def deltas(model, **combination):
    found = [
        k.kernel_delta({**ABSENT, **combination})
        for k in expert_kernels(model).values()
    ]
    return [to_numpy(x) for x in found]


@pytest.mark.short("torch")
@pytest.mark.parametrize("expert_rank", [None, 4])
def test_values_come_and_go(model, expert_rank):
    """A blend is exact for each expert; the others stay, whatever the ranks become."""
    grown = adapted(expert_rank=expert_rank) if expert_rank else copy.deepcopy(model)
    model = copy.deepcopy(grown)
    keras_flix.add_values(
        grown, "language", ["rw"], init={"sw": 0.5, "yo": 0.5}, rank=4
    )
    keras_flix.add_values(grown, "language", ["lg"], init="yo")
    pairs = zip(deltas(model, language="sw"), deltas(model, language="yo"))
    if expert_rank is None:
        for delta, pair in zip(deltas(grown, language="rw"), pairs):
            np.testing.assert_allclose(delta, sum(pair) / 2, atol=1e-5)
    else:
        shape = expert_kernels(grown)[GATE]._tables.variables["language"][0].shape
        assert shape == (5, 8, 4 * EXPERTS)
    np.testing.assert_allclose(outputs(grown), outputs(model), atol=1e-5)
    for one, other in zip(deltas(grown, language="lg"), deltas(model, language="yo")):
        np.testing.assert_allclose(one, other, atol=1e-6)
    keras_flix.remove_values(grown, "language", ["rw"])
    copied = {**IDS, "language": np.array([1, -1, 3], "int32")}
    np.testing.assert_allclose(outputs(grown, copied), outputs(model), atol=1e-5)


@pytest.mark.short("torch")
def test_a_new_value_and_a_new_feature_start_without_effect(model):
    grown, before = copy.deepcopy(model), outputs(model)
    keras_flix.add_values(grown, "language", ["rw"])
    np.testing.assert_array_equal(outputs(grown), before)
    keras_flix.add_feature(grown, keras_flix.Feature("domain", ["news"]), rank=1)
    shape = expert_kernels(grown)[GATE]._tables.variables["domain"][1].shape
    assert shape == (1, EXPERTS, 12)
    ids = {**IDS, "domain": "news"}
    # Wider products round otherwise.
    np.testing.assert_allclose(outputs(grown, ids), before, atol=1e-5)
    a = to_numpy(expert_kernels(grown)[GATE]._tables.variables["language"][0])[-1]
    assert len(np.unique(a)) == a.size
    assert not any(x.any() for x in deltas(grown, language="rw", domain=None))


@pytest.mark.short("torch")
def test_updates_are_those_of_a_typical_expert(model):
    """Norms, products and spectra, by the mean of their squares."""
    tables = expert_kernels(model)[GATE]._tables
    factors = tables.factors("language")
    found = [
        to_numpy(expert_kernels(model)[GATE].kernel_delta({**ABSENT, "language": v}))
        for v in FEATURES["language"]
    ]
    squares = [[(x * y).sum() / EXPERTS for y in found] for x in found]
    np.testing.assert_allclose(factors.products(), squares, rtol=1e-4)
    np.testing.assert_allclose(factors.norms**2, np.diag(squares), rtol=1e-4)
    spectra = factors.singular_values()
    assert spectra.shape == (3, 2)
    np.testing.assert_allclose((spectra**2).sum(1), np.diag(squares), rtol=1e-4)
    ranks = keras_flix.analysis.effective_rank(model)
    assert ranks.energy_ranks["language"].max() <= 2


def state(model):
    return {v.path: to_numpy(v) for v in model.variables}


@pytest.mark.parametrize("lazy", [False, True])
def test_training_moves_the_values_of_the_batch(lazy):
    """No router, no base kernel; and each expert its own way."""
    model = keras_hub.models.MixtralCausalLM(backbone=make(), preprocessor=None)
    keras_flix.enable_flix(
        model, FEATURES, rank=2, targets=["query"], experts="each", seed=0
    )
    randomize(model)
    optimizer = keras_flix.LazyAdam(0.01) if lazy else keras.optimizers.SGD(1.0)
    model.compile(optimizer)
    before = state(model)
    model.train_on_batch(inputs(**IDS), np.ones((3, 4), "int32"))
    after = state(model)
    router = [p for p in before if "sparse_feedforward_gate_dense" in p]
    assert router
    for path, old in before.items():
        moved = after[path] != old
        if "/flix_" not in path:
            if path.startswith(("token_embedding", "transformer_layer")):
                assert not moved.any(), path
            continue
        active = IDS["task" if "flix_task" in path else "language"]
        rows = np.flatnonzero(moved.reshape(len(moved), -1).any(1))
        assert set(rows) == set(active[active >= 0]), path
        if path.startswith(GATE) and path.endswith("_b"):
            steps = (after[path] - old)[1 if "language" in path else 0]
            steps = steps.reshape(2, EXPERTS, -1)
            assert steps.any((0, 2)).sum() >= 2
            assert not np.allclose(steps[:, 0], steps[:, 1])


def test_rates_and_frozen_values():
    model = keras_hub.models.MixtralCausalLM(backbone=make(), preprocessor=None)
    keras_flix.enable_flix(
        model, FEATURES, rank=1, targets=["query"], experts="each", seed=0
    )
    randomize(model).compile(keras.optimizers.SGD(1.0))
    start = [to_numpy(v) for v in model.variables]
    found = []
    for factor in (1.0, 2.0):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        keras_flix.set_learning_rates(model, {"task": factor})
        keras_flix.set_trainable(model, {"task": ["qa"]})
        before = state(model)
        model.train_on_batch(inputs(**IDS), np.ones((3, 4), "int32"))
        found.append({p: x - before[p] for p, x in state(model).items()})
    one, two = (
        {p: x for p, x in steps.items() if x.any() and "iteration" not in p}
        for steps in found
    )
    assert one.keys() == two.keys() and any(p.startswith(GATE) for p in one)
    for path, step in one.items():
        assert "flix_task" in path and not step[1:].any(), path
        np.testing.assert_allclose(two[path], 2 * step, rtol=1e-2, atol=1e-6)


def test_beams_keep_their_examples():
    model = keras_hub.models.MixtralCausalLM(backbone=make(), preprocessor=None)
    keras_flix.enable_flix(model, FEATURES, rank=2, experts="each")
    randomize(model, scale=0.8)
    model.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=2), run_eagerly=True)
    own = inputs()
    own["padding_mask"][:, 2:] = 0

    def generate(ids):
        found = model.generate({**own, **ids}, stop_token_ids=None)["token_ids"]
        return to_numpy(found)

    mixed = generate(IDS)
    alone = [
        generate({name: np.full(3, ids[i], "int32") for name, ids in IDS.items()})[i]
        for i in range(3)
    ]
    np.testing.assert_array_equal(mixed, alone)


@pytest.mark.support("Paths", "int8 base: experts")
@pytest.mark.short("torch")
def test_a_quantized_model_keeps_its_experts_in_floats():
    model = make()
    model.quantize("int8", filters=lambda x: not isinstance(x, keras.layers.Embedding))
    base = outputs(model, {})
    keras_flix.enable_flix(
        model, FEATURES, rank=2, targets="all-linear", experts="each"
    )
    np.testing.assert_array_equal(outputs(model, ABSENT), base)
    mixed = outputs(randomize(model))
    for i in range(3):
        one = {name: np.full(3, ids[i], "int32") for name, ids in IDS.items()}
        np.testing.assert_allclose(outputs(model, one)[i], mixed[i], atol=1e-5)


@pytest.mark.short("torch")
def test_no_matrix_of_the_kernels_size_is_made_per_example():
    """Of a batch, an expert's update costs its factors and its outputs."""
    import torch

    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                sizes.append(found.numel())
            return found

    x = torch.ones((8, 4, 64))
    a, b = torch.ones((8, 64, 2 * EXPERTS)), torch.ones((8, 2 * EXPERTS, 96))
    with Sizes():
        expert_product(x, a, b, EXPERTS)
        expert_product(torch.ones((EXPERTS, 8, 4, 64)), a, b, EXPERTS, own_inputs=True)
    assert sizes and max(sizes) < 8 * EXPERTS * 64 * 96 / 4


@pytest.mark.short("torch")
def test_the_summary_and_the_command_tell_of_them(model, tmp_path, capsys):
    from keras_flix.command_line.main import main

    lines = []
    model = adapted(expert_rank={"task": 1})
    summary = keras_flix.flix_summary(model, print_fn=lines.append)
    assert "Each expert has adapters of its own: 9 in 3 kernels." in lines
    assert any("task: 3 values of rank 1 to 2" in line for line in lines)
    sizes = (8 + 12) + (8 + 12) + (12 + 8)
    assert summary.parameters["task"] == 3 * (sizes * EXPERTS + 2 * (8 + 8))
    paths = [str(tmp_path / f"{name}.flix.safetensors") for name in "ab"]
    keras_flix.save_adapters(model, paths[0])
    keras_flix.save_adapters(adapted(expert_rank=1, experts="shared"), paths[1])
    assert main(["inspect", paths[0]]) == 0
    shown = capsys.readouterr().out
    assert "each has adapters of its own, in 3 kernels" in shown
    assert "of rank 1 in 3 layers" in shown
    assert main(["diff", *paths]) == 1
    shown = capsys.readouterr().out
    assert f"layer {GATE}: adapters of 3 experts -> one adapter" in shown
    assert f"language: rank as in others -> 1 in layer {GATE}" in shown
    assert main(["diff", paths[0], paths[0]]) == 0


@pytest.mark.short("torch")
def test_wrong_ranks_of_experts_change_nothing():
    cases = [
        ({"experts": None, "expert_rank": 2}, "must come with experts"),
        ({"expert_rank": 9}, "must be at most 8"),
        ({"expert_rank": 0}, "must be at least 1"),
        ({"expert_rank": {"tasks": 1}}, "must name features of the model"),
        ({"expert_rank": {"task": {"qa": 1}}}, "must be one number for all values"),
        ({"layer_ranks": {".*experts.*": 1}, "expert_rank": 2}, "one rank of each"),
    ]
    model = make()
    kinds = {id(v): v.path for v in model.variables}
    for options, text in cases:
        options = {"rank": 2, "experts": "each", **options}
        with pytest.raises(ValueError, match=text):
            keras_flix.enable_flix(model, FEATURES, **options)
        assert {id(v): v.path for v in model.variables} == kinds
