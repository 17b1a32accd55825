"""What optimizers do to values that do not occur, and who is told of it when."""

import inspect
import warnings

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, to_numpy
from helpers.growing import DATA, Y, apply, small

import keras_flix
from keras_flix.models.adapted import optimizer_advice
from keras_flix.models.adapted.optimizer_advice import moves_absent

pytestmark = pytest.mark.eager

OPTIMIZERS = keras.optimizers
WRAPPERS = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
PLAIN = {
    name: lambda cls=cls: cls(0.05)
    for name, cls in sorted(vars(OPTIMIZERS).items())
    if inspect.isclass(cls)
    and issubclass(cls, OPTIMIZERS.Optimizer)
    and name not in WRAPPERS
}
CASES = {
    **PLAIN,
    "SGD, momentum": lambda: OPTIMIZERS.SGD(0.05, momentum=0.9),
    "SGD, weight decay": lambda: OPTIMIZERS.SGD(0.05, weight_decay=0.1),
    "SGD, averages": lambda: OPTIMIZERS.SGD(0.05, use_ema=True, ema_momentum=0.9),
    "SGD, clipping": lambda: OPTIMIZERS.SGD(0.05, global_clipnorm=0.1),
    "RMSprop, momentum": lambda: OPTIMIZERS.RMSprop(0.05, momentum=0.9),
    "SGD, scaled loss": lambda: OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.SGD(0.05)),
    "LazyAdam": lambda: keras_flix.LazyAdam(0.05),
    "LazyAdam, weight decay": lambda: keras_flix.LazyAdam(0.05, weight_decay=0.1),
    "LazySGD, momentum": lambda: keras_flix.LazySGD(0.05, momentum=0.9),
}
SEEN_MOVE = {
    *("Adam", "AdamW", "Adamax", "Lamb", "Lion", "Muon", "Nadam", "ScheduleFreeAdamW"),
    *("SGD, momentum", "RMSprop, momentum", "SGD, averages"),
    *("SGD, weight decay", "LazyAdam, weight decay"),
}
"""As `guides/how_to/training.md` says, of values that occurred in earlier batches."""
ALL_MOVE = {"AdamW", "Ftrl", "Muon", "SGD, weight decay", "LazyAdam, weight decay"}
"""And of those that never did."""
ROUNDED = {"SGD, averages", "ScheduleFreeAdamW"}
"""These compute the same number of itself, which may come out a bit off."""


@pytest.mark.pairs
@pytest.mark.parametrize("name", CASES)
def test_which_optimizers_move_values_that_do_not_occur(name):
    generator = np.random.default_rng(0)
    start, first = generator.normal(size=(2, 3, 4, 2)).astype("float32")
    table = keras.Variable(start)
    table.has_rows_of_values = True
    optimizer = CASES[name]()
    # The last value never occurs, the one before only at first.
    first[2] = 0
    second = first.copy()
    second[1] = 0
    for _ in range(2):
        apply(optimizer, [keras.ops.convert_to_tensor(first)], [table])
    before = to_numpy(table)
    for _ in range(2):
        apply(optimizer, [keras.ops.convert_to_tensor(second)], [table])
    optimizer.finalize_variable_values([table])
    after = to_numpy(table)
    assert (after[0] != before[0]).any()
    seen, never = (after[1] != before[1]).any(), (after[2] != start[2]).any()
    assert seen == (name in SEEN_MOVE), "Ftrl moves those values once, at first"
    assert moves_absent(optimizer, seen=True) == (seen or never)
    if name in ROUNDED:
        assert np.abs(after[2] - start[2]).max() < 1e-6
        return
    assert never == (name in ALL_MOVE)
    assert never == moves_absent(optimizer, seen=False)


# Warnings. ----------------------------------------------------------------------


def said(model, data, **kwargs):
    """What `fit` warns of, by this library."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(data, Y, verbose=0, **kwargs)
    texts = [str(one.message) for one in caught]
    return [text for text in texts if "adapters" in text or "set_trainable" in text]


def grown(optimizer="adam"):
    model = small(optimizer)
    return keras_flix.add_values(model, "language", ["rw"], init="sw")


def test_values_that_were_added_and_train_alone():
    model = grown()
    data = {**DATA, "language": ["rw", "rw", None, "rw", "rw", "rw"]}
    (text,) = said(model, data)
    assert text == (
        "Of feature 'language', only values train that were added later: ['rw']. Adam "
        "goes on moving the others, by momentum or weight decay. To leave all else as "
        "it is, call `set_trainable(model, {'language': ['rw']})`; "
        "`keras_flix.LazyAdam` moves the values of the batch only."
    )
    assert said(model, data) == [], "once"


@pytest.mark.short("torch")
def test_where_nothing_else_would_move_nothing_is_said():
    alone = {**DATA, "language": "rw"}
    assert said(grown(), DATA) == [], "others train"
    assert said(keras_flix.set_trainable(grown(), {"language": ["rw"]}), alone) == []
    model = grown()
    model.compile(keras_flix.LazyAdam(0.05), loss="mse")
    assert said(model, alone) == []
    model = grown()
    model.compile(keras.optimizers.Adam(0.05), loss="mse")
    assert said(model, alone) == [], "an optimizer that has seen no other value"
    model = grown()
    model.compile(keras.optimizers.AdamW(0.05), loss="mse")
    assert len(said(model, alone)) == 1, "but decays them"
    model = keras_flix.rename_value(grown(), "language", "rw", "kin")
    assert said(model, {**DATA, "language": "kin"}) == []


@pytest.mark.short("torch")
def test_values_of_texts_in_memory_are_looked_at(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=1, seed=0)
    keras_flix.add_values(model, "task", ["new"])
    model.compile(keras.optimizers.AdamW(0.01))
    data = {"prompts": ["the", "qa"], "responses": ["fox", "en"], "task": ["new"] * 2}
    with pytest.warns(UserWarning, match=r"only values train that were .*\['new'\]"):
        model.fit({**data, "language": ["en", "sw"]}, batch_size=2, verbose=0)


@pytest.mark.short("torch")
def test_adapters_larger_than_the_base(monkeypatch):
    monkeypatch.setattr(optimizer_advice, "LARGE", 100)
    assert said(small(trained=False), DATA) == [], "a batch has all values"
    monkeypatch.setattr(optimizer_advice, "BATCH", 1)
    model = small(trained=False)
    (text,) = said(model, DATA)
    assert text == (
        "The adapters are larger than the base (192 and 82 parameters), and most "
        "optimizers pass over all of them in each step. `keras_flix.LazyAdam` updates "
        "those of the batch's values only."
    )
    assert said(model, DATA) == [], "once"
    lines = []
    keras_flix.flix_summary(model, lines.append)
    assert lines[-1] == text
    model = small(trained=False)
    model.compile(keras_flix.LazyAdam(0.05), loss="mse")
    assert said(model, DATA) == []
    monkeypatch.setattr(optimizer_advice, "LARGE", 193)
    assert said(small(trained=False), DATA) == []


def classifier():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=10,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )


@pytest.mark.short("torch")
def test_a_fresh_head_that_is_frozen():
    ids = np.arange(12).reshape(2, 6) % 40
    data = {"token_ids": ids, "padding_mask": ids >= 0, "segment_ids": 0 * ids}
    data["task"] = "a"

    def told(change):
        model = keras_flix.enable_flix(
            classifier(), {"task": ["a", "b"]}, rank=2, train=()
        )
        change(model.get_layer("logits"))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(data, np.array([0, 1]), verbose=0)
        lines = []
        keras_flix.flix_summary(model, lines.append)
        found = [str(one.message) for one in caught if "head" in str(one.message)]
        return found, [line for line in lines if "head" in line or "logits" in line]

    (text,), (line,) = told(lambda head: None)
    assert text == (
        "The head 'logits' is frozen, and looks as freshly made: its bias is zero. To "
        "let it train besides the adapters, set `model.get_layer('logits').trainable = "
        "True` and compile again; it is saved with them."
    )
    assert line == (
        "The task's head is frozen: logits. To let it train, "
        "`model.get_layer('logits').trainable = True`, then compile."
    )
    found, (line,) = told(lambda head: head.bias.assign([0.1, -0.1]))
    assert found == [] and line.startswith("The task's head is frozen")
    found, (line,) = told(lambda head: setattr(head, "trainable", True))
    assert found == []
    assert line == (
        "Besides the adapters, these train or have trained: logits/kernel, logits/bias."
    )


def test_the_summary_names_what_was_added():
    model = grown()
    lines = []
    keras_flix.flix_summary(model, lines.append)
    line = (
        "Added later: language ['rw']. `set_trainable` trains them alone; with "
        "`LazyAdam`, values that do not occur stay as they are."
    )
    assert line in lines
    keras_flix.set_trainable(model, {"language": ["rw"]})
    lines.clear()
    keras_flix.flix_summary(model, lines.append)
    assert line not in lines
