"""Bad feature entries raise at every entry point and leave the model as it was."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize
from helpers.models import make_mlp, rows, state
from keras import ops

import keras_flix

GOOD = {"task": ["qa", None, "list"], "language": "sw"}
BATCHES = {
    "unknown string": (
        {**GOOD, "task": ["qa", "prase", None]},
        "A value of feature 'task' must be one of its 3 values. Received: "
        "task='prase'. The nearest known value is 'parse'. Known values: 'qa', "
        "'parse', 'list'. State absence as None.",
    ),
    "unknown string for the whole batch": (
        {**GOOD, "language": "swa"},
        "A value of feature 'language' must be one of its 3 values. Received: "
        "language='swa'. The nearest known value is 'sw'. Known values: 'en', 'sw', "
        "'yo'. State absence as None.",
    ),
    "id above the range": (
        {**GOOD, "task": np.array([0, 1, 3])},
        "The ids of feature 'task' must be in [0, 3), or -1 for absent. Received: "
        "task=3 (at example 2). Encode values with `schema.encode(...)`.",
    ),
    "id below the range": (
        {**GOOD, "task": np.array([0, -2, 1], "int32")},
        "The ids of feature 'task' must be in [0, 3), or -1 for absent. Received: "
        "task=-2 (at example 1). Encode values with `schema.encode(...)`.",
    ),
    "missing entry": (
        {"task": ["qa", None, "list"]},
        "Every feature must have an entry in the input dict, next to the model's own "
        "inputs. Received: no entry 'language' (entries: ['task']). State its values "
        "or ids; where an example has none, None or -1.",
    ),
    "too few entries": (
        {**GOOD, "task": ["qa", "list"]},
        "Every feature must have one entry per example. Received: 2 entries of 'task' "
        "for a batch of 3. Pass one value for the whole batch, or one per example.",
    ),
    "too many entries": (
        {**GOOD, "task": np.array([0, 1, 2, 0])},
        "Every feature must have one entry per example. Received: 4 entries of 'task' "
        "for a batch of 3. Pass one value for the whole batch, or one per example.",
    ),
    "floats": (
        {**GOOD, "task": np.array([0.0, 1.0, 2.0])},
        "The entry of feature 'task' must hold strings, integer ids or None. Received: "
        "task of dtype float64. Encode values with `schema.encode(...)`, or cast ids "
        "to int32.",
    ),
    "booleans": (
        {**GOOD, "task": [True, False, None]},
        "The entry of feature 'task' must hold strings, integer ids or None. Received: "
        "task of dtype bool. Encode values with `schema.encode(...)`, or cast ids to "
        "int32.",
    ),
    "one-hot ids": (
        {**GOOD, "task": np.eye(3, dtype="int32")},
        "The ids of feature 'task' must have the shape (batch,). Received: task of "
        "shape (3, 3). Pass one entry per example.",
    ),
}


def said(text, *own):
    """The error's text beside the model's own inputs, which are listed too."""
    return text.replace("(entries: ['task'])", f"(entries: {sorted(['task', *own])})")


TARGET = np.ones((3, 4), "float32")
ENTRY_POINTS = {
    "call": lambda model, x: model(x),
    "predict": lambda model, x: model.predict(x, verbose=0),
    "predict_on_batch": lambda model, x: model.predict_on_batch(x),
    "fit": lambda model, x: model.fit(x, TARGET, verbose=0),
    "validation": lambda model, x: model.fit(
        {**rows(), **GOOD}, TARGET, validation_data=(x, TARGET), verbose=0
    ),
    "train_on_batch": lambda model, x: model.train_on_batch(x, TARGET),
    "evaluate": lambda model, x: model.evaluate(x, TARGET, verbose=0),
    "test_on_batch": lambda model, x: model.test_on_batch(x, TARGET),
}


@pytest.fixture(scope="module")
def adapted():
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return randomize(model)


@pytest.mark.pairs
@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_bad_entries_raise_and_change_nothing(adapted, case, entry_point):
    entries, text = BATCHES[case]
    inputs = {**rows(), **entries}
    before = state(adapted, {**rows(), **GOOD})
    with pytest.raises(ValueError) as error:
        ENTRY_POINTS[entry_point](adapted, inputs)
    assert str(error.value) == said(text, "x")
    assert state(adapted, {**rows(), **GOOD}) == before


@pytest.mark.short("torch")
def test_the_callers_dict_is_never_changed(adapted):
    inputs = {**rows(), **GOOD}
    copy = dict(inputs)
    for run in ENTRY_POINTS.values():
        if run is not ENTRY_POINTS["validation"]:
            run(adapted, inputs)
    assert inputs.keys() == copy.keys()
    assert all(inputs[key] is copy[key] for key in inputs)


def test_tensors_are_checked_like_arrays(adapted):
    tensor = ops.convert_to_tensor(np.array([0, 1, 5], "int32"))
    with pytest.raises(ValueError, match=r"Received: task=5 \(at example 2\)"):
        adapted({**rows(), **GOOD, "task": tensor})
    tensor = ops.convert_to_tensor(np.array([0.0, 1.0, 2.0], "float32"))
    with pytest.raises(ValueError, match="Received: task of dtype float32"):
        adapted({**rows(), **GOOD, "task": tensor})


GEMMA_BATCHES = {
    case: BATCHES[case] for case in ("unknown string", "id above the range", "floats")
}


@pytest.fixture(scope="module")
def gemma():
    keras.utils.set_random_seed(0)
    return randomize(keras_flix.enable_flix(make_backbone(), FEATURES, rank=2))


@pytest.mark.parametrize("case", GEMMA_BATCHES)
def test_bad_entries_of_a_backbone(gemma, case):
    entries, text = GEMMA_BATCHES[case]
    tokens = {
        "token_ids": np.ones((3, 4), "int32"),
        "padding_mask": np.ones((3, 4), "int32"),
    }
    for run in (gemma, gemma.predict_on_batch, gemma.predict):
        with pytest.raises(ValueError) as error:
            run({**tokens, **entries})
        assert str(error.value) == text


PROMPTS = {"prompts": ["the quick", "dog", "fox"], "responses": ["fox"] * 3}


@pytest.mark.short("torch")
@pytest.mark.parametrize("case", BATCHES)
def test_bad_entries_of_a_task_with_a_preprocessor(make_gemma, case):
    entries, text = BATCHES[case]
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    for run in (model.fit, model.evaluate):
        with pytest.raises(ValueError) as error:
            run({**PROMPTS, **entries}, batch_size=3, verbose=0)
        assert str(error.value) == said(text, *PROMPTS)
    with pytest.raises(ValueError) as error:
        model.generate({"prompts": PROMPTS["prompts"], **entries}, max_length=6)
    assert str(error.value) == said(text, "prompts")


def test_a_name_written_wrongly_is_shown_beside_the_right_one(adapted):
    inputs = {**rows(), "task": "qa", "Langauge": "sw"}
    for entry_point in ENTRY_POINTS.values():
        with pytest.raises(ValueError) as error:
            entry_point(adapted, inputs)
        assert str(error.value) == (
            "Every feature must have an entry in the input dict, next to the model's "
            "own inputs. Received: no entry 'language' (entries: ['Langauge', 'task', "
            "'x']). The nearest is 'Langauge'. State its values or ids; where an "
            "example has none, None or -1."
        )
    with pytest.raises(ValueError, match="'langauge'. The nearest is 'language'. Rem"):
        keras_flix.merge_features(adapted, {"task": "qa", "langauge": "sw"})
