"""Every entry point takes every form of table, and says what is wrong in one."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows
from helpers.tables import FORMS

import keras_flix

pytestmark = pytest.mark.eager

X = rows(4)["x"]
Y = np.linspace(0, 1, 16).reshape(4, 4).astype("float32")
LANGUAGES = ["en", "sw", "sw", "en"]
NUMBERS = [{"x": x.tolist(), "language": v} for x, v in zip(X, LANGUAGES)]
TEXTS = [
    {"prompts": p, "responses": r, "task": task, "language": language}
    for p, r, task, language in [
        ("the quick", "brown fox", "qa", "sw"),
        ("dog", "lazy", "list", "en"),
        ("fox jumps", "over the", "qa", "yo"),
    ]
]
ASKED = [{k: v for k, v in row.items() if k != "responses"} for row in TEXTS]
OTHERS = [name for name in FORMS if name != "dict"]


def with_entry(table, **entries):
    return [{**row, **entries} for row in table]


def refusal(call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    return str(error.value)


def adapted(model, features, rank=2, **kwargs):
    keras_flix.enable_flix(model, features, rank=rank, **kwargs)
    return randomize(model)


@pytest.fixture
def mlp():
    model = adapted(make_mlp(), {"language": ["en", "sw"]}, targets="all-linear")
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    return model


@pytest.fixture
def gemma(make_gemma):
    model = adapted(make_gemma(num_layers=1), FEATURES)
    model.compile(optimizer=keras.optimizers.SGD(0.1), sampler="greedy")
    return model


def after(model, call):
    """What a call returns, and the adapter weights after it, which then go back."""
    before = [to_numpy(v) for v in model.trainable_variables]
    result = call()
    found = [to_numpy(v) for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, before):
        variable.assign(value)
    return result, found


@pytest.mark.short("torch")
@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("values", [["en", None, "sw"], [3, None, 1]])
def test_missing_entries_of_every_form(form, values):
    """Pandas writes NaN for None, and makes floats of the integers beside it."""
    known = {"cluster": [v for v in values if v is not None]}
    model = adapted(make_mlp(), known, targets="all-linear")
    expected = model.predict({"x": X[:3], "cluster": values}, verbose=0)
    table = FORMS[form]([{"x": x.tolist(), "cluster": v} for x, v in zip(X, values)])
    np.testing.assert_allclose(model.predict(table, verbose=0), expected, rtol=1e-6)


@pytest.mark.short("torch")
@pytest.mark.parametrize("form", OTHERS)
def test_arrays_of_every_form(mlp, form):
    table = FORMS[form](NUMBERS)
    given = {"x": X, "language": LANGUAGES}
    options = {"batch_size": 2, "verbose": 0}
    for method in ("predict", "predict_on_batch"):
        quiet = options if method == "predict" else {}
        expected = getattr(mlp, method)(given, **quiet)
        found = getattr(mlp, method)(table, **quiet)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    losses = [mlp.evaluate(x, Y, **options) for x in (table, given)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    losses = [mlp.test_on_batch(x, Y) for x in (table, given)]
    np.testing.assert_allclose(*losses, rtol=1e-6)

    def fit(data):
        return mlp.fit(data, Y, validation_data=(data, Y), shuffle=False, **options)

    expected, values = after(mlp, lambda: fit(given))
    found, same = after(mlp, lambda: fit(table))
    assert found.history == expected.history
    for one, other in zip(values, same):
        np.testing.assert_array_equal(one, other)


def test_records_and_lists_of_numbers(mlp):
    """On every backend, without any library of tables."""
    expected = mlp.predict({"x": X, "language": LANGUAGES}, verbose=0)
    lists = {"x": X.tolist(), "language": LANGUAGES}
    for table in (
        NUMBERS,
        lists,
        [{**row, "x": np.array(row["x"])} for row in NUMBERS],
    ):
        found = mlp.predict(table, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with keras_flix.adapters_disabled(mlp):
        plain = mlp.predict({"x": X}, verbose=0)
        np.testing.assert_allclose(mlp.predict(NUMBERS, verbose=0), plain, rtol=1e-6)


def test_single_batches_of_lists_of_numbers(mlp):
    """Keras itself takes each number for an input of its own."""
    arrays = {"x": X, "language": LANGUAGES}
    lists = {**arrays, "x": X.tolist()}
    np.testing.assert_allclose(
        mlp.predict_on_batch(lists), mlp.predict_on_batch(arrays), rtol=1e-6
    )
    expected = mlp.test_on_batch(arrays, Y)
    assert mlp.test_on_batch(lists, Y) == pytest.approx(expected, rel=1e-6)
    assert mlp.train_on_batch(lists, Y) == pytest.approx(expected, rel=1e-6)


def test_what_keras_cannot_read_is_named_without_its_rows(mlp):
    """Keras' own error prints all of `x` for a `y` that is a list."""
    good = {"x": X, "language": LANGUAGES}
    before = [to_numpy(v) for v in mlp.variables]
    for call in (mlp.fit, mlp.evaluate):
        assert refusal(call, good, Y.tolist(), verbose=0) == (
            "Keras must be able to read the data. Received: x=a dict with the entries "
            "['x', 'language'], y=a list of 4. Pass the model's inputs and its "
            "features ['language'] by name in one dict or table, and labels and "
            "weights as arrays, as `numpy.asarray` makes them."
        )
    weighted = refusal(mlp.fit, good, Y, sample_weight=[1.0] * 4, verbose=0)
    assert "y=a ndarray, sample_weight=a list of 4. Pass" in weighted
    pair = refusal(mlp.predict, (X, LANGUAGES), verbose=0)
    assert pair.startswith("Keras must be able to read the data. Received: x=a tuple ")
    for value, variable in zip(before, mlp.variables, strict=True):
        np.testing.assert_array_equal(value, to_numpy(variable))
    # Keras reads this one after an epoch, which has trained by then.
    checked = refusal(mlp.fit, good, Y, validation_data=(good, Y.tolist()), verbose=0)
    assert "validation_data=a tuple of 2. Pass" in checked


def test_without_features_a_frame_is_an_array(mlp):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    shared = [keras_flix.Feature("shared", always=True)]
    adapted(model, shared, targets="all-linear")
    expected = model.predict(X, verbose=0)
    np.testing.assert_array_equal(model.predict(pd.DataFrame(X), verbose=0), expected)


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="others have no tensors of text"
)
def test_a_column_of_texts_for_a_model_that_looks_them_up():
    words = keras.Input((1,), dtype="string", name="words")
    ids = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    outputs = keras.layers.Dense(4)(keras.layers.Embedding(3, 8)(ids))
    model = keras.Model({"words": words}, outputs)
    adapted(model, {"task": ["qa", "parse"]}, targets="all-linear")
    table = [{"words": w, "task": t} for w, t in (("b", "qa"), ("a", "parse"))]
    found = model.predict(table, verbose=0)
    for row, one in zip(table, found):
        np.testing.assert_allclose(model.predict([row], verbose=0)[0], one, rtol=1e-6)
    assert not np.allclose(*found)


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.parametrize("form", OTHERS)
def test_texts_of_every_form(gemma, form):
    tables = {"dict": FORMS["dict"](TEXTS), form: FORMS[form](TEXTS)}

    def fit(data):
        options = {"batch_size": 2, "shuffle": False, "verbose": 0}
        return gemma.fit(data, validation_data=data, **options)

    expected, values = after(gemma, lambda: fit(tables["dict"]))
    found, same = after(gemma, lambda: fit(tables[form]))
    assert found.history == expected.history
    for one, other in zip(values, same):
        np.testing.assert_array_equal(one, other)
    losses = [gemma.evaluate(t, batch_size=2, verbose=0) for t in tables.values()]
    assert losses[0] == losses[1]
    logits = [gemma.predict(t, batch_size=2, verbose=0) for t in tables.values()]
    np.testing.assert_array_equal(*logits)
    answers = gemma.generate(FORMS["dict"](ASKED), max_length=12)
    assert gemma.generate(FORMS[form](ASKED), max_length=12) == answers


def test_superfluous_columns_of_a_plain_model(mlp):
    expected = (
        "The input dict must hold the model's own inputs ['x'] and its features "
        "['language']. Received: entries ['id'] besides. Remove them."
    )
    for entry in (7, "a text", None):
        table = with_entry(NUMBERS, id=entry)
        assert refusal(mlp.fit, table, Y, verbose=0) == expected
        assert refusal(mlp.predict, FORMS["dict"](table), verbose=0) == expected
        validation = (table, Y)
        assert expected == refusal(mlp.fit, NUMBERS, Y, validation_data=validation)


def test_several_columns_for_one_input():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    adapted(model, {"task": ["qa", "parse"]}, targets="all-linear")
    table = [{"a": 1.0, "b": 2.0, "task": "qa"}]
    assert refusal(model.predict, table, verbose=0) == (
        "The model takes one input, and the input dict must hold one entry next to the "
        "features ['task']. Received: ['a', 'b']. Leave superfluous ones out, and join "
        "columns of numbers, such as `frame[[...]].to_numpy()`; labels go into `y`."
    )
    joined = {"x": np.array([[1.0, 2.0]], "float32"), "task": ["qa"]}
    assert model.predict(joined, verbose=0).shape == (1, 3)


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([[1.0] * 8, [1.0] * 7], "a list of 8"),
        ([None, 1.0], "None"),
        ([["a"], ["b"]], "a list of 1"),
    ],
)
def test_rows_that_make_no_array(mlp, column, shown):
    assert refusal(mlp.predict, {"x": column, "language": ["en", "sw"]}) == (
        "A column that the model reads must hold numbers, equally many in every row. "
        f"Received: x with {shown} at row 0, in 2 rows. Fill, cut or pad the rows."
    )


def test_superfluous_columns_of_a_task(gemma):
    before = [to_numpy(v) for v in gemma.trainable_variables]
    table = with_entry(TEXTS, id=7, source="web")
    expected = (
        "The input dict must hold what the task reads ['prompts', 'responses', 'text', "
        "'inputs'] and the features ['task', 'language']. Received: ['id', 'source'] "
        "besides."
    )
    for call in (gemma.fit, gemma.evaluate, gemma.predict):
        text = refusal(call, table, verbose=0)
        assert text.startswith(expected) and text.endswith("Leave out what is neither.")
    validation = {"validation_data": table, "verbose": 0}
    assert refusal(gemma.fit, TEXTS, **validation).startswith(expected)
    # Batches of other sources, too.
    batches = iter([FORMS["dict"](table)])
    assert refusal(gemma.fit, batches, verbose=0).startswith(expected)
    assert "Received: ['id', 'source'] besides." in refusal(
        gemma.generate, with_entry(ASKED, id=7, source="web")
    )
    assert "The nearest is 'prompts'." in refusal(
        gemma.generate, {"prompt": ["dog"], "task": "qa", "language": "en"}
    )
    for variable, value in zip(gemma.trainable_variables, before):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_responses_are_not_for_generate(gemma):
    expected = (
        "`generate` takes prompts and features. Received: an entry 'responses' "
        "besides. It answers the prompts itself: leave the responses out, or call "
        "`keras_flix.evaluation.evaluate(model, data)` to compare with them."
    )
    assert refusal(gemma.generate, TEXTS) == expected
    assert refusal(gemma.generate, FORMS["dict"](TEXTS)) == expected


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_a_text(gemma, missing):
    table = [TEXTS[0], {**TEXTS[1], "responses": missing}, TEXTS[2]]
    for data in (table, FORMS["dict"](table)):
        assert refusal(gemma.fit, data, verbose=0) == (
            "Every row must have a text in the column 'responses'. Received: "
            f"{missing!r} at row 1, and 1 such rows of 3. Fill them, or leave the rows "
            "out."
        )
    asked = [{**ASKED[0], "prompts": missing}]
    assert f"{missing!r} at row 0" in refusal(gemma.generate, asked)


def test_no_rows(gemma, mlp):
    empty = {name: [] for name in TEXTS[0]}
    assert refusal(gemma.fit, empty, verbose=0) == (
        "A table must have at least one row. Received: a dict with the entries "
        "['prompts', 'responses'], and no row. Look at how it was selected."
    )
    none = {"x": np.zeros((0, 8)), "language": []}
    assert "and no row" in refusal(mlp.predict, none, verbose=0)
    # Neither says what it was given.
    empty.pop("responses")
    assert "a dict with the entries ['prompts']" in refusal(gemma.generate, empty)


def test_a_preprocessor_of_the_users_own_may_read_anything(make_gemma):
    class Own(keras_hub.models.GemmaCausalLMPreprocessor):
        def call(self, x, y=None, sample_weight=None, sequence_length=None):
            return super().call(x["question"], y, sample_weight)

    model = make_gemma(num_layers=1)
    model.preprocessor = Own(model.preprocessor.tokenizer, sequence_length=24)
    adapted(model, {"task": ["qa"]})
    x, _, _ = model.preprocess_samples({"question": ["the dog"], "task": "qa"})
    assert x["token_ids"].shape == (1, 24)
