"""Every family of KerasHub: what is adapted, that it is exact, and that it trains.

A test per family and per choice of targets; the reference is the plain model that
`merge_features` makes of each example's combination.
"""

import dataclasses

import keras
import keras_hub
import numpy as np
import pytest
from families import decoders, encoders, seq_2_seq, vision
from families.not_covered import NOT_COVERED
from helpers.gemma import FEATURES, randomize, to_numpy
from keras import tree

import keras_flix
from keras_flix.models.adapted.trained_base import heads

FAMILIES = [
    *decoders.FAMILIES,
    *encoders.FAMILIES,
    *seq_2_seq.FAMILIES,
    *vision.FAMILIES,
]
REPRESENTATIVE = {"Gemma", "Llama", "Qwen3Moe", "GPT2", "Bert", "ViT"}
"""Families that run in all ways on every backend with `--full`."""
IN_ALL_WAYS = "Gemma"
"""The family that does so without it, too."""
DAILY = {"Gemma", "Bert", "ViT"}
"""Families in the daily loop; all others are marked slow."""
MECHANISMS = {
    "Gemma": "projections by einsums",
    "Gemma4": "kernels that are used without their layers, and inputs per layer",
    "Qwen3Moe": "experts",
    "Qwen3_5": "linear attention",
    "RWKV7": "a recurrence",
    "Bert": "Keras' own attention, and heads on all tokens or on the first",
    "Albert": "one layer for several depths",
    "DebertaV3": "projections of what is the same for all examples",
    "Bart": "attention from one text to another",
    "ViT": "images",
    "SwinTransformer": "windows, which multiply the rows of a batch",
    "CLIP": "two towers",
}
"""What adapters meet, by the family that stands for it where models are compiled."""
CACHES = {
    "Gemma": ("jax", "tensorflow", "torch"),
    "Gemma4": ("torch",),
    "Qwen3_5": ("jax", "torch"),
    "RWKV7": ("tensorflow", "torch"),
}
"""Families of all kinds of caches, and where they generate in the short form."""
BACKEND = keras.config.backend()
TASKS = {
    "causal_lm": "causal LM",
    "seq_2_seq_lm": "seq2seq LM",
    "text_classifier": "text classifier",
    "text_embedder": "text embedder",
    "image_classifier": "image classifier",
    "masked_lm": "masked LM",
}
FAST_TASKS = ("text_classifier",)
IDS = {
    "task": np.array([0, -1, 2], "int32"),
    "language": np.array([1, 2, -1], "int32"),
}
ALL_EXAMPLES = [0, 1, 2]
OF_ALL_FEATURES = [0]
"""The one of `IDS` that has a value of every feature."""
RANK = 2
TOLERANCE = 3e-5
"""Of the largest output: rounding errors, which sharp attention makes larger."""
LARGER = {"Gemma4CausalLM": 2}
"""By class, times `TOLERANCE`: 3.4e-5 on JAX, and 3e-7 in float64."""
MINIMAL_STEP = 1e-5
"""Steps of gradient descent that are more than rounding errors."""


def marks(family, section="Families", row=None, *verdict, fast=True, kind=None):
    support = pytest.mark.support(section, row or family.name, *verdict)
    slow = [] if fast and family.name in DAILY else [pytest.mark.slow]
    if not kind or family.name == IN_ALL_WAYS:
        again = [pytest.mark.eager] if kind == "all-linear" else []
        return [support, *slow, *again]
    if family.name not in MECHANISMS:
        return [support, *slow, pytest.mark.short("torch")]
    # Where models are compiled, one test per family, and other ones on each backend.
    pairs = pytest.mark.pairs("families", family=family.name, kind=kind)
    return [support, *slow, pairs, pytest.mark.eager]


def in_full(family):
    """Whether a family runs in all ways on this backend.

    All do on PyTorch, where nothing is compiled.
    """
    return BACKEND == "torch" or family.name in REPRESENTATIVE


def merged_examples(family, config):
    """Those that merged models are made for: all, where a family runs in all ways.

    What example belongs to which value is no matter of families.
    """
    in_all_ways = REPRESENTATIVE if BACKEND == "torch" else {IN_ALL_WAYS}
    if config.getoption("--full") or family.name in in_all_ways:
        return ALL_EXAMPLES
    return OF_ALL_FEATURES


def eagerly(family):
    """Whether to trace nothing: TensorFlow takes minutes for all families."""
    return BACKEND == "tensorflow" and not in_full(family)


def without_zeros(model):
    """Gives numbers to weights that start as zeros, behind which layers hide."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if not to_numpy(variable).any():
            variable.assign(generator.normal(size=variable.shape) * 0.2)
    return model


def as_dict(inputs):
    """A model's own inputs as the dict that takes feature entries."""
    return inputs if isinstance(inputs, dict) else {"images": inputs}


def some_rows(inputs, rows):
    return {name: value[rows] for name, value in inputs.items()}


@dataclasses.dataclass
class Adapted:
    """An adapted model with random tables, and a batch of its own inputs."""

    model: keras.Model
    own: dict
    rows: object
    start: list

    @classmethod
    def make(cls, family, model, own, targets=None, experts=None):
        without_zeros(model)
        keras_flix.enable_flix(
            model, FEATURES, rank=RANK, targets=targets, experts=experts
        )
        randomize(model, scale=0.5)
        model.run_eagerly = eagerly(family)
        return cls(model, own, family.rows, [to_numpy(v) for v in model.weights])

    @property
    def layers(self):
        return self.model._adaptation.layers

    def reset(self):
        for variable, value in zip(self.model.weights, self.start):
            variable.assign(value)

    def outputs(self, model=None, own=None, ids=None):
        """What a model makes of a batch: a list of arrays, example by example."""
        own = self.own if own is None else own
        model = self.model if model is None else model
        adapted = model is self.model
        inputs = {**own, **(ids or {})} if adapted else plain_inputs(model, own)
        found = tree.flatten(self.rows(model.predict_on_batch(inputs)))
        return [to_numpy(x).astype("float64") for x in found]

    def adapted_outputs(self, ids=IDS):
        return self.outputs(ids=ids)

    def base_outputs(self):
        absent = {name: np.full(3, -1, "int32") for name in FEATURES}
        return self.outputs(ids=absent)

    def merged_outputs(self, examples):
        """Some examples by merged models of their combinations, in the same batch."""
        merged, expected = None, None
        for i in examples:
            combination = {name: int(ids[i]) for name, ids in IDS.items()}
            plain = keras_flix.merge_features(self.model, combination)
            if merged is None:
                merged = plain
            # In one model, so that its function is compiled once.
            for target, source in zip(merged.weights, plain.weights, strict=True):
                target.assign(source)
            found = self.outputs(merged)
            expected = expected or [[] for _ in found]
            for chosen, x in zip(expected, found):
                chosen.append(x[i])
        return [np.stack(chosen) for chosen in expected]


def plain_inputs(model, own):
    return own if isinstance(model.input, (dict, list)) else next(iter(own.values()))


def difference(found, expected, whole=None):
    """Per example, how far outputs are apart, relative to those of the whole batch."""
    apart = [
        np.abs(a - b).reshape(len(a), -1).max(axis=1) / np.abs(x).max()
        for a, b, x in zip(found, expected, whole or expected, strict=True)
    ]
    return np.max(apart, axis=0)


def check_mixed_batch(adapted, alone=True, examples=ALL_EXAMPLES):
    """A mixed batch = each example alone = the merged model of its combination.

    With merged models are compared the `examples` only: to make one takes longest.
    """
    mixed = adapted.adapted_outputs()
    effect = difference(mixed, adapted.base_outputs())
    assert (effect > 5e-3).all(), effect
    chosen = [x[examples] for x in mixed]
    error = difference(chosen, adapted.merged_outputs(examples), mixed)
    bound = TOLERANCE * LARGER.get(type(adapted.model).__name__, 1)
    assert (error < bound * np.maximum(effect[examples], 1)).all(), error
    if not alone:
        return
    for i in range(3):
        rows = slice(i, i + 1)
        alone = adapted.outputs(
            own=some_rows(adapted.own, rows), ids=some_rows(IDS, rows)
        )
        error = difference(alone, [x[rows] for x in mixed])
        assert error < TOLERANCE, (i, error)


def check_training_step(adapted, labels=None):
    """It moves the tables of the values in the batch, a head, and nothing else.

    By gradients that are far from zero, so that every layer ran and mattered.
    """
    model = adapted.model
    optimizer = keras.optimizers.SGD(100.0)
    if labels is None:
        outputs = model.predict_on_batch({**adapted.own, **IDS})
        generator = np.random.default_rng(0)
        labels = tree.map_structure(lambda x: generator.normal(size=x.shape), outputs)
        model.compile(optimizer, loss="mse", run_eagerly=model.run_eagerly)
    else:
        model.compile(optimizer, run_eagerly=model.run_eagerly)
    model.train_on_batch({**adapted.own, **IDS}, labels)
    active = {name: {int(i) for i in ids if i >= 0} for name, ids in IDS.items()}
    after = {id(v): to_numpy(v) for v in model.weights}
    before = {id(v): x for v, x in zip(model.weights, adapted.start, strict=True)}
    tables = set()
    for path, layer in adapted.layers.items():
        for feature, pair in layer._tables.variables.items():
            for variable in pair:
                tables.add(id(variable))
                step = np.abs(after[id(variable)] - before[id(variable)])
                step = step.reshape(len(step), -1).max(axis=1)
                assert set(np.flatnonzero(step)) == active[feature], path
                assert step.max() > MINIMAL_STEP, (path, step)
    for variable in model.weights:
        if id(variable) not in tables and variable.trainable:
            assert (after[id(variable)] != before[id(variable)]).any(), variable.path
        elif id(variable) not in tables:
            np.testing.assert_array_equal(
                after[id(variable)], before[id(variable)], err_msg=variable.path
            )
    adapted.reset()


def adds_to_default(family):
    return family.all_linear | family.experts


def few_are_left_out(family):
    """Whether models with the default targets alone compute with `--full` only."""
    return (
        BACKEND == "torch"
        and family.name not in REPRESENTATIVE
        and bool(adds_to_default(family))
    )


def names(layers):
    return {layer.name for layer in layers.values()}


CASES = [
    pytest.param(
        (family, targets),
        id=f"{family.name}-{name}",
        marks=[
            # All layers are these and others. The first such mark counts.
            *[pytest.mark.short()] * (targets is None and few_are_left_out(family)),
            *marks(family, fast=targets is None, kind=name),
        ],
    )
    for family in FAMILIES
    for name, targets, adds in [
        ("default", None, family.default),
        ("all-linear", "all-linear", family.all_linear | family.experts),
    ]
    # Where time is short, all layers at once.
    if adds and (in_full(family) or targets or not adds_to_default(family))
]
NAMED_ONLY = [
    pytest.param(family, id=family.name, marks=marks(family))
    for family in FAMILIES
    if not in_full(family) and family.default and adds_to_default(family)
]
REFUSED = [
    pytest.param(
        family,
        target,
        id=f"{family.name}-{target}",
        marks=marks(family, "Families", f"{family.name}, `{target}`", "refused"),
    )
    for family in FAMILIES
    for target in family.refused
]
TASK_CASES = [
    pytest.param(
        (family, kind),
        id=f"{family.name}-{kind}",
        marks=marks(family, "Tasks", TASKS[kind], fast=kind in FAST_TASKS, kind=kind),
    )
    for family in FAMILIES
    for kind in family.tasks
]
GENERATING = [
    pytest.param(
        family,
        id=family.name,
        marks=[
            pytest.mark.support("Tasks", "`generate` of causal LMs"),
            *([] if family.name == "Gemma" else [pytest.mark.slow]),
            pytest.mark.short(*CACHES.get(family.name, ["torch"])),
        ],
    )
    for family in decoders.FAMILIES
    if "causal_lm" in family.tasks
    # Where time is short, one of every kind of cache.
    if in_full(family) or family.name in CACHES
    # Without a preprocessor and images, KerasHub's own Gemma3 cannot generate: its
    # outputs hold `None`, which it cannot concatenate.
    if family.name != "Gemma3"
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A family, the targets, and an adapted backbone.

    Experts are adapted together with all other linear layers.
    """
    family, targets = request.param
    own = as_dict(family.inputs(3))
    experts = "shared" if targets and family.experts else None
    adapted = Adapted.make(family, family.build(), own, targets, experts)
    return family, targets, adapted


@pytest.mark.short("torch")
def test_which_layers_are_adapted(case, record_property):
    family, targets, adapted = case
    added = adds_to_default(family) if targets else frozenset()
    assert names(adapted.layers) == family.default | added
    # When the model was adapted, or now at the latest, all of them ran.
    adapted.adapted_outputs()
    assert adapted.model._adaptation.verified
    note = ", ".join(sorted(family.default)) or "nothing"
    if family.all_linear:
        note += "; all-linear adds " + ", ".join(sorted(family.all_linear))
    if family.experts:
        note += "; experts adds " + ", ".join(sorted(family.experts))
    record_property("support_note", note)


@pytest.mark.short()
@pytest.mark.parametrize("family", NAMED_ONLY)
def test_which_layers_are_adapted_by_default(family):
    model = keras_flix.enable_flix(family.build(), FEATURES, rank=RANK)
    assert names(model._adaptation.layers) == family.default


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.name) for f in FAMILIES if f.experts]
)
def test_each_expert_may_have_adapters_of_its_own(family, request):
    """No router moves: only adapters do."""
    adapted = Adapted.make(
        family, family.build(), as_dict(family.inputs(3)), None, "each"
    )
    kernels = {p: n for p, n in adapted.model._adaptation.experts.items() if n > 1}
    assert {path.rpartition("/")[2] for path in kernels} <= family.experts and kernels
    check_mixed_batch(adapted, examples=merged_examples(family, request.config))
    check_training_step(adapted)


def test_mixed_batch_equals_single_examples_and_merged_models(case, request):
    family, _, adapted = case
    examples = merged_examples(family, request.config)
    check_mixed_batch(adapted, not family.mixes_examples, examples)


def test_a_training_step_moves_the_adapters_of_the_batch_only(case):
    check_training_step(case[2])


@pytest.mark.short("torch")
@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.default])
def test_default_targets_of_a_family_without_attention(family):
    with pytest.raises(ValueError, match="the model must have attention projections"):
        keras_flix.enable_flix(family.build(), FEATURES)


@pytest.mark.short("torch")
@pytest.mark.parametrize("family, target", REFUSED)
def test_refused_targets(family, target):
    model = family.build()
    targets = None if target == "default" else target
    if target not in ("default", "all-linear"):
        targets = [target]
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, rank=RANK, targets=targets)
    assert family.refused[target] in str(error.value)
    keras_flix.enable_flix(model, FEATURES, rank=RANK)


@pytest.mark.parametrize("task_case", TASK_CASES)
def test_task(task_case, request):
    """The backbone's layers are adapted; the heads of classifiers train, too."""
    family, kind = task_case
    own = as_dict(family.inputs(3))
    if kind == "masked_lm":
        own["mask_positions"] = np.array([[0, 2], [1, 3], [2, 0]], "int32")
    task = family.tasks[kind](family.build())
    family = dataclasses.replace(family, rows=lambda outputs: outputs)
    # Heads on the tokens have no use for what is pooled of them.
    named = sorted(family.all_linear - {"pooled_dense"})
    adapted = Adapted.make(family, task, own, None if family.default else named)
    assert names(adapted.layers) == (family.default or set(named))
    examples = merged_examples(family, request.config)
    # Each alone is as its backbone alone, which has a test of its own.
    alone = len(examples) > 1 and in_full(family) and not family.mixes_examples
    check_mixed_batch(adapted, alone, examples)
    besides = [v for v in task.trainable_variables if "flix_" not in v.name]
    is_classifier = kind.endswith("classifier")
    head = [v for layer in heads(task) for v in layer.trainable_variables]
    assert list(map(id, besides)) == list(map(id, head if is_classifier else []))
    assert bool(besides) == is_classifier
    if not in_full(family):
        return
    if kind == "text_embedder":
        check_training_step(adapted)
        return
    *shape, classes = adapted.adapted_outputs()[0].shape
    check_training_step(adapted, np.random.default_rng(0).integers(0, classes, shape))


@pytest.mark.parametrize("family", GENERATING)
def test_generate(family):
    """A mixed batch continues each prompt as if the whole batch were of its values."""
    model = family.tasks["causal_lm"](family.build())
    everything = {"targets": "all-linear", "experts": "shared"}
    keras_flix.enable_flix(
        model, FEATURES, rank=RANK, **(everything if family.experts else {})
    )
    randomize(model, scale=0.8)
    model.compile(sampler="greedy", run_eagerly=eagerly(family))
    own = family.prompts(3) if family.prompts else family.inputs(3)
    if not family.prompts:
        # Room for new tokens, after prompts of different lengths.
        own["padding_mask"][:, -3:] = 0

    def generate(ids):
        found = model.generate({**own, **ids}, stop_token_ids=None)
        return to_numpy(found["token_ids"])

    mixed = generate(IDS)
    alone = [
        generate({k: np.full(3, ids[i], "int32") for k, ids in IDS.items()})
        for i in range(3)
    ]
    np.testing.assert_array_equal(mixed, [alone[i][i] for i in range(3)])
    assert any((alone[i] != alone[0]).any() for i in (1, 2))


@pytest.mark.short("torch")
def test_every_backbone_is_tested_or_left_out_for_a_reason():
    models = keras_hub.models
    installed = {
        getattr(models, name).__name__.removesuffix("Backbone")
        for name in dir(models)
        if name.endswith("Backbone") and name != "Backbone"
    }
    tested = {family.name for family in FAMILIES}
    assert len(tested) == len(FAMILIES)
    assert MECHANISMS.keys() | CACHES.keys() <= tested
    assert not tested & NOT_COVERED.keys()
    assert installed == tested | NOT_COVERED.keys()
