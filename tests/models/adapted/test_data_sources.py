"""Every data source that Keras takes carries the features, as ids or strings."""

import importlib.util

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.data_sources import map_batches

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
needs_tf = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed"
)

N = 6
TOKENS = {
    "token_ids": np.random.default_rng(0).integers(4, 40, (N, 5)).astype("int32"),
    "padding_mask": np.ones((N, 5), "int32"),
}
STRINGS = {
    "task": ["qa", "parse", "list", "qa", "parse", "list"],
    "language": ["sw", "yo", "en", "en", "sw", "yo"],
}
IDS = {"task": np.array([0, 1, 2, 0, 1, 2]), "language": np.array([1, 2, 0, 0, 1, 2])}
TEXTS = {
    "prompts": ["the quick", "dog", "fox jumps", "lazy", "qa en", "over"],
    "responses": ["brown fox", "lazy", "over the", "dog", "sw yo", "the"],
}


def batches(x, y=None, size=2):
    for start in range(0, N, size):
        end = start + size
        part = {k: v[start:end] for k, v in x.items()}
        yield (part,) if y is None else (part, y[start:end])


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y=None):
        super().__init__()
        self.batches = list(batches(x, y))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_arrays(x, y=None):
    return x, y


def as_tf(x, y=None):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x,) if y is None else (x, y))
    return data.batch(2), None


def as_py_dataset(x, y=None):
    return Batches(x, y), None


def as_generator(x, y=None):
    return batches(x, y), None


def as_grain(x, y=None):
    import grain

    rows = [
        ({k: v[i] for k, v in x.items()},) + (() if y is None else (y[i],))
        for i in range(N)
    ]
    return grain.MapDataset.source(rows).batch(2), None


def as_grain_loader(x, y=None):
    import grain

    rows = [
        ({k: v[i] for k, v in x.items()},) + (() if y is None else (y[i],))
        for i in range(N)
    ]
    loader = grain.DataLoader(
        data_source=rows,
        sampler=grain.samplers.IndexSampler(N, shuffle=False, num_epochs=1),
        operations=[grain.transforms.Batch(2)],
        worker_count=0,
    )
    return loader, None


def as_torch(x, y=None):
    import torch

    rows = [
        ({k: v[i] for k, v in x.items()},) + (() if y is None else (y[i],))
        for i in range(N)
    ]
    return torch.utils.data.DataLoader(rows, batch_size=2), None


SOURCES = [
    as_arrays,
    pytest.param(as_tf, marks=needs_tf),
    *(
        pytest.param(source, marks=pytest.mark.slow)
        for source in (as_py_dataset, as_generator, as_grain, as_grain_loader)
    ),
    pytest.param(as_torch, marks=[needs_torch, pytest.mark.slow]),
]
ON_TORCH = pytest.mark.short("torch")
TASK_SOURCES = [
    as_arrays,
    pytest.param(as_tf, marks=[needs_tf, pytest.mark.slow]),
    # KerasHub's preprocessing makes one data set of all of them.
    *(
        pytest.param(source, marks=[pytest.mark.slow, ON_TORCH])
        for source in (as_py_dataset, as_generator, as_grain, as_grain_loader)
    ),
    pytest.param(as_torch, marks=[needs_torch, pytest.mark.slow, ON_TORCH]),
]
FORMS = [
    pytest.param(IDS, id="ids"),
    pytest.param(STRINGS, id="strings", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    backbone = make_backbone(num_layers=1)
    return randomize(keras_flix.enable_flix(backbone, FEATURES, rank=2))


@pytest.fixture
def start(backbone):
    values = [to_numpy(v) for v in backbone.trainable_variables]
    yield
    for variable, value in zip(backbone.trainable_variables, values):
        variable.assign(value)


@pytest.mark.pairs("a backbone")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("features", FORMS)
def test_plain_model_predicts(backbone, source, features):
    expected = to_numpy(backbone({**TOKENS, **IDS}))
    x, _ = source({**TOKENS, **features})
    found = backbone.predict(
        x, verbose=0, batch_size=2 if source is as_arrays else None
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.pairs("a backbone")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("features", FORMS)
def test_plain_model_trains(backbone, start, source, features):
    y = np.ones((N, 5, 16), "float32")
    before = [to_numpy(v) for v in backbone.trainable_variables]
    ends = []
    for make, values in ((as_arrays, IDS), (source, features)):
        for variable, value in zip(backbone.trainable_variables, before):
            variable.assign(value)
        backbone.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        data, target = make({**TOKENS, **values}, y)
        batch_size = 2 if make is as_arrays else None
        backbone.fit(data, target, batch_size=batch_size, shuffle=False, verbose=0)
        ends.append([to_numpy(v) for v in backbone.trainable_variables])
    assert any(not np.array_equal(a, b) for a, b in zip(before, ends[0]))
    for expected, found in zip(*ends):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.pairs("a backbone")
@pytest.mark.parametrize("source", SOURCES)
def test_plain_model_validates_and_evaluates(backbone, start, source):
    y = np.ones((N, 5, 16), "float32")
    backbone.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    expected = backbone.evaluate({**TOKENS, **IDS}, y, batch_size=2, verbose=0)
    x, target = source({**TOKENS, **STRINGS}, y)
    found = backbone.evaluate(x, target, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    x, target = source({**TOKENS, **STRINGS}, y)
    history = backbone.fit(
        {**TOKENS, **IDS},
        y,
        validation_data=(x, target) if source is as_arrays else x,
        verbose=0,
    )
    np.testing.assert_allclose(history.history["val_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("source", [as_tf, as_grain, as_torch, as_py_dataset])
def test_unknown_values_in_a_source_raise(backbone, start, source):
    wrong = {"task": ["qa"] * 5 + ["pares"], "language": STRINGS["language"]}
    x, _ = source({**TOKENS, **wrong})
    with pytest.raises(ValueError, match="nearest known value is 'parse'"):
        backbone.predict(x, verbose=0)


@pytest.mark.parametrize("source", [as_tf, as_grain, as_torch, as_py_dataset])
def test_ids_out_of_range_in_a_source_raise(backbone, start, source):
    wrong = {"task": np.array([0, 1, 2, 0, 3, 0]), "language": IDS["language"]}
    x, _ = source({**TOKENS, **wrong})
    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        backbone.predict(x, verbose=0)


@pytest.mark.eager
@pytest.mark.pairs("a task")
@pytest.mark.parametrize("source", TASK_SOURCES)
def test_task_with_its_preprocessor_trains(make_gemma, source):
    ends = []
    for make, values in ((as_arrays, IDS), (source, STRINGS)):
        model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2, seed=0)
        randomize(model)
        model.compile(optimizer=keras.optimizers.SGD(0.5))
        x, _ = make({**TEXTS, **values})
        kwargs = {"batch_size": 2} if make is as_arrays else {}
        model.fit(x, shuffle=False, verbose=0, **kwargs)
        ends.append([to_numpy(v) for v in model.trainable_variables])
    for expected, found in zip(*ends):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.eager
@pytest.mark.pairs("a task")
@pytest.mark.parametrize("source", TASK_SOURCES)
def test_task_without_its_preprocessor_predicts(make_gemma, source):
    model = keras_flix.enable_flix(make_gemma(preprocessor=False), FEATURES, rank=2)
    randomize(model)
    expected = to_numpy(model({**TOKENS, **IDS}))
    x, _ = source({**TOKENS, **STRINGS})
    kwargs = {"batch_size": 2} if source is as_arrays else {}
    found = model.predict(x, verbose=0, **kwargs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_loss_is_on_the_response_only(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    data = model.preprocess_samples({**TEXTS, **STRINGS})
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    tokenizer = model.preprocessor.tokenizer
    for i in range(N):
        prompt = [int(t) for t in tokenizer(TEXTS["prompts"][i])]
        response = [int(t) for t in tokenizer(TEXTS["responses"][i])]
        sequence = [tokenizer.start_token_id, *prompt, *response]
        sequence = (sequence + [tokenizer.end_token_id])[:25]
        ids, mask = to_numpy(x["token_ids"])[i], to_numpy(x["padding_mask"])[i]
        assert ids[: len(sequence) - 1].tolist() == sequence[:-1]
        assert mask.tolist() == [j < len(sequence) for j in range(24)]
        trained = to_numpy(y)[i][to_numpy(weight)[i]]
        assert trained.tolist() == [*response, tokenizer.end_token_id]


def test_a_real_token_with_the_padding_id_is_no_padding(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    tokenizer = model.preprocessor.tokenizer
    tokenizer.pad_token_id = int(tokenizer("the")[0])
    x, _, _ = model.preprocess_samples(
        {"prompts": ["the dog"], "responses": ["the"], "task": "qa", "language": "en"}
    )
    length = 2 + len(tokenizer("the dog")) + len(tokenizer("the"))
    assert int(np.sum(to_numpy(x["padding_mask"]))) == length


@pytest.mark.slow
@pytest.mark.eager
def test_classifier_takes_text():
    import keras_hub

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "fox"]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary), sequence_length=8
    )
    model = keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            vocabulary_size=8,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=16,
            max_sequence_length=8,
        ),
        num_classes=2,
        preprocessor=preprocessor,
    )
    keras_flix.enable_flix(model, FEATURES, rank=2)
    randomize(model)
    texts = ["the dog", "the fox"]
    inputs = {"text": texts, "task": ["qa", "list"], "language": "sw"}
    found = model.predict(inputs, verbose=0)
    tokens = {k: to_numpy(v) for k, v in preprocessor(texts).items()}
    expected = to_numpy(model({**tokens, "task": ["qa", "list"], "language": "sw"}))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.fit(inputs, np.array([0, 1]), epochs=1, verbose=0)
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    columns = {**inputs, "language": ["sw", "sw"]}
    data = tf.data.Dataset.from_tensor_slices((columns, [0, 1])).batch(2)
    np.testing.assert_allclose(
        model.evaluate(data, verbose=0),
        model.evaluate(inputs, np.array([0, 1]), verbose=0),
        rtol=1e-5,
    )


@pytest.mark.short("torch")
def test_a_mapped_dataset_has_as_many_batches():
    source = Batches(STRINGS)
    mapped = map_batches(source, lambda batch: batch)
    assert mapped.num_batches == source.num_batches == 3
    assert mapped[2][0]["task"][1] == "list"


def test_several_values_per_example_from_ragged_strings():
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    features = [keras_flix.Feature("language", FEATURES["language"], multiple=True)]
    model = randomize(keras_flix.enable_flix(make_backbone(), features, rank=2))
    rows = [["sw", "en"], ["yo"], [], ["en"], ["sw"], ["en", "sw", "yo"]]
    expected = to_numpy(model({**TOKENS, "language": rows}))
    data = {**TOKENS, "language": tf.ragged.constant(rows)}
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(3)
    found = model.predict(dataset, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.eager
@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.parametrize("source", [as_arrays, pytest.param(as_tf, marks=needs_tf)])
def test_task_without_grain(make_gemma, monkeypatch, source):
    """KerasHub's pipeline is `tf.data` where grain is not installed."""
    pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    from keras_hub.src.utils import pipeline_model

    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    with_grain = model.predict({**TEXTS, **STRINGS}, batch_size=2, verbose=0)
    monkeypatch.setattr(pipeline_model, "grain", None)
    x, _ = source({**TEXTS, **STRINGS})
    kwargs = {"batch_size": 2} if source is as_arrays else {}
    found = model.predict(x, verbose=0, **kwargs)
    np.testing.assert_allclose(found, with_grain, atol=1e-5)


def test_empty_strings_of_tf_data_are_absent(backbone):
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    expected = to_numpy(
        backbone({**TOKENS, "task": [None, *["qa"] * 5], "language": -1})
    )
    data = {**TOKENS, "task": ["", *["qa"] * 5], "language": [""] * N}
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(3)
    found = backbone.predict(dataset, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
