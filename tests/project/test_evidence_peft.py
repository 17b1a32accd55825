"""The PEFT arms of the evidence: the same base, training and scores as Keras'."""

import doctest
import importlib
import itertools

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import make_backbone, to_numpy

import keras_flix

if keras.config.backend() != "torch":
    reason = "the PEFT arms are PyTorch models on any backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)
for name in ("transformers", "peft"):
    pytest.importorskip(name, reason=f"{name} is not installed (extra `evidence`)")

torch = pytest.importorskip("torch", reason="extra `torch`")
peft_arms, torch_gemma, torch_training = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("quality.peft_arms", "shared.torch_gemma", "quality.torch_training")
)

VOCABULARY, STEPS, BATCH, LENGTH = 40, 12, 6, 8
LAYERS = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/attention_output": "self_attn.o_proj",
    "ffw_gating": "mlp.gate_proj",
    "ffw_gating_2": "mlp.up_proj",
    "ffw_linear": "mlp.down_proj",
}
"""What Keras' layers are called in transformers."""


def make_base(**options):
    """A tiny Gemma whose weights are all random, those of its norms too."""
    keras.utils.set_random_seed(0)
    # heads * head_dim is not hidden_dim, and there are two key and value heads.
    backbone = make_backbone(VOCABULARY, **options)
    generator = np.random.default_rng(0)
    for variable in backbone.weights:
        spread = generator.normal(size=variable.shape) * 0.3
        variable.assign(to_numpy(variable) * 2 + spread)
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Keras base, and where its export lies."""
    model = make_base()
    return model, peft_arms.export_base(model, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data():
    """`x`, `y` and weights: half a prompt, then labels, then padding."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(3, VOCABULARY, (STEPS * BATCH, LENGTH + 1))
    lengths = generator.integers(5, LENGTH + 1, STEPS * BATCH)[:, None]
    positions = np.arange(LENGTH)
    x = {
        "token_ids": tokens[:, :-1].astype("int32"),
        "padding_mask": (positions < lengths).astype("int32"),
    }
    weight = (positions >= 3) & (positions < lengths)
    return x, tokens[:, 1:].astype("int32"), weight.astype("float32")


def head(data, count=BATCH):
    """The first rows."""
    x, y, weight = data
    return {name: array[:count] for name, array in x.items()}, y[:count], weight[:count]


def keras_lora(model, rank):
    """The base's copy, adapted by a feature that is always active."""
    copy = make_base()
    copy.set_weights(model.get_weights())
    shared = [keras_flix.Feature("shared", always=True)]
    return keras_flix.enable_flix(copy, shared, rank=rank, targets="all-linear")


def give_tables(peft_model, flix_model):
    """Copies PEFT's initial tables into an adapted Keras model."""
    state = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    for variable in flix_model.trainable_variables:
        block, _, rest = variable.path.partition("/")
        layer, _, table = rest.rpartition("/flix_shared_")
        name = (
            f"base_model.model.model.layers.{block.removeprefix('decoder_block_')}."
            f"{LAYERS[layer]}.lora_{table.upper()}.default.weight"
        )
        variable.assign(state.pop(name).detach().numpy().T[None])
    assert state == {}


def test_the_exported_base_computes_the_same_logits(base, data):
    model, directory = base
    loaded = peft_arms.load_base(directory)
    x, _, _ = head(data)
    assert torch_gemma.logits_difference(model, loaded, x) < 1e-4
    assert peft_arms.logits_agree(model, loaded)
    with torch.no_grad():
        loaded.model.layers[1].self_attn.k_proj.weight[-1] *= 1.5
    assert not peft_arms.logits_agree(model, loaded)


@pytest.mark.parametrize(
    "option, received",
    [
        ({"use_post_ffw_norm": True}, "use_post_ffw_norm=True"),
        ({"final_logit_soft_cap": 30.0}, "final_logit_soft_cap=30.0"),
    ],
)
def test_another_gemma_is_refused(option, received, tmp_path):
    with pytest.raises(ValueError, match=f"first generation. Received: {received}"):
        peft_arms.export_base(make_base(**option), tmp_path)


def test_the_loss_is_that_of_keras(base, data):
    model, directory = base
    x, y, weight = head(data)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    expected = model.test_on_batch(x, y, sample_weight=weight)
    adapted = peft_arms.adapt(directory, "lora", rank=2, seed=0)
    losses = peft_arms.train(
        adapted, x, y, weight, learning_rate=0.1, steps=1, batch_size=BATCH, seed=0
    )
    assert losses == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_learning_rate_is_that_of_keras(warmup):
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=0.3,
        warmup_steps=warmup,
        decay_steps=30 - warmup,
    )
    rates = [
        torch_training.learning_rate_at(step, peak=0.3, steps=30, warmup=warmup)
        for step in range(31)
    ]
    expected = [float(schedule(step)) for step in range(31)]
    np.testing.assert_allclose(rates, expected, atol=1e-7)


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_peft_lora_trains_as_a_feature_that_is_always_active(base, data, clip):
    """Step by step: so loss, order, clipping, Adam and learning rate are Keras'."""
    model, directory = base
    x, y, weight = data
    # Labels weigh little, so that Adam's epsilon counts.
    weight = weight * 1e-3
    adapted = peft_arms.adapt(directory, "lora", rank=2, seed=0)
    flix = keras_lora(model, rank=2)
    give_tables(adapted, flix)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=0.05,
        warmup_steps=STEPS // 10,
        decay_steps=STEPS - STEPS // 10,
    )
    flix.compile(
        optimizer=keras.optimizers.Adam(schedule, global_clipnorm=clip * 1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    expected = []
    for rows in np.split(np.arange(STEPS * BATCH), STEPS):
        batch = {name: array[rows] for name, array in x.items()}
        loss = flix.train_on_batch(batch, y[rows], sample_weight=weight[rows])
        expected.append(float(loss))
    losses = peft_arms.train(
        adapted,
        x,
        y,
        weight,
        learning_rate=0.05,
        steps=STEPS,
        batch_size=BATCH,
        seed=0,
        clip=clip * 1e-3,
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    ours = to_numpy(flix(head(data)[0]))
    theirs = adapted(**torch_gemma.integers(head(data)[0])).logits.detach().numpy()
    real = head(data)[0]["padding_mask"].astype(bool)
    np.testing.assert_allclose(theirs[real], ours[real], atol=1e-3)


def test_sizes_are_those_of_the_same_rank(base):
    model, directory = base
    flix = keras_flix.flix_summary(keras_lora(model, rank=3), print_fn=None)
    lora = peft_arms.facts(peft_arms.adapt(directory, "lora", rank=3, seed=0))
    assert lora["trainable_parameters"] == flix.trainable
    assert lora["frozen_parameters"] == flix.total - flix.trainable
    poly = peft_arms.facts(
        peft_arms.adapt(directory, "poly", rank=3, seed=0, n_tasks=5, n_skills=2)
    )
    # Two skills of that size, and a router of 5 x 2 numbers in each of 14 layers.
    assert poly["trainable_parameters"] == 2 * flix.trainable + 14 * 5 * 2
    assert set(poly["versions"]) == {"torch", "transformers", "peft"}


def repeated(data):
    """The first batch in every step."""
    x, y, weight = head(data)
    x = {name: np.tile(array, (STEPS, 1)) for name, array in x.items()}
    return x, np.tile(y, (STEPS, 1)), np.tile(weight, (STEPS, 1))


OPTIONS = {"learning_rate": 0.1, "steps": STEPS, "batch_size": BATCH, "seed": 0}


@pytest.mark.parametrize("kind", ["lora", "poly"])
def test_training_lowers_the_loss_and_leaves_the_base(base, data, kind):
    _, directory = base
    tasks = np.tile(np.arange(BATCH) % 3, STEPS) if kind == "poly" else None
    adapted = peft_arms.adapt(directory, kind, rank=2, seed=0, n_tasks=3)
    frozen = {
        name: p.detach().clone()
        for name, p in adapted.named_parameters()
        if not p.requires_grad
    }
    state = torch.get_rng_state()
    losses = peft_arms.train(adapted, *repeated(data), task_ids=tasks, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[-1] < 0.7 * losses[0]
    assert not adapted.training
    after = dict(adapted.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_poly_routes_by_task(base, data):
    _, directory = base
    tasks = np.tile(np.arange(BATCH) % 3, STEPS)
    trained = peft_arms.train_peft(
        directory, "poly", *repeated(data), rank=2, n_tasks=4, task_ids=tasks, **OPTIONS
    )
    inputs = torch_gemma.integers(head(data, 1)[0])
    inputs = {name: tensor.repeat(4, 1) for name, tensor in inputs.items()}
    with torch.inference_mode():
        logits = trained(**inputs, task_ids=torch.arange(4)).logits
    for a, b in itertools.combinations(logits, 2):
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "poly"])
def test_a_seed_fixes_the_result(base, data, kind):
    _, directory = base
    x, y, weight = head(data)
    tasks = np.arange(BATCH) if kind == "poly" else None
    options = {"learning_rate": 0.1, "steps": 3, "batch_size": 2, "task_ids": tasks}

    def tables(seed):
        model = peft_arms.train_peft(
            directory, kind, x, y, weight, rank=2, seed=seed, **options
        )
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(tables(0), tables(0))
    assert not torch.equal(tables(0), tables(1))


class Echo(torch.nn.Module):
    """Finds that the next token is the present one."""

    def forward(self, input_ids, attention_mask, use_cache):
        logits = torch.nn.functional.one_hot(input_ids, VOCABULARY)
        return type("Output", (), {"logits": logits * attention_mask[..., None]})


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_hits_are_examples_whose_weighted_labels_are_all_found(batch_size):
    tokens = np.array([[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 6, 7]])
    labels = np.array([[5, 6, 7], [9, 6, 7], [5, 6, 9], [5, 9, 9]])
    weight = np.array([[1, 1, 1], [0, 0.5, 1], [0, 1, 1], [2, 0, 0]])
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    found = peft_arms.hits(Echo(), x, labels, weight, batch_size=batch_size)
    assert found.dtype == bool
    assert found.tolist() == [True, True, False, True]


def test_hits_of_a_trained_model_are_those_of_keras(base, data):
    model, directory = base
    x, y, weight = data
    # Every other example is right: its label is what the base itself finds.
    own = to_numpy(model(x)).argmax(-1)
    y = np.where((np.arange(len(y)) % 2 == 0)[:, None], own, y)
    adapted = peft_arms.adapt(directory, "lora", rank=2, seed=0)
    expected = ((own == y) | (weight == 0)).all(-1)
    assert 0 < expected.sum() < len(y)
    found = peft_arms.hits(adapted, x, y, weight, batch_size=7)
    np.testing.assert_array_equal(found, expected)


def test_errors_say_what_is_required(base, data):
    _, directory = base
    x, y, weight = head(data)
    lora = peft_arms.adapt(directory, "lora", rank=2, seed=0)
    poly = peft_arms.adapt(directory, "poly", rank=2, seed=0, n_tasks=3)
    tasks = np.zeros(BATCH, "int32")

    def train(model=lora, weight=weight, steps=2, **options):
        options = {"learning_rate": 0.1, "batch_size": 3, "seed": 0, **options}
        peft_arms.train(model, x, y, weight, steps=steps, **options)

    for options, message in [
        ({"steps": 3}, "steps \\* batch_size in number. Received: 6 examples, steps=3"),
        ({"warmup": 3}, "part of the steps. Received: warmup=3, steps=2"),
        ({"weight": weight[:, :-1]}, "must have one shape"),
        ({"task_ids": tasks}, "must not be given"),
        ({"model": poly}, "must be given: Poly needs them"),
        ({"model": poly, "task_ids": tasks - 1}, "0 to 2 for each of 6 .* from -1"),
        ({"model": poly, "task_ids": tasks + 3}, "0 to 2 for each of 6 .* to 3"),
        ({"model": poly, "task_ids": tasks[1:]}, "shape \\(5,\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(**options)
    with pytest.raises(ValueError, match="'lora' or 'poly'. Received: kind='loha'"):
        peft_arms.adapt(directory, "loha", rank=2, seed=0)
    with pytest.raises(ValueError, match="label of non-zero weight. Received: 6"):
        peft_arms.hits(lora, x, y, weight * 0)
    with pytest.raises(ImportError, match="without 'no_such_package'.*Run: pip"):
        torch_gemma.optional("no_such_package")


@pytest.mark.parametrize("module", [peft_arms, torch_gemma, torch_training])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0
