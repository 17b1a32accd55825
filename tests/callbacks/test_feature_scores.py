"""Scores and norms while `fit` runs: the same as after it, and in the right files."""

import sys

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.analysis import update_norms
from keras_flix.callbacks import FeatureScores, FeatureTensorBoard
from keras_flix.evaluation import evaluate, forced_exact_match
from keras_flix.mixtures import Dataset, Mixture

pytestmark = pytest.mark.eager

MIXTURE = Mixture(
    [
        Dataset(
            {"task": task, "language": language},
            {"prompts": [f"{task} the", "dog"], "responses": [language, "fox"]},
        )
        for task, language in [("qa", "en"), ("parse", "sw"), ("qa", "sw")]
    ]
)
TRAIN = MIXTURE.inputs()
LENGTH = 16


def fingerprint(predictions, references):
    """A metric that tells any answers apart."""
    return sum(i * ord(c) for p in predictions for i, c in enumerate(p, start=1))


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


@pytest.fixture
def gemma(make_gemma):
    gemma = make_gemma(num_layers=1, hidden_dim=32)
    keras_flix.enable_flix(
        gemma, FEATURES, rank=4, targets="all-linear", dropout=0.1, seed=0
    )
    randomize(gemma)
    gemma.compile(optimizer=keras.optimizers.Adam(0.03), sampler="greedy")
    return gemma


def train(gemma, callbacks=()):
    return gemma.fit(
        TRAIN, batch_size=3, epochs=24, shuffle=False, verbose=0,
        callbacks=list(callbacks),
    ).history  # fmt: skip


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True])
def test_a_table_scores_as_a_mixture_does(gemma, forced):
    table = [dict(zip(TRAIN, row)) for row in zip(*TRAIN.values())]
    logs = []
    for data in (MIXTURE, table):
        scores = FeatureScores(data, forced=forced)
        scores.set_model(gemma)
        scores.on_train_begin()
        logs.append({})
        scores.on_epoch_end(0, logs[-1])
    assert logs[0] == logs[1] and "exact_match/language=sw" in logs[0]
    assert scores.last.features == {n: tuple(TRAIN[n]) for n in ("task", "language")}


@pytest.mark.short("torch", "jax")
@pytest.mark.slow
def test_scores_within_fit_are_those_after_it(gemma, tmp_path):
    gemma.optimizer.build(gemma.trainable_variables)
    state = [*gemma.variables, *gemma.optimizer.variables]
    start = [to_numpy(variable).copy() for variable in state]
    by = ["language", ("task", "language")]
    metrics = {"metrics": {"fingerprint": fingerprint}, "max_length": LENGTH}
    scores = FeatureScores(MIXTURE, by, every=12, **metrics)
    forced = FeatureScores(MIXTURE, forced=True, every=2, batch_size=4)
    monitor = {"monitor": "exact_match/language=sw", "mode": "max"}
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True,
        **monitor,
    )  # fmt: skip
    stop = keras.callbacks.EarlyStopping(baseline=100.5, patience=3, **monitor)
    history = train(gemma, [scores, forced, best])
    after = evaluate(gemma, MIXTURE, **metrics)
    assert scores.last.predictions == after.predictions
    last = {name: x[-1] for name, x in history.items() if name.startswith("finger")}
    languages, cells = after.by("language"), after.by("task", "language")
    assert last == {
        "fingerprint/all": after.overall()["fingerprint"],
        "fingerprint/language": after.mean_over("language")["fingerprint"],
        "fingerprint/language=en": languages["en"]["fingerprint"],
        "fingerprint/language=sw": languages["sw"]["fingerprint"],
        "fingerprint/task,language": after.mean_over("task", "language")["fingerprint"],
        "fingerprint/task=qa,language=en": cells["qa", "en"]["fingerprint"],
        "fingerprint/task=parse,language=sw": cells["parse", "sw"]["fingerprint"],
        "fingerprint/task=qa,language=sw": cells["qa", "sw"]["fingerprint"],
    }
    # Other weights give other answers, so these were not those of another epoch.
    assert len(set(history["fingerprint/all"])) == 2
    # All axes without `by`.
    assert {"exact_match/task=parse", "exact_match/language"} <= history.keys()
    found = history["exact_match/language=sw"]
    # From the second epoch on; what lies between two scores repeats the first.
    assert len(found) == 23 and found[::2][:-1] == found[1::2]
    assert max(found) > min(found)
    assert forced_score(gemma) == found[-1]

    # Training goes as it does without scores.
    trained = [to_numpy(variable).copy() for variable in state]
    for variable, value in zip(state, start):
        variable.assign(value)
    assert train(gemma)["loss"] == history["loss"]
    for variable, value in zip(state, trained):
        np.testing.assert_array_equal(to_numpy(variable), value)

    # The scores chose the checkpoint, and can stop training.
    gemma.load_weights(tmp_path / "best.weights.h5")
    assert forced_score(gemma) == max(found)
    each = FeatureScores(MIXTURE, forced=True, batch_size=4)
    assert len(train(gemma, [each, stop])["loss"]) == 3


def forced_score(gemma):
    hits = forced_exact_match(gemma, *gemma.preprocess_samples(TRAIN), batch_size=4)
    return 100 * hits[[language == "sw" for language in TRAIN["language"]]].mean()


def test_refusals(gemma):
    message = refusal(lambda: train(gemma, [FeatureScores(MIXTURE, by="langauge")]))
    assert "`by` must name one of the features ['task', 'language']." in message
    assert "Received: 'langauge'." in message
    unanswered = Dataset({"task": "qa", "language": "sw"}, {"prompts": ["a"]})
    message = refusal(lambda: train(gemma, [FeatureScores(unanswered)]))
    assert "Add 'responses'" in message
    several = Dataset(
        {"task": "qa", "language": "sw"}, {"prompts": ["a"], "responses": [["b", "c"]]}
    )
    message = refusal(lambda: train(gemma, [FeatureScores(several, forced=True)]))
    assert "one right response per example. Received: ['b', 'c']" in message
    message = refusal(lambda: FeatureScores(MIXTURE, forced=True, max_length=9))
    assert "Received: `metrics` or `max_length` besides" in message
    message = refusal(lambda: FeatureScores(MIXTURE, every=0))
    assert "positive number of epochs. Received: every=0" in message
    assert "at least one metric" in refusal(lambda: FeatureScores(MIXTURE, metrics={}))
    message = refusal(lambda: FeatureTensorBoard("logs", every=0))
    assert "Received: every=0" in message


# TensorBoard. ----------------------------------------------------------------


def read_events(folder):
    """By name, the steps and numbers of all scalars in a folder's event files."""
    reason = "event files are read by tensorboard"
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    util = pytest.importorskip("tensorboard.util.tensor_util", reason=reason)
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {
        name: [
            (event.step, float(util.make_ndarray(event.tensor_proto)))
            for event in events.Tensors(name)
        ]
        for name in events.Tags()["tensors"]
    }


def make_mlp_with(names):
    inputs = keras.Input((8,), name="x")
    model = keras.Model({"x": inputs}, keras.layers.Dense(4, name="head")(inputs))
    keras_flix.enable_flix(model, {"language": names}, rank=2, targets=["head"])
    model.compile("sgd", "mse")
    return randomize(model)


class Extra(keras.callbacks.Callback):
    """Stands for `FeatureScores`."""

    def on_epoch_end(self, epoch, logs=None):
        logs["exact_match/language=zh-Hant (x)"] = 10.0 * epoch
        logs["a vector"] = np.zeros(3)


def test_event_files_hold_logs_and_norms(tmp_path):
    names = ["en", "zh-Hant (x)"]
    model = make_mlp_with(names)
    board = FeatureTensorBoard(tmp_path, every=2)
    data = {"x": np.ones((4, 8)), "language": ["en", "zh-Hant (x)"] * 2}
    history = model.fit(
        data, np.zeros((4, 4)), epochs=4, verbose=0, callbacks=[Extra(), board]
    ).history
    events = read_events(tmp_path)
    assert events.keys() == {
        "loss",
        "exact_match/language=zh-Hant (x)",
        *(f"update_norm/language={name}" for name in names),
    }
    steps, losses = zip(*events["loss"])
    assert steps == (0, 1, 2, 3)
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-6)
    scores = events["exact_match/language=zh-Hant (x)"]
    assert scores == [(0, 0.0), (1, 10.0), (2, 20.0), (3, 30.0)]
    for name, total in zip(names, update_norms(model).total["language"]):
        written = events[f"update_norm/language={name}"]
        assert [step for step, _ in written] == [1, 3]
        np.testing.assert_allclose(written[-1][1], total, rtol=1e-6)
        assert written[0][1] != written[1][1]


def test_plain_models_have_logs_only(tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    model.compile("sgd", "mse")
    data = np.ones((4, 8)), np.zeros((4, 4))

    def fit(**options):
        board = FeatureTensorBoard(tmp_path / "logs", **options)
        model.fit(*data, verbose=0, callbacks=[board])

    assert "must have been adapted" in refusal(fit)
    assert not (tmp_path / "logs").exists()
    fit(norms=False)
    assert read_events(tmp_path / "logs").keys() == {"loss"}


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    board = FeatureTensorBoard(tmp_path)
    board.set_model(make_mlp_with(["en"]))
    with pytest.raises(ImportError) as error:
        board.on_train_begin()
    assert "needs the package tensorboard, which is not" in str(error.value)
    assert "pip install 'keras-flix[tensorboard]'" in str(error.value)
