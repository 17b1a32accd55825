"""`enable_flix(..., train=...)`: layers that train whole, beside the adapters."""

import copy
import warnings

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp, rows, state

import keras_flix

pytestmark = pytest.mark.eager

ONE = {"targets": ["hidden"], "rank": 2}
HEAD = ["head/kernel", "head/bias"]
IDS = np.arange(12).reshape(2, 6).astype("int32")
TOKENS = {"token_ids": IDS, "padding_mask": IDS * 0 + 1, "segment_ids": IDS * 0}


def bert(task=keras_hub.models.BertTextClassifier, **options):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=10,
    )
    return task(backbone, preprocessor=None, **options)


def besides(model):
    return [v.path for v in model.trainable_variables if "flix_" not in v.path]


def step(model):
    x = {"x": rows(3)["x"], "task": ["qa", "parse", None], "language": "sw"}
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    model.train_on_batch(model._encode(x), np.ones((3, 4), "float32"))
    return model


# Which layers. ------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, expected",
    [
        (None, []),
        ((), []),
        (["head"], ["head/kernel", "head/bias"]),
        ({"he.d"}, ["head/kernel", "head/bias"]),
        # What all values of a target share.
        (["hidden"], ["hidden/kernel", "hidden/bias"]),
    ],
)
def test_named_layers_train_and_move_and_nothing_else(train, expected):
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **ONE, train=train)
    assert besides(randomize(model)) == expected
    before = {v.path: to_numpy(v) for v in model.variables if "flix_" not in v.path}
    step(model)
    moved = {
        v.path
        for v in model.variables
        if v.path in before and (to_numpy(v) != before[v.path]).any()
    }
    assert moved == set(expected)
    assert besides(model) == expected


@pytest.mark.short("torch")
def test_a_layer_trains_with_all_that_is_inside_of_it():
    model = make_backbone()
    train = ["decoder_block_1", r".*_0/pre_attention_norm", "token_embedding"]
    keras_flix.enable_flix(model, FEATURES, train=train)
    found = besides(model)
    assert found[:2] == [
        "token_embedding/embeddings",
        "decoder_block_0/pre_attention_norm/scale",
    ]
    inside = [v.path for v in model.get_layer("decoder_block_1").weights]
    assert found[2:] == [path for path in inside if "flix_" not in path]
    assert "decoder_block_1/attention/query/kernel" in found


@pytest.mark.support("Paths", "Layers that train whole, heads of classifiers")
def test_the_head_of_a_classification_task_trains_by_default():
    model = keras_flix.enable_flix(bert(num_classes=3), FEATURES)
    assert besides(model) == ["logits/kernel", "logits/bias"]
    lines = []
    summary = keras_flix.flix_summary(model, lines.append)
    assert summary.trained == besides(model)
    text = "Besides the adapters, these train or have trained: logits/kernel, "
    assert f"{text}logits/bias." in lines
    # As a target, its kernel and bias are what all values share.
    model = keras_flix.enable_flix(
        bert(num_classes=3), FEATURES, targets=["query", "logits"], rank=2
    )
    assert besides(model) == ["logits/kernel", "logits/bias"]
    assert "logits" in model._adaptation.layers


@pytest.mark.short("torch")
def test_heads_that_stay_as_they_are():
    model = keras_flix.enable_flix(bert(num_classes=3), FEATURES, train=())
    assert besides(model) == []
    model = bert(num_classes=3)
    model.get_layer("logits").trainable = False
    assert besides(keras_flix.enable_flix(model, FEATURES)) == []
    model = bert(num_classes=3)
    model.quantize("int8")
    assert besides(keras_flix.enable_flix(model, FEATURES)) == []
    # Not fresh, in a preset that holds it.
    model = bert(keras_hub.models.BertMaskedLM)
    assert besides(keras_flix.enable_flix(model, FEATURES)) == []
    model = bert(num_classes=3).backbone
    assert besides(keras_flix.enable_flix(model, FEATURES)) == []


@pytest.mark.short("torch")
def test_heads_of_several_layers():
    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=10,
    )
    model = keras_hub.models.RobertaTextClassifier(
        backbone, num_classes=3, preprocessor=None
    )
    keras_flix.enable_flix(model, FEATURES)
    names = ["pooled_dense", "logits"]
    assert besides(model) == [f"{n}/{v}" for n in names for v in ("kernel", "bias")]


@pytest.mark.short("torch")
def test_a_layer_that_was_frozen_trains_if_it_is_named():
    model = make_mlp()
    model.get_layer("head").trainable = False
    keras_flix.enable_flix(model, FEATURES, **ONE, train=["head"])
    assert besides(model) == ["head/kernel", "head/bias"]
    merged = keras_flix.merge_features(model, {"task": "qa", "language": "sw"})
    assert merged.get_layer("head").trainable


# Another label set for each value. -----------------------------------------------


def test_a_target_that_trains_whole_is_exact():
    """The way to a head per value: what all share trains, and each has an update."""
    model = keras_flix.enable_flix(
        make_mlp(), FEATURES, targets=["hidden", "head"], rank=2, train=["head"]
    )
    step(randomize(model))
    x = {"x": rows(3)["x"], "task": ["qa", "parse", None], "language": "sw"}
    mixed = to_numpy(model(x))
    for i, task in enumerate(x["task"]):
        merged = keras_flix.merge_features(model, {"task": task, "language": "sw"})
        alone = to_numpy(merged({"x": x["x"][i : i + 1]}))
        np.testing.assert_allclose(mixed[i : i + 1], alone, rtol=1e-5, atol=1e-5)


LABELS = {"qa": 3, "parse": 2, "list": 4}
TASK_OF = np.repeat(list(LABELS), list(LABELS.values()))
OWN = TASK_OF[:, None] == TASK_OF


def own_labels_only(y, logits):
    """Cross entropy among the labels of an example's own task."""
    y = keras.ops.reshape(keras.ops.cast(y, "int32"), (-1,))
    own = keras.ops.take(keras.ops.convert_to_tensor(OWN), y, axis=0)
    logits = keras.ops.where(own, logits, -1e9)
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def test_one_wide_head_is_a_head_of_its_own_for_each_task():
    """A step on a mixed batch is that of heads apart, each on its task's examples."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden")
    head = keras.layers.Dense(len(TASK_OF), name="head")
    model = keras.Model({"x": x}, head(hidden(x)))
    keras_flix.enable_flix(model, FEATURES, **ONE, train=["head"])
    labels = np.array([0, 2, 4, 5, 8, 3, 1])
    tasks = TASK_OF[labels].tolist()
    batch = {"x": rows(7)["x"], "task": tasks, "language": "sw"}
    features = to_numpy(hidden(batch["x"], features={"task": None, "language": None}))
    before = [to_numpy(v).copy() for v in (head.kernel, head.bias)]
    model.compile(keras.optimizers.SGD(0.5), own_labels_only)
    model.train_on_batch(batch, labels)
    after = [to_numpy(v) for v in (head.kernel, head.bias)]
    for task in LABELS:
        own, columns = np.array(tasks) == task, TASK_OF == task
        kernel, bias = (part[..., columns].astype("float64") for part in before)
        scores = np.exp(features[own] @ kernel + bias)
        error = scores / scores.sum(axis=1, keepdims=True)
        error[range(own.sum()), labels[own] - np.flatnonzero(columns)[0]] -= 1
        error *= 0.5 / len(labels)
        np.testing.assert_allclose(
            after[0][:, columns], kernel - features[own].T @ error, atol=1e-6
        )
        np.testing.assert_allclose(
            after[1][columns], bias - error.sum(axis=0), atol=1e-6
        )


# Beside values that come, go and are frozen. --------------------------------------


def test_values_are_frozen_alone_and_that_is_said():
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **ONE, train=["head"])
    text = "Received: a model in which .'head/kernel', 'head/bias'. train besides. To"
    with pytest.warns(UserWarning, match=text):
        keras_flix.set_trainable(model, {"task": ["qa"]})
    before = to_numpy(model.get_layer("head").bias)
    step(model)
    assert (to_numpy(model.get_layer("head").bias) != before).all()
    model.get_layer("head").trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_flix.set_trainable(model, {"task": ["parse"]})
        keras_flix.set_trainable(model, None)


def test_values_may_be_added_and_removed_while_a_head_trains():
    """The optimizer goes on with what it knew of the head."""
    models = [make_mlp(), make_mlp()]
    for model in models:
        keras_flix.enable_flix(model, FEATURES, **ONE, train=["head"], seed=0)
        model.compile(keras.optimizers.Adam(0.1), loss="mse")
    x = {"x": rows(3)["x"], "task": np.array([0, 1, 0], "int32"), "language": "sw"}
    y = np.arange(12.0).reshape(3, 4)
    for i in range(3):
        for model in models:
            model.train_on_batch(x, y)
        if i == 0:
            keras_flix.add_values(models[0], "language", ["rw"])
        if i == 1:
            keras_flix.remove_values(models[0], "language", ["rw"])
    for one, other in zip(*(model.get_layer("head").weights for model in models)):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


# Files of training. ---------------------------------------------------------------


def test_weight_files_hold_it(tmp_path):
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **ONE, train=["head"])
    step(model).save_weights(tmp_path / "one.weights.h5")
    other = keras_flix.enable_flix(make_mlp(1), FEATURES, **ONE, train=["head"])
    other.load_weights(tmp_path / "one.weights.h5")
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))


@pytest.mark.short("torch")
def test_a_classifiers_adapter_file_loads_into_a_fresh_one(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = randomize(keras_flix.enable_flix(bert(num_classes=3), FEATURES))
    keras_flix.save_adapters(model, path)
    fresh = bert(num_classes=3)
    fresh.get_layer("logits").bias.assign([1, 2, 3])
    found = keras_flix.load_adapters(fresh, path)
    x = {**TOKENS, "task": ["qa", "parse"], "language": [None, "sw"]}
    np.testing.assert_array_equal(to_numpy(found(x)), to_numpy(model(x)))
    assert besides(found) == ["logits/kernel", "logits/bias"]
    # One of adapters alone leaves the head as it is.
    keras_flix.save_adapters(
        keras_flix.enable_flix(bert(num_classes=3), FEATURES, train=()), path
    )
    found = keras_flix.load_adapters(bert(num_classes=3), path)
    assert besides(found) == []


@pytest.mark.parametrize("off", ["layer", "variables", "copy"])
@pytest.mark.parametrize("moved", ["not", "set_weights", "load_weights"])
def test_what_was_to_train_is_kept_when_it_is_frozen_before_fit(moved, off, tmp_path):
    """However it came to its weights: files would lack what values trained with."""
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **ONE, train=["head"])
    other = step(keras_flix.enable_flix(make_mlp(1), FEATURES, **ONE, train=["head"]))
    if moved == "set_weights":
        model.set_weights(other.get_weights())
    if moved == "load_weights":
        other.save_weights(tmp_path / "one.weights.h5")
        model.load_weights(tmp_path / "one.weights.h5")
    randomize(model)
    if off == "copy":
        model = copy.deepcopy(model)
    head = model.get_layer("head")
    for one in head.weights if off == "variables" else [head]:
        one.trainable = False
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(model, path)
    assert list(keras_flix.files.read_adapters(path).trained) == HEAD
    base = make_mlp(0 if moved == "not" else 1)
    found = keras_flix.load_adapters(base, path)
    x = {"x": rows(3)["x"], "task": ["qa", "parse", None], "language": "sw"}
    np.testing.assert_array_equal(to_numpy(found(x)), to_numpy(model(x)))


# What is refused. ---------------------------------------------------------------

REFUSALS = {
    "a string": (
        "head",
        "`train` must be None or a list of layer names or regexes. Received: "
        "train='head'. Pass a list; an empty one lets adapters alone train.",
    ),
    "nothing matches": (
        ["head", "hed"],
        "`train` must name layers, or match their whole paths as a regex. Received: "
        "'hed', which matches nothing. The nearest are ['head', 'hidden'].",
    ),
    "no weights": (
        ["x"],
        "A layer that trains whole must have weights. Received: train=['x'], where "
        "'x' has none. Leave it out.",
    ),
    "no regex": (
        ["("],
        "A target must be a layer name or a regular expression. Received: '(', which "
        "does not compile (missing ), unterminated subpattern at position 0). Correct "
        "it, or escape it with re.escape.",
    ),
    "one per value": (
        {"head": "task"},
        "A layer trains whole once, for all values of a feature. Received: "
        "train={'head': 'task'}, which asks for one per value. Write train=['head']. "
        "Where values of 'task' have labels of their own, give it an output for each "
        "label of all of them, and a loss over those of each example's: these are then "
        "heads of their own. Where they share labels, name 'head' in `targets` too: "
        "each value then has an update of it.",
    ),
}


@pytest.mark.short("torch")
@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_changes_nothing(case):
    train, text = REFUSALS[case]
    model = make_mlp()
    before = state(model, rows())
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, **ONE, train=train)
    assert str(error.value) == text
    assert state(model, rows()) == before


@pytest.mark.short("torch")
def test_quantized_layers_cannot_train_whole():
    model = make_mlp()
    model.quantize("int8")
    text = "floating-point weights. Received: layer 'head' with quantization_mode='int8"
    with pytest.raises(ValueError, match=text):
        keras_flix.enable_flix(model, FEATURES, **ONE, train=["head"])
