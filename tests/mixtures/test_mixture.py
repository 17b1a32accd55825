"""`Dataset` and `Mixture`: what is drawn, split and limited, and that it trains."""

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp

import keras_flix
from keras_flix import Feature, FeatureSchema
from keras_flix.callbacks import BackupAndRestore
from keras_flix.mixtures import Dataset, Mixture


def refusal(make, kind=ValueError):
    with pytest.raises(kind) as error:
        make()
    return str(error.value)


def named(task, language, count, **columns):
    """Examples whose prompts say where they are from."""
    prompts = [f"{task} {language} {i}" for i in range(count)]
    return Dataset(
        {"task": task, "language": language},
        {"prompts": prompts, "number": np.arange(count), **columns},
    )


def make_mixture(temperature=1.0):
    cells = [("qa", "en", 8), ("qa", "sw", 2), ("parse", "en", 4), ("parse", "sw", 1)]
    return Mixture([named(*cell) for cell in cells], temperature)


# Datasets. -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([2, 0], [2, 0]),
        ([1, 1], [1, 1]),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        (slice(1, None), [1, 2]),
        ([-1], [2]),
    ],
)
def test_select(rows, expected):
    dataset = named("qa", "sw", 3)
    chosen = dataset.select(rows)
    assert chosen.features == dataset.features
    assert chosen.columns["prompts"] == [f"qa sw {i}" for i in expected]
    np.testing.assert_array_equal(chosen.columns["number"], expected)
    assert len(chosen) == len(expected) and len(dataset) == 3


def test_dataset_refusals():
    assert refusal(lambda: Dataset({"task": "qa"}, {"x": [1, 2], "y": [1]})) == (
        "The columns of a dataset must be equally long. Received: lengths {'x': 2, "
        "'y': 1}. Give every example an entry in every column."
    )
    assert refusal(lambda: Dataset({"task": "qa"}, {"task": ["a"]})) == (
        "Features and columns must have different names, since both are entries of "
        "one input dict. Received: 'task' as both. Rename one of them."
    )
    assert refusal(lambda: Dataset({"task": "qa"}, {"x": []})) == (
        "A dataset must have at least one example. Received: none, with features "
        "{'task': 'qa'}. Leave the dataset out of the mixture."
    )
    for features, columns in (({}, {"x": [1]}), ({"task": "qa"}, {})):
        text = refusal(lambda f=features, c=columns: Dataset(f, c))
        assert text.startswith("A dataset must have at least one feature and one colu")
    for value in (True, 1.5, b"sw", ["sw", 3], ["sw", None]):
        assert refusal(lambda v=value: Dataset({"level": v}, {"x": [1]})) == (
            "A feature of a dataset must be a string or an integer, a list of several "
            f"of one kind, or None for absent. Received: level={value!r}. Convert "
            "values with str(value) or int(value)."
        )
    for value in ("", ["sw", ""], ["sw", "sw"], -1, [2, 2]):
        assert refusal(lambda v=value: Dataset({"language": v}, {"x": [1]})) == (
            "The values of a dataset's feature must be different, none of them empty "
            f"or -1. Received: language={value!r}. Write None for absent."
        )
    for column, kind in (("text", "str"), (np.float32(1), "float32"), ({1}, "set")):
        assert refusal(lambda c=column: Dataset({"task": "qa"}, {"x": c})) == (
            "A column must be a list or a numpy array with a leading axis of "
            f"examples. Received: x of type {kind}. Convert it with list(...) or "
            "np.asarray(...)."
        )
    assert refusal(lambda: named("qa", "sw", 3).select([])).startswith(
        "A dataset must have at least one example."
    )
    assert refusal(lambda: named("qa", "sw", 3).has({"langage": "sw"})) == (
        "A combination must name one of the features ['task', 'language']. "
        "Received: 'langage'. The nearest is 'language'."
    )


# Mixtures. -------------------------------------------------------------------


def test_no_text_says_the_data():
    mixture = make_mixture()
    assert repr(mixture) == (
        "Mixture(4 datasets, 15 examples, features ['task', 'language'], columns "
        "['prompts', 'number'])"
    )
    assert repr(make_mixture(2.5)).endswith("['prompts', 'number'], temperature 2.5)")
    assert repr(mixture.datasets[1]) == (
        "Dataset({'task': 'qa', 'language': 'sw'}, 2 examples of ['prompts', 'number'])"
    )
    assert refusal(lambda: keras_flix.enable_flix(make_mlp(), mixture)) == (
        "`features` must be a FeatureSchema, a list of Feature or a dict from name to "
        "values. Received: features=a Mixture. Pass its `schema()`."
    )
    schema = mixture.schema()
    assert "Received: a list of 4." in refusal(lambda: schema.encode(["qa"] * 4))


@pytest.mark.eager
def test_a_plain_model_says_what_takes_a_mixture():
    """Keras would say `Unrecognized data type`, and numpy hold it as one object."""
    x = np.zeros((2, 8), "float32")
    mixture = Mixture([Dataset({"task": task}, {"x": x}) for task in ("qa", "parse")])
    model = make_mlp()
    model.compile("sgd", "mse")
    for data in (mixture, mixture.datasets[0]):
        for call in (model.fit, model.evaluate, model.predict, np.asarray):
            text = refusal(lambda c=call, d=data: c(d), (ValueError, AttributeError))
            assert f"with feature adapters. Received: {data!r}, read as an" in text
            assert "`enable_flix(model, mixture.schema(), ...)`" in text
        assert not hasattr(data, "shape")


def test_mixture_refusals():
    first = named("qa", "en", 2)
    assert refusal(lambda: Mixture([])) == (
        "A mixture must have at least one dataset. Received: datasets=[]. Pass a "
        "list of Dataset."
    )
    other = Dataset({"task": "qa"}, first.columns)
    assert refusal(lambda: Mixture([first, other])) == (
        "The datasets of a mixture must have the same features. Received: "
        "['language', 'task'] and, in dataset 1, ['task']. State absence as None."
    )
    other = Dataset(first.features, {"prompts": ["a"]})
    assert refusal(lambda: Mixture([first, first, other])) == (
        "The datasets of a mixture must have the same columns. Received: ['number', "
        "'prompts'] and, in dataset 2, ['prompts']. Give every dataset all of them."
    )
    wide = named("qa", "sw", 2, number=np.zeros((2, 3)))
    assert refusal(lambda: Mixture([first, wide])) == (
        "The columns of a mixture must be lists, or arrays of one shape, in all "
        "datasets. Received: 'number' as an array with examples of shape () "
        "and, in dataset 1, as an array with examples of shape (3,). Convert or pad "
        "one of them."
    )
    assert "as a list." in refusal(
        lambda: Mixture([first, named("qa", "sw", 2, number=[0, 1])])
    )
    texts = named("qa", "sw", 2, number=np.array(["0", "1"]))
    assert refusal(lambda: Mixture([first, texts])) == (
        "The arrays of a column must hold numbers or text, the same in all datasets. "
        "Received: 'number' of dtype int64 and, in dataset 1, of dtype <U1. Convert "
        "one of them."
    )
    for temperature in (0, -1.0, float("nan")):
        assert refusal(lambda t=temperature: Mixture([first], t)) == (
            "The temperature of a mixture must be positive. Received: temperature="
            f'{temperature!r}. 1 draws datasets by their sizes, float("inf") draws '
            "all equally often."
        )


@pytest.mark.parametrize(
    ("temperature", "weights"),
    [
        (1.0, [8, 2, 4, 1]),
        (2.0, [8**0.5, 2**0.5, 2, 1]),
        (0.5, [64, 4, 16, 1]),
        (float("inf"), [1, 1, 1, 1]),
    ],
)
def test_probabilities(temperature, weights):
    mixture = make_mixture(temperature)
    expected = np.array(weights) / sum(weights)
    np.testing.assert_allclose(mixture.probabilities, expected, rtol=1e-14)
    drawn = np.bincount(mixture.draw(20_000)[:, 0], minlength=4) / 20_000
    # Four standard errors.
    error = 4 * np.sqrt(expected * (1 - expected) / 20_000)
    assert np.all(np.abs(drawn - expected) < error)


def test_schema_has_values_in_order_of_occurrence():
    mixture = make_mixture()
    axes = {"task": ["qa", "parse"], "language": ["en", "sw"]}
    assert mixture.schema() == FeatureSchema(axes)
    reverse = Mixture(mixture.datasets[::-1]).schema()
    assert reverse["task"].values == ("parse", "qa")


def test_schema_options():
    mixture = make_mixture()
    rank = {"language": {"sw": 2, "*": 4}}
    assert mixture.schema(rank=rank, dropout=0.5) == FeatureSchema(
        [
            Feature("task", ["qa", "parse"], dropout=0.5),
            Feature("language", ["en", "sw"], rank={"sw": 2, "*": 4}, dropout=0.5),
        ]
    )
    assert mixture.schema(rank=8, dropout={"task": 0.3}) == FeatureSchema(
        [
            Feature("task", ["qa", "parse"], rank=8, dropout=0.3),
            Feature("language", ["en", "sw"], rank=8),
        ]
    )
    assert refusal(lambda: mixture.schema(rank={"tsk": 2})) == (
        "`rank` by feature must name one of the features ['task', 'language']. "
        "Received: 'tsk'. The nearest is 'task'."
    )


def test_absent_and_multiple_values():
    prompts = {"prompts": ["?"]}
    mixture = Mixture(
        [
            Dataset({"task": None, "domain": ["web", "news"]}, prompts),
            Dataset({"task": "qa", "domain": None}, prompts),
            Dataset({"task": "qa", "domain": "law"}, prompts),
        ]
    )
    assert mixture.schema() == FeatureSchema(
        [
            Feature("task", ["qa"]),
            Feature("domain", ["web", "news", "law"], multiple=True),
        ]
    )
    inputs = mixture.inputs()
    assert inputs == {
        "prompts": ["?"] * 3,
        "task": [None, "qa", "qa"],
        "domain": [["web", "news"], [], ["law"]],
    }
    ids = mixture.schema().encode({k: inputs[k] for k in ("task", "domain")})
    assert ids["task"].tolist() == [-1, 0, 0]
    assert ids["domain"].tolist() == [[0, 1], [-1, -1], [2, -1]]
    rest, held_out = mixture.split({"domain": "news"}, {"domain": None})
    assert [d.features["domain"] for d in held_out.datasets] == [["web", "news"], None]
    assert [d.features["domain"] for d in rest.datasets] == ["law"]


def test_rows_come_without_repetition_until_all_have_come():
    mixture = make_mixture(float("inf"))
    draws = mixture.draw(200)
    assert draws.shape == (200, 2) and draws.dtype == "int64"
    rounds = set()
    for i, size in enumerate(mixture.sizes):
        rows = draws[draws[:, 0] == i, 1]
        for start in range(0, len(rows) - size + 1, size):
            part = rows[start : start + size]
            assert sorted(part) == list(range(size))
            rounds.add(tuple(part) if size == 8 else None)
        last = rows[len(rows) // size * size :]
        assert len(set(last)) == len(last)
    # Every round has an order of its own.
    assert len(rounds) > 3


def test_draws_follow_the_seed():
    mixture = make_mixture()
    draws = mixture.draw(50, seed=1)
    np.testing.assert_array_equal(mixture.draw(50, seed=1), draws)
    np.testing.assert_array_equal(mixture.draw(20, seed=1), draws[:20])
    assert not np.array_equal(mixture.draw(50, seed=2), draws)
    assert mixture.draw(0).shape == (0, 2)


def test_sample_takes_what_was_drawn():
    mixture = make_mixture()
    draws, batch = mixture.draw(30, seed=3), mixture.sample(30, seed=3)
    assert list(batch) == ["prompts", "number", "task", "language"]
    features = [mixture.datasets[i].features for i in draws[:, 0]]
    assert batch["task"] == [f["task"] for f in features]
    assert batch["language"] == [f["language"] for f in features]
    places = zip(batch["task"], batch["language"], draws[:, 1])
    assert batch["prompts"] == [f"{t} {lang} {row}" for t, lang, row in places]
    np.testing.assert_array_equal(batch["number"], draws[:, 1])
    assert batch["number"].dtype == mixture.datasets[0].columns["number"].dtype


def test_arrays_of_several_kinds_become_one():
    ids = np.array([[1, 2], [3, 4]], "int32")
    datasets = [
        named("qa", "en", 2, ids=ids, name=np.array(["a", "b"])),
        named("qa", "sw", 1, ids=ids[:1].astype("int64"), name=np.array(["long"])),
    ]
    inputs = Mixture(datasets).inputs()
    assert inputs["ids"].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert inputs["ids"].dtype == "int64"
    assert inputs["name"].tolist() == ["a", "b", "long"]


def test_inputs_are_all_examples_in_order():
    mixture = make_mixture()
    inputs = mixture.inputs()
    expected = [p for d in mixture.datasets for p in d.columns["prompts"]]
    assert inputs["prompts"] == expected
    assert len(mixture) == len(expected) == 15
    assert inputs["task"] == ["qa"] * 10 + ["parse"] * 5


def cells(mixture):
    return [tuple(dataset.features.values()) for dataset in mixture.datasets]


@pytest.mark.parametrize(
    ("combinations", "expected"),
    [
        ([{"task": "qa", "language": "sw"}], [("qa", "sw")]),
        ([{"language": "sw"}], [("qa", "sw"), ("parse", "sw")]),
        (
            [{"task": "parse", "language": "sw"}, {"task": "qa"}],
            [("qa", "en"), ("qa", "sw"), ("parse", "sw")],
        ),
        (
            [{"task": "qa"}, {"task": "qa", "language": "sw"}],
            [("qa", "en"), ("qa", "sw")],
        ),
    ],
)
def test_split(combinations, expected):
    mixture = make_mixture(3.0)
    rest, held_out = mixture.split(*combinations)
    assert cells(held_out) == expected
    assert cells(rest) == [cell for cell in cells(mixture) if cell not in expected]
    assert rest.temperature == held_out.temperature == 3.0


def test_split_refusals():
    mixture = make_mixture()
    assert refusal(lambda: mixture.split({"task": "parse", "language": "swa"})) == (
        "A combination to hold out must match a dataset. Received: {'task': 'parse', "
        "'language': 'swa'}, which matches none. The nearest dataset has {'task': "
        "'parse', 'language': 'sw'}. Correct or remove it."
    )
    # Values of no dataset do not hide behind those that match.
    assert "matches none" in refusal(
        lambda: mixture.split({"task": "qa"}, {"language": None})
    )
    assert "The nearest is 'language'." in refusal(
        lambda: mixture.split({"lang": "sw"})
    )
    text = (
        "A split must leave datasets on both sides. Received: {} combinations, which "
        "match {} of 4 datasets. Name {} of them."
    )
    assert refusal(lambda: mixture.split()) == text.format(0, 0, "some")
    both = [{"language": "en"}, {"language": "sw"}]
    assert refusal(lambda: mixture.split(*both)) == text.format(2, 4, "fewer")


def test_limit():
    mixture = make_mixture(2.0)
    few, more = mixture.limit(2, seed=1), mixture.limit(5, seed=1)
    assert few.sizes == (2, 2, 2, 1) and more.sizes == (5, 2, 4, 1)
    assert few.temperature == 2.0
    for small, large in zip(few.datasets, more.datasets):
        assert set(small.columns["prompts"]) <= set(large.columns["prompts"])
        numbers = large.columns["number"].tolist()
        assert numbers == sorted(numbers)
    chosen = {
        tuple(mixture.limit(2, s).datasets[0].columns["number"]) for s in range(9)
    }
    assert len(chosen) > 3
    assert mixture.limit(8).inputs()["prompts"] == mixture.inputs()["prompts"]
    assert [len(dataset) for dataset in mixture.limit(1).datasets] == [1] * len(
        mixture.datasets
    )
    assert refusal(lambda: mixture.limit(0)) == (
        "A limit must leave every dataset an example. Received: count=0. Pass at "
        "least 1, or `split` datasets off."
    )


# Batches and training. -------------------------------------------------------


def test_batches_are_drawn_anew_in_every_epoch():
    mixture = make_mixture()
    batches = mixture.batches(batch_size=3, steps=4, seed=1)
    # As Keras does before the first epoch.
    batches.on_epoch_end()
    epochs = []
    for epoch in range(3):
        assert batches.epoch == epoch and batches.num_batches == 4
        assert batches[1].keys() == mixture.inputs().keys()
        epochs.append([p for batch in batches for p in batch["prompts"]])
        batches.on_epoch_end()
    assert all(len(prompts) == 12 for prompts in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for prompts in epochs:
        # Rows do not repeat from one batch of an epoch to the next.
        big = [p for p in prompts if p.startswith("qa en")]
        assert len(set(big[:8])) == len(big[:8])
    again = mixture.batches(batch_size=3, steps=4, seed=1)
    assert [p for batch in again for p in batch["prompts"]] == epochs[0]
    other = mixture.batches(batch_size=3, steps=4, seed=2)
    assert [p for batch in other for p in batch["prompts"]] != epochs[0]
    # Keras' batches are numbered from 0, whatever a loop asks for.
    with pytest.raises(IndexError):
        batches[4]


def test_batches_with_labels():
    weight = np.ones(2, "float32")
    mixture = Mixture([named("qa", "en", 2, weight=weight)])
    x, y = mixture.batches(2, 1, y="number")[0]
    assert list(x) == ["prompts", "weight", "task", "language"]
    assert sorted(y) == [0, 1]
    x, y, sample_weight = mixture.batches(2, 1, y="number", sample_weight="weight")[0]
    assert list(x) == ["prompts", "task", "language"]
    np.testing.assert_array_equal(sample_weight, weight)
    assert refusal(lambda: mixture.batches(2, 1, y="label")) == (
        "`y` and `sample_weight` must name columns of the mixture. Received: 'label', "
        "which is none of ['prompts', 'number', 'weight']. Correct the name."
    )
    for size, steps in ((0, 1), (2, 0), (-1, 1)):
        assert refusal(lambda b=size, s=steps: mixture.batches(b, s)) == (
            "`batches` must draw at least one batch of at least one example. "
            f"Received: batch_size={size}, steps={steps}. Pass positive numbers."
        )
    x, y, sample_weight = mixture.batches(2, 1, sample_weight="weight")[0]
    assert list(x) == ["prompts", "number", "task", "language"] and y is None
    np.testing.assert_array_equal(sample_weight, weight)


def test_batches_of_texts_with_weights(make_gemma):
    """A task makes its targets itself."""
    texts = {"prompts": ["the quick", "the"], "responses": ["fox", "dog"]}
    mixture = Mixture([Dataset({"task": "qa"}, {**texts, "weight": np.ones(2)})])
    mixture.datasets[0].columns["weight"][:] = [2.0, 0.5]
    model = keras_flix.enable_flix(make_gemma(num_layers=1), mixture.schema(), rank=2)
    batch = {**texts, "task": "qa"}
    expected = model.evaluate(batch, sample_weight=np.array([2.0, 0.5]), verbose=0)
    found = model.evaluate(mixture.batches(2, 1, sample_weight="weight"), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(model.evaluate(batch, verbose=0)[0] - found[0]) > 1e-3


# Integer values. ---------------------------------------------------------------


def make_levels():
    """Integers whose order in the mixture is not that of their size."""
    x = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
    levels = [(3, slice(0, 2)), (np.int64(1), slice(2, 3)), (None, slice(3, 6))]
    return Mixture([Dataset({"level": one}, {"x": x[rows]}) for one, rows in levels])


def test_integers_are_values():
    mixture = make_levels()
    schema = mixture.schema()
    assert schema["level"].values == (3, 1)
    entries = mixture.inputs()["level"]
    assert entries == [3, 3, 1, None, None, None]
    assert schema.encode({"level": entries})["level"].tolist() == [0, 0, 1, -1, -1, -1]
    model = keras_flix.enable_flix(make_mlp(), schema, targets="all-linear", rank=2)
    randomize(model)
    found = model.predict(mixture.inputs(), verbose=0)
    for dataset, rows in zip(mixture.datasets, (slice(0, 2), slice(2, 3), slice(3, 6))):
        alone = keras_flix.merge_features(model, dict(dataset.features))
        expected = to_numpy(alone(dataset.columns))
        np.testing.assert_allclose(found[rows], expected, rtol=1e-5, atol=1e-5)
    rest, held_out = mixture.split({"level": 1})
    assert [len(rest), len(held_out)] == [5, 1]
    again = Mixture(mixture.inputs(), features="level")
    assert again.schema() == schema and again.inputs()["level"] == entries
    several = Mixture([Dataset({"level": [1, 2]}, {"x": [0.0]})])
    assert several.schema()["level"].multiple and several.sample(1)["level"] == [[1, 2]]


def test_integers_of_a_mixture_are_never_ids():
    """Of a model whose values are strings, they would be."""
    batch = make_levels().inputs()
    schema = keras_flix.FeatureSchema({"level": ["a", "b", "c", "d"]})
    assert "Received: level=3." in refusal(
        lambda: schema.encode({"level": batch["level"]})
    )


def test_strings_and_integers_of_one_feature_are_refused():
    datasets = [Dataset({"level": one}, {"x": [1]}) for one in (None, "1", 1)]
    assert refusal(lambda: Mixture(datasets)) == (
        "The values of a mixture's feature must be all strings or all integers. "
        "Received: 'level' with '1' and 1. Convert some with str(value) or int(value)."
    )


@pytest.mark.parametrize("language", ["\u00e9", "e\u0301"])
def test_texts_that_look_the_same_are_the_same(language):
    mixture = Mixture([named("qa", v, 1) for v in ("e\u0301", "sw")])
    rest, held_out = mixture.split({"language": language})
    assert [len(rest), len(held_out)] == [1, 1]


def numeric_mixture():
    generator = np.random.default_rng(0)

    def numeric(task, language, count):
        x = generator.normal(size=(count, 8)).astype("float32")
        columns = {"x": x, "label": generator.integers(0, 4, count)}
        return Dataset({"task": task, "language": language}, columns)

    parts = [("qa", "en", 7), ("qa", None, 3), ("parse", "sw", 11), ("parse", "en", 2)]
    return Mixture([numeric(*part) for part in parts])


def adapted_mlp(mixture):
    model = keras_flix.enable_flix(
        make_mlp(), mixture.schema(rank=2), targets="all-linear", seed=0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss)
    return model


def tables(model):
    return [to_numpy(v) for v in model.trainable_variables]


def test_fit_on_a_sample():
    mixture = numeric_mixture()
    model = adapted_mlp(mixture)
    x = mixture.sample(64)
    y = x.pop("label")
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "is_built", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_fit_on_batches_trains_on_what_was_drawn(is_built):
    """The tables are those of training on the epochs' batches one by one."""
    mixture = numeric_mixture()
    model, other = adapted_mlp(mixture), adapted_mlp(mixture)
    if is_built:
        # Keras reads a batch to build a model only if that is not built yet.
        model.predict({k: v[:2] for k, v in mixture.inputs().items() if k != "label"})
    batches = mixture.batches(8, 4, seed=5, y="label")
    model.fit(batches, epochs=2, shuffle=False, verbose=0)
    expected = mixture.batches(8, 4, seed=5, y="label")
    expected.on_epoch_end()
    for _ in range(2):
        for x, y in expected:
            other.train_on_batch(x, y)
        expected.on_epoch_end()
    for found, wanted in zip(tables(model), tables(other), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["initial_epoch", "backup"])
def test_a_training_that_goes_on_draws_what_its_epochs_do(how, tmp_path):
    mixture = numeric_mixture()
    options = {"shuffle": False, "verbose": 0}
    whole = adapted_mlp(mixture)
    whole.fit(mixture.batches(8, 4, seed=5, y="label"), epochs=5, **options)
    model, again = adapted_mlp(mixture), []
    if how == "backup":
        again = [BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)]
    first = mixture.batches(8, 4, seed=5, y="label")
    model.fit(first, epochs=3, callbacks=again, **options)
    if how == "backup":
        model = adapted_mlp(mixture)
        again = [BackupAndRestore(tmp_path / "backup")]
    else:
        options["initial_epoch"] = 3
    rest = mixture.batches(8, 4, seed=5, y="label")
    history = model.fit(rest, epochs=5, callbacks=again, **options)
    assert history.epoch == [3, 4]
    for found, wanted in zip(tables(model), tables(whole), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_fit_on_strings(make_gemma):
    prompts = {"prompts": ["the quick", "dog"], "responses": ["brown", "fox"]}
    mixture = Mixture(
        [
            Dataset({"task": task, "language": language}, prompts)
            for task, language in [("qa", "en"), ("qa", "sw"), ("parse", None)]
        ]
    )
    model = keras_flix.enable_flix(make_gemma(), mixture.schema(), rank=2, seed=0)
    model.compile(optimizer=keras.optimizers.Adam(0.02))
    before = tables(model)
    model.fit(mixture.sample(6), batch_size=3, verbose=0)
    after = tables(model)
    assert any(not np.array_equal(a, b) for a, b in zip(before, after))
    model.fit(mixture.batches(3, 2), epochs=2, verbose=0)
    assert any(not np.array_equal(a, b) for a, b in zip(after, tables(model)))
